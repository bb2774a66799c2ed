"""Model versions in MLflow: one version per set of weights, weights by reference, versions joined with their aliases.

MLflow would register weights that do not exist (`create_model_version` answers READY for any address), so
`mgpt.storage.weights` verifies every file first. MLflow receives only the reference and the code that loads it; the
weights stay in the store under their digest.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.registry.types import ServingModel
from mgpt.storage.types import WeightsReference
from mgpt.tracking.client import connect, mlflow_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mgpt.tracking.runs import Tracker

CHAMPION = "champion"
PREFIX = "models:/"  # of a reference to a registered model, as MLflow writes it
REFERENCE = re.compile(rf"{PREFIX}(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
WEIGHTS_DIGEST, WEIGHTS = "mgpt.weights.digest", "mgpt.weights"
SCORES = "mgpt.scores"
REFERENCE_FILE = "weights.json"
LIBRARIES = ("torch", "transformers", "peft", "pillow", "safetensors")


@dataclass(frozen=True)
class Version:
    """One version of a registered model with the aliases that point at it."""

    model: str
    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: int  # milliseconds since 1970

    @property
    def weights(self) -> WeightsReference:
        """The reference to the weights. Raises ValueError for a version that the promote stage did not register."""
        if WEIGHTS not in self.tags:
            raise ValueError(
                f"{self.model} version {self.number} was not registered by the promote stage, so its weights are "
                "unknown"
            )
        return WeightsReference(**json.loads(self.tags[WEIGHTS]))


def register(tracker: Tracker, weights: WeightsReference, tags: Mapping[str, str], serving: ServingModel) -> int:
    """Returns the number of the version with these weights: an existing one, whose tags are updated, or a new one."""
    client = connect(tracker.tracking_uri)
    model, digest = weights.model_name, weights.digest
    tags = {**tags, WEIGHTS_DIGEST: digest, WEIGHTS: json.dumps(asdict(weights))}
    existing = client.search_model_versions(f"name = '{model}' and tags.`{WEIGHTS_DIGEST}` = '{digest}'")
    if existing:
        number = min(int(version.version) for version in existing)
        for key, value in tags.items():
            client.set_model_version_tag(model, str(number), key, value)
        return number
    with suppress(mlflow_error()):  # it exists already
        client.create_registered_model(model)
    source, model_id = _log_model(tracker, weights, serving)
    created = client.create_model_version(
        model, source=source, run_id=tracker.run_id, tags=dict(tags), model_id=model_id
    )
    return int(created.version)


def _log_model(tracker: Tracker, weights: WeightsReference, serving: ServingModel) -> tuple[str, str | None]:
    """Logs the pyfunc code with its reference under the run, a few kilobytes for any model; returns the model's URI and
    id."""
    import mlflow

    requirements = [f"{name}=={metadata.version(name).split('+')[0]}" for name in LIBRARIES]
    mlflow.set_tracking_uri(tracker.tracking_uri)
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=tracker.run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it wants an example input, which would load and run the model
        path = Path(scratch) / REFERENCE_FILE
        path.write_text(json.dumps(asdict(weights), indent=1) + "\n", encoding="utf-8")
        info = mlflow.pyfunc.log_model(
            name=weights.model_name,
            python_model=str(serving.code),
            artifacts={"weights": str(path)},
            signature=_signature(serving.parameters),
            pip_requirements=requirements,
        )
    return info.model_uri, info.model_id


def _signature(parameters: Mapping[str, int]) -> object:
    """Inputs: an image (bytes in process; base64, a data URL or a path as text) and a prompt. Outputs: text and a list
    of boxes.

    A parameter that the signature does not name never reaches the model.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.string, "text"), ColSpec(AnyType(), "boxes")]),
        params=ParamSchema([ParamSpec(name, DataType.long, default) for name, default in parameters.items()]),
    )


def versions(client: MlflowClient, model: str) -> list[Version]:
    """Returns every version of a model, oldest first, with its aliases; an unknown model has none.

    `search_model_versions` returns no aliases on SQL stores, so they are joined from the registered model.
    """
    try:
        aliases = {name: int(number) for name, number in client.get_registered_model(model).aliases.items()}
    except mlflow_error():
        return []
    joined = []
    for item in client.search_model_versions(f"name = '{model}'"):
        number = int(item.version)
        names = tuple(sorted(name for name, target in aliases.items() if target == number))
        joined.append(Version(model, number, names, item.tags, item.creation_timestamp))
    return sorted(joined, key=lambda version: version.number)


def champion(client: MlflowClient, model: str) -> Version | None:
    """Returns the version that carries the alias `champion`."""
    return next((version for version in versions(client, model) if CHAMPION in version.aliases), None)


def model_names(client: MlflowClient) -> list[str]:
    """Returns the names of all registered models, sorted."""
    return sorted(model.name for model in client.search_registered_models(max_results=1000))


def all_versions(client: MlflowClient) -> list[Version]:
    """Returns every version of every registered model, by name and number."""
    return [version for name in model_names(client) for version in versions(client, name)]


def find(tracking_uri: str, reference: str) -> Version:
    """Returns the version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` names.

    Raises:
        ValueError: the reference has another form, or there is no such version; the message lists the existing ones.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(
            f"{reference!r} is not a reference to a registered model; write models:/NAME@champion or "
            "models:/NAME/NUMBER"
        )
    known = versions(connect(tracking_uri), match["name"])
    for version in known:
        if match["alias"] in version.aliases or str(version.number) == match["number"]:
            return version
    listed = ", ".join(f"{version.number} ({' '.join(version.aliases) or 'no alias'})" for version in known)
    raise ValueError(
        f"{reference}: no such version in {tracking_uri}; there is {listed or 'none, run the promote stage'}"
    )
