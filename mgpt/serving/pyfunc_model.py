"""The MLflow model, logged as code: `mlflow.pyfunc.load_model("models:/minigpt-v2@champion").predict(table)`.

MLflow copies this file into the version and runs it at load; the weights stay in the store, and the recipe says where and with which
digest. It needs `mgpt` installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class MiniGPTModel(PythonModel):
    """Columns in: `image` (encoded bytes, base64 text, data URL or path) and `prompt`. Columns out: `text`, and `boxes`, a list of
    `{label, x1, y1, x2, y2}` in pixels of the image. `params={"max_new_tokens": 100}` shortens answers.
    """

    def load_context(self, context: Any) -> None:
        """Loads and verifies the weights that the version was registered with."""
        from mgpt.registry.versions import Recipe
        from mgpt.serving.loading import load_registered

        self.predictor = load_registered(
            Recipe(**json.loads(Path(context.artifacts["recipe"]).read_text(encoding="utf-8")))
        )

    def predict(
        self, context: Any, model_input: pandas.DataFrame, params: dict[str, Any] | None = None
    ) -> pandas.DataFrame:
        """One row out for each row in, in order. Raises ValueError for an image or prompt that cannot be used, with its row's number."""
        questions = list(zip(model_input["image"], model_input["prompt"], strict=True))
        replies = self.predictor.answer_all(questions, **(params or {}))
        return pandas.DataFrame([reply.as_dict() for reply in replies], columns=["text", "boxes"])


set_model(MiniGPTModel())
