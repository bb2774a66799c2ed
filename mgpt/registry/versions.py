"""Model versions: weights kept by reference, one version per set of weights, aliases joined to versions.

MLflow would register weights that do not exist (`create_model_version` answers READY for any address), so every file is read and compared
with its manifest first. Only a small recipe and the code that reads it go to MLflow; the weights stay in the store, under their own digest.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.storage import Manifest, Store, is_remote
from mgpt.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from mgpt.tracking.runs import Tracker

CHAMPION = "champion"
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))")
WEIGHTS_DIGEST, RECIPE = "mgpt.weights.digest", "mgpt.recipe"
SCORES = "mgpt.scores"
REQUIRED = ("trainable.safetensors", "config.json")
PYFUNC = Path(__file__).parent.parent / "serving" / "pyfunc_model.py"
LIBRARIES = ("torch", "transformers", "peft", "pillow", "safetensors")


@dataclass(frozen=True)
class Recipe:
    """What is needed to load a version: the folder of its weights in the store, their manifest's digest, and where each frozen base is.

    It names files and holds none; a base that has moved is looked for among those that ship, and refused when its hash differs.
    """

    model: str
    weights: str
    digest: str
    backbones: dict[str, str]


@dataclass(frozen=True)
class Version:
    """One version of a registered model with the aliases that point at it."""

    model: str
    number: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: int  # milliseconds since 1970

    @property
    def recipe(self) -> Recipe:
        """How to load it. Raises ValueError for a version that the promote stage did not make."""
        if RECIPE not in self.tags:
            raise ValueError(
                f"{self.model} version {self.number} was not registered by the promote stage: it does not name its weights"
            )
        return Recipe(**json.loads(self.tags[RECIPE]))


def store_weights(weights: Path, model_name: str, store: Store) -> tuple[str, Manifest]:
    """Copies a finished stage's weights to `models/<model>/<digest>` of the store and reads them back.

    Returns the folder's URI and its manifest, which stands beside it as `<digest>.json`.

    Raises:
        ValueError: a file is lacking, or what the store gives back is not what was written.
    """
    lacking = [name for name in REQUIRED if not (weights / name).is_file()]
    if lacking:
        raise ValueError(
            f"{weights}: {', '.join(lacking)} not there, so there is no model to register; run the instruct stage first"
        )
    local = Store(str(weights))
    names = sorted(path.relative_to(weights).as_posix() for path in weights.rglob("*") if path.is_file())
    digest = Manifest([local.entry(name, local.uri(name)) for name in names]).digest
    folder = store.uri("models", model_name, digest)
    if not store.exists(f"{folder}.json"):
        store.put_folder(weights, folder)
    manifest = Manifest([store.entry(name, f"{folder}/{name}") for name in names])
    if manifest.digest != digest:
        raise ValueError(
            f"{folder} does not hold what {weights} holds: a file there was altered. Delete that folder and promote again"
        )
    with tempfile.TemporaryDirectory() as scratch:
        manifest.save(Path(scratch) / "manifest.json")
        store.write(f"{folder}.json", (Path(scratch) / "manifest.json").read_bytes())
    return folder, manifest


def absolute_backbones(backbones: Mapping[str, str]) -> dict[str, str]:
    """Folders of backbones as absolute paths, URIs as they are: a version is loaded from other folders than it was made in."""
    return {name: uri if is_remote(uri) else str(Path(uri).absolute()) for name, uri in backbones.items()}


def stored_manifest(recipe: Recipe) -> Manifest:
    """The verified manifest of registered weights: every file is read and compared.

    Raises:
        ValueError: the manifest or a file is gone or differs.
    """
    folder, digest = recipe.weights, recipe.digest
    store = Store(folder.rsplit("/", 1)[0])
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "manifest.json"
        try:
            local.write_bytes(store.read(f"{folder}.json"))
        except FileNotFoundError as error:
            raise ValueError(
                f"{folder}.json is gone, so the registered weights cannot be checked; promote the model again"
            ) from error
        manifest = Manifest.load(local)
    if manifest.digest != digest:
        raise ValueError(
            f"{folder}.json has digest {manifest.digest[:12]}, but {digest[:12]} was registered; promote the model again"
        )
    manifest.verify()
    return manifest


def register(tracker: Tracker, recipe: Recipe, tags: Mapping[str, str]) -> int:
    """The number of the version that holds these weights: an existing one (its tags are brought up to date), or a new one."""
    from mlflow.exceptions import MlflowException

    client = connect(tracker.tracking_uri)
    model, digest = recipe.model, recipe.digest
    tags = {**tags, WEIGHTS_DIGEST: digest, RECIPE: json.dumps(asdict(recipe))}
    found = client.search_model_versions(f"name = '{model}' and tags.`{WEIGHTS_DIGEST}` = '{digest}'")
    if found:
        number = min(int(version.version) for version in found)
        for key, value in tags.items():
            client.set_model_version_tag(model, str(number), key, value)
        return number
    with suppress(MlflowException):  # it exists already
        client.create_registered_model(model)
    source, model_id = _log_recipe(tracker, recipe)
    made = client.create_model_version(model, source=source, run_id=tracker.run_id, tags=dict(tags), model_id=model_id)
    return int(made.version)


def _log_recipe(tracker: Tracker, recipe: Recipe) -> tuple[str, str | None]:
    """Logs the model-from-code with its recipe under the run; returns the model's URI and id. A few kilobytes whatever the model's size."""
    from importlib.metadata import version

    import mlflow

    requirements = [f"{name}=={version(name).split('+')[0]}" for name in LIBRARIES]
    mlflow.set_tracking_uri(tracker.tracking_uri)
    with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=tracker.run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for an example input, which would load and run the model
        path = Path(scratch) / "recipe.json"
        path.write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
        info = mlflow.pyfunc.log_model(
            name=recipe.model,
            python_model=str(PYFUNC),
            artifacts={"recipe": str(path)},
            signature=_signature(),
            pip_requirements=requirements,
        )
    return info.model_uri, info.model_id


def _signature() -> object:
    """In: an image (bytes in process; base64, a data URL or a path as text) and a prompt. Out: text, and a list of boxes."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from mgpt.serving.predictor import BATCH_SIZE, MOST_NEW_TOKENS

    # A parameter that the signature does not name never reaches the model.
    limits = {"max_new_tokens": MOST_NEW_TOKENS, "batch_size": BATCH_SIZE}
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(DataType.string, "prompt")]),
        outputs=Schema([ColSpec(DataType.string, "text"), ColSpec(AnyType(), "boxes")]),
        params=ParamSchema([ParamSpec(name, DataType.long, default) for name, default in limits.items()]),
    )


def versions(client: MlflowClient, model: str) -> list[Version]:
    """Every version of a model, oldest first, with its aliases.

    `search_model_versions` gives no aliases on SQL stores, so they are joined from the registered model. An unknown model has no versions.
    """
    from mlflow.exceptions import MlflowException

    try:
        aliases = dict(client.get_registered_model(model).aliases)
    except MlflowException:
        return []
    found: list[ModelVersion] = list(client.search_model_versions(f"name = '{model}'"))
    joined = [
        Version(model, int(item.version), _aliases_of(item, aliases), item.tags, item.creation_timestamp)
        for item in found
    ]
    return sorted(joined, key=lambda version: version.number)


def _aliases_of(version: ModelVersion, aliases: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(sorted(name for name, number in aliases.items() if int(number) == int(version.version)))


def champion(client: MlflowClient, model: str) -> Version | None:
    """The version that carries the alias `champion`."""
    return next((version for version in versions(client, model) if CHAMPION in version.aliases), None)


def models(client: MlflowClient) -> list[Version]:
    """Every version of every registered model, by name and number."""
    names = sorted(model.name for model in client.search_registered_models(max_results=1000))
    return [version for name in names for version in versions(client, name)]


def find(tracking_uri: str, reference: str) -> Version:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/NUMBER` names.

    Raises:
        ValueError: the reference has another form, or there is no such version; the message lists what there is.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(f"{reference!r} names no registered model; write models:/NAME@champion or models:/NAME/NUMBER")
    known = versions(connect(tracking_uri), match["name"])
    wanted = [
        version for version in known if match["alias"] in version.aliases or str(version.number) == match["number"]
    ]
    if not wanted:
        there = ", ".join(f"{version.number} ({' '.join(version.aliases) or 'no alias'})" for version in known)
        raise ValueError(
            f"{reference}: no such version in {tracking_uri}; there is {there or 'none, run the promote stage'}"
        )
    return wanted[0]
