"""The stages of the pipeline as the params file gives them: what each reads, declares and writes.

This is the one place that says so. `dvc.yaml` is generated from it (`mgpt.pipeline.dvc_yaml`), the fingerprint is made
of it, the runner checks outputs by it, and preflight finds the files behind its inputs. A section or a model that the
params file does not have is no stage; what an `instruct` or `evaluate` stage starts from follows from the training
stages that the model has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from mgpt.config import Settings, section
from mgpt.storage import Entry, Manifest
from mgpt.storage.hashing import content_digest
from mgpt.storage.names import (
    CURVE_FILE,
    DESCRIBED,
    DESCRIBING_MODEL,
    MANIFEST_FILE,
    METRICS_FILE,
    RESULTS,
    RUN_FILE,
    STAGES,
    SUMMARY_FILE,
    TIMING_FILE,
    TRAINING_STAGES,
    UNTRAINED,
    WEIGHTS,
    stage_name,
)

DATA_FILE = "data.json"  # of promote: the curated files that a model was trained and evaluated on


@dataclass(frozen=True)
class Selection:
    """The entries of a manifest that a stage uses, by their meta; an empty field selects all.

    `sources` and `datasets` are names; `folders` are `SOURCE/FOLDER` of backbones.
    """

    datasets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()

    def __str__(self) -> str:
        fields = (("datasets", self.datasets), ("splits", self.splits), ("sources", self.sources), ("", self.folders))
        return ", ".join(f"{name} {', '.join(names)}".strip() for name, names in fields if names)

    def of(self, entries: list[Entry]) -> list[Entry]:
        """Returns the selected entries."""
        fields = (("dataset", self.datasets), ("split", self.splits), ("source", self.sources))
        found = [entry for entry in entries if all(not names or entry.meta.get(key) in names for key, names in fields)]
        if not self.folders:
            return found
        # Of a source with archives all files count: it is not known here what an archive holds.
        packed = {entry.meta.get("source") for entry in entries if entry.meta.get("unpack")}
        whole = {folder.partition("/")[0] for folder in self.folders} & packed
        below = tuple(f"{folder}/" for folder in self.folders)
        return [entry for entry in found if entry.name.startswith(below) or entry.meta.get("source") in whole]


@dataclass(frozen=True)
class Input:
    """A result of an earlier stage: a file or folder, `path` from the project's folder; of a manifest the selected
    entries.
    """

    path: str
    selections: tuple[Selection, ...] = ()

    @property
    def is_manifest(self) -> bool:
        """True where it lists files of the store."""
        return self.path.endswith(f"/{MANIFEST_FILE}")

    @property
    def holds_backbones(self) -> bool:
        """True where it lists the backbones of a model."""
        return any(selection.folders for selection in self.selections)

    def entries(self, project: Path) -> list[Entry]:
        """Returns the selected entries of a manifest; nothing for another input.

        Raises ValueError that lists what there is where the manifest has nothing of a selection.
        """
        if not self.is_manifest:
            return []
        entries = Manifest.load(project / self.path).entries
        selected = {entry.name for one in self.selections for entry in one.of(entries)}
        if not selected:
            have = {
                f"{entry.meta.get('dataset', entry.meta.get('source'))}/{entry.meta.get('split', '')}"
                for entry in entries
            }
            wanted = "; ".join(map(str, self.selections))
            raise ValueError(f"{self.path} has nothing of {wanted}; it has {', '.join(sorted(have)) or 'nothing'}")
        return [entry for entry in entries if entry.name in selected]

    def manifest(self, project: Path) -> Manifest:
        """Returns the manifest of the selected entries."""
        return Manifest(self.entries(project))

    def digest(self, project: Path) -> str:
        """Returns the digest of the content: of a manifest by what it lists, wherever that lies."""
        return self.manifest(project).digest if self.is_manifest else content_digest(project / self.path)


@dataclass(frozen=True)
class Stage:
    """One stage. `params` are the dotted keys that it may read; `outputs` are names in its folder of results."""

    stage: str
    model_name: str | None
    params: tuple[str, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    plots: tuple[tuple[str, str, str], ...] = ()  # file, x, y

    @property
    def name(self) -> str:
        """DVC's name: `curate`, or `pretrain@minigpt4`."""
        return stage_name(self.stage, self.model_name)

    @property
    def folder(self) -> str:
        """The folder of its results, from the project's folder."""
        return "/".join(filter(None, [RESULTS, self.stage, self.model_name]))

    @property
    def command(self) -> str:
        """The command that runs it."""
        return " ".join(filter(None, ["python -m flows", self.stage, self.model_name]))

    @property
    def written(self) -> tuple[str, ...]:
        """Every file and folder that the stage leaves in its folder."""
        return (*self.outputs, *self.metrics, *(file for file, _, _ in self.plots))

    def input(self, stage: str) -> Input:
        """Returns the input that a stage made; there is at most one of each stage and kind."""
        return next(one for one in self.inputs if one.path.startswith(f"{RESULTS}/{stage}/"))


def pipeline_stages(settings: Settings) -> list[Stage]:
    """Returns every stage of the settings, in the order of the pipeline."""
    return [stage for name in STAGES for stage in _BUILDERS[name](settings)]


def find_stage(settings: Settings, stage: str, model_name: str | None) -> Stage:
    """Returns one stage. Raises ValueError that lists the stages there are."""
    known = pipeline_stages(settings)
    for one in known:
        if (one.stage, one.model_name) == (stage, model_name):
            return one
    names = ", ".join(one.name for one in known)
    raise ValueError(f"the params file has no stage {stage_name(stage, model_name)}; it has {names}")


def models_of(settings: Settings, stage: str) -> list[str]:
    """Returns the models that a stage's section names; none where the section is absent."""
    content = getattr(settings, stage)
    return list(content.model_dump(by_alias=True) if isinstance(content, BaseModel) else content or {})


def trained_stages(settings: Settings, model_name: str) -> list[str]:
    """Returns the training stages of a model, in their order."""
    return [stage for stage in TRAINING_STAGES if model_name in models_of(settings, stage)]


def stage_before(settings: Settings, stage: str, model_name: str) -> str | None:
    """Returns the training stage whose weights a training stage starts from; None for a newly initialised model."""
    before = TRAINING_STAGES[: TRAINING_STAGES.index(stage)]
    return next((one for one in reversed(before) if model_name in models_of(settings, one)), None)


def has_describe(settings: Settings) -> bool:
    """Returns True where there is a model that describes, and a section that says how."""
    given = "describe" in settings.model_fields_set and settings.describe is not None
    return given and DESCRIBING_MODEL in models_of(settings, "pretrain")


def _download(_: Settings) -> Iterator[Stage]:
    outputs = (MANIFEST_FILE, "items.jsonl", *_RECORDS)
    yield Stage("download", None, ("sources", "download"), (), outputs, (METRICS_FILE,))


def _curate(settings: Settings) -> Iterator[Stage]:
    sources = tuple(name for name, source in settings.sources.items() if source.datasets)
    inputs = (Input(_DOWNLOADED, (Selection(sources=sources),)),)
    outputs = (MANIFEST_FILE, "quarantine.json", "card.html", *_RECORDS)
    yield Stage("curate", None, ("sources", "curate"), inputs, outputs, (METRICS_FILE,))


def _train(stage: str) -> Callable[[Settings], Iterator[Stage]]:
    def stages(settings: Settings) -> Iterator[Stage]:
        for model_name in models_of(settings, stage):
            before = stage_before(settings, stage, model_name)
            start = [Input(f"{RESULTS}/{before}/{model_name}/{WEIGHTS}")] if before else []
            inputs = (_backbones(settings, model_name), *_mixed(settings, stage, model_name), *start)
            params = (f"models.{model_name}", f"{stage}.{model_name}")
            curve = ((CURVE_FILE, "step", "loss"),)
            yield Stage(stage, model_name, params, inputs, (WEIGHTS, *_RECORDS), (METRICS_FILE,), curve)

    return stages


def _describe(settings: Settings) -> Iterator[Stage]:
    if not has_describe(settings):
        return
    selection = Selection(tuple(section(settings, "describe").datasets), ("train",))
    inputs = (
        _backbones(settings, DESCRIBING_MODEL),
        Input(_CURATED, (selection,)),
        Input(f"{RESULTS}/pretrain/{DESCRIBING_MODEL}/{WEIGHTS}"),
    )
    outputs = (MANIFEST_FILE, "review.csv", "report.md", *_RECORDS)
    params = (f"models.{DESCRIBING_MODEL}", "describe")
    yield Stage("describe", None, params, inputs, outputs, (METRICS_FILE,))


def _evaluate(settings: Settings) -> Iterator[Stage]:
    for model_name in models_of(settings, "evaluate"):
        evaluated = section(settings, "evaluate", model_name)
        checkpoints = [name for name in evaluated.checkpoints if name != UNTRAINED]
        weights = [Input(f"{RESULTS}/{name}/{model_name}/{WEIGHTS}") for name in checkpoints]
        data = Input(_CURATED, (_evaluated(settings, model_name),))
        gallery = ("images.png",) if evaluated.images else ()
        outputs = ("predictions.parquet", "slices.json", "scores.txt", "scores.md", *gallery, *_RECORDS)
        yield Stage(
            "evaluate",
            model_name,
            (f"models.{model_name}", f"evaluate.{model_name}"),
            (_backbones(settings, model_name), data, *weights),
            outputs,
            (METRICS_FILE,),
            (("scores.csv", "checkpoint", "value"),),
        )


def _promote(settings: Settings) -> Iterator[Stage]:
    for model_name in models_of(settings, "promote"):
        trained = trained_stages(settings, model_name)
        mixed = {name for stage in trained for name in section(settings, stage, model_name).mixture} - {DESCRIBED}
        used = [Selection(tuple(sorted(mixed)), ("train",))] if mixed else []
        if model_name in models_of(settings, "evaluate"):
            used.append(_evaluated(settings, model_name))
        inputs = [_backbones(settings, model_name), Input(_CURATED, tuple(used))]
        inputs += [Input(f"{RESULTS}/{trained[-1]}/{model_name}/{WEIGHTS}")] if trained else []
        inputs.append(Input(f"{RESULTS}/evaluate/{model_name}/{METRICS_FILE}"))
        params = (f"models.{model_name}", f"promote.{model_name}")
        yield Stage("promote", model_name, params, tuple(inputs), ("decision.json", DATA_FILE, *_RECORDS))


def _backbones(settings: Settings, model_name: str) -> Input:
    folders = tuple(folder for folder in settings.models[model_name].backbones.values() if folder)
    return Input(_DOWNLOADED, (Selection(folders=folders),))


def _mixed(settings: Settings, stage: str, model_name: str) -> list[Input]:
    """The datasets of a training stage's mixture: curated ones, and what the describe stage wrote."""
    mixture = section(settings, stage, model_name).mixture
    curated = tuple(name for name in mixture if name != DESCRIBED)
    inputs = [Input(_CURATED, (Selection(curated, ("train",)),))] if curated else []
    return inputs + ([Input(_WRITTEN, (Selection((DESCRIBED,), ("train",)),))] if DESCRIBED in mixture else [])


def _evaluated(settings: Settings, model_name: str) -> Selection:
    evaluated = section(settings, "evaluate", model_name)
    return Selection(tuple(evaluated.datasets), tuple(evaluated.splits))


_RECORDS = (RUN_FILE, TIMING_FILE, SUMMARY_FILE)  # what the runner writes of every stage
_DOWNLOADED, _CURATED = f"{RESULTS}/download/{MANIFEST_FILE}", f"{RESULTS}/curate/{MANIFEST_FILE}"
_WRITTEN = f"{RESULTS}/describe/{MANIFEST_FILE}"
_BUILDERS: dict[str, Callable[[Settings], Iterator[Stage]]] = {
    "download": _download,
    "curate": _curate,
    **{stage: _train(stage) for stage in TRAINING_STAGES},
    "describe": _describe,
    "evaluate": _evaluate,
    "promote": _promote,
}
