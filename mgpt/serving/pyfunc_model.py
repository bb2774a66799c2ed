"""The MLflow model, logged as code: `mlflow.pyfunc.load_model("models:/minigpt-v2@champion").predict(table)`.

MLflow copies this file into the version and runs it at load. The weights stay in the store; the logged reference holds
their digest and their location relative to the store's root. `mgpt` must be installed where the model is loaded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas
import yaml
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from mgpt.serving.loading import load
from mgpt.storage import Store
from mgpt.storage.types import WeightsReference


class MiniGPTModel(PythonModel):
    """Input columns: `image` (encoded bytes, base64 text, data URL or path) and `prompt`. Output columns: `text`, and
    `boxes`, a list of `{label, x1, y1, x2, y2}` in pixels of the image. `params={"max_new_tokens": 100}` shortens
    answers.
    """

    def load_context(self, context: Any) -> None:
        """Loads and verifies the weights that the version was registered with."""
        weights = WeightsReference(**json.loads(Path(context.artifacts["weights"]).read_text(encoding="utf-8")))
        self.predictor = load(weights, Store(store_root(weights)))

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """Returns one row for each input row, in order. Raises ValueError with the row's number for an unusable image
        or prompt."""
        questions = list(zip(model_input["image"], model_input["prompt"], strict=True))
        replies = self.predictor.answer_all(questions, **(params or {}))
        return pandas.DataFrame([reply.as_dict() for reply in replies], columns=["text", "boxes"])


def store_root(weights: WeightsReference) -> str:
    """Returns the store's root: MGPT_STORAGE__ROOT, else `storage.root` of ./params.yaml, else the one recorded at
    registration."""
    if root := os.environ.get("MGPT_STORAGE__ROOT"):
        return root
    params = Path("params.yaml")
    storage = (yaml.safe_load(params.read_text(encoding="utf-8")) or {}).get("storage") if params.is_file() else None
    return str((storage or {}).get("root") or weights.root)


set_model(MiniGPTModel())
