"""Inputs for registering a model: the pyfunc code, its parameters, and the smoke test before promotion."""

from __future__ import annotations

from pathlib import Path

from mgpt.serving.images import sample_image
from mgpt.serving.loading import load
from mgpt.serving.predictor import BATCH_SIZE, MAX_NEW_TOKENS
from mgpt.storage import Store
from mgpt.storage.types import WeightsReference

PYFUNC_CODE = Path(__file__).with_name("pyfunc_model.py")  # by path: importing it would set MLflow's current model
PARAMETERS = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": BATCH_SIZE}  # with their defaults
SMOKE_TOKENS = 32


def smoke_test(weights: WeightsReference, store: Store, prompt: str) -> str:
    """Loads the model as a user would, with every hash verified, and returns its answer to a prompt about the sample
    image.

    Raises:
        ValueError: weights or backbones are gone or altered.
    """
    return load(weights, store).answer(sample_image(), prompt, SMOKE_TOKENS).text
