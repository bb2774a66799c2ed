"""Inference with a trained model: loading by reference or folder, chat, batch prediction, drawn boxes, and the MLflow
pyfunc model."""

from mgpt.serving.loading import load
from mgpt.serving.types import LabelledBox, Reply

__all__ = ["LabelledBox", "Reply", "load"]
