"""Rules over several sections of the settings: names that one section gives and another uses, and places that must be reachable.

A wrong name would otherwise be found out only when its stage starts, after the stages before it have worked. Names count as given when
the file gives them, even where something else below them is wrong: one mistake is not told twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from mgpt.config.loader import Mistake

if TYPE_CHECKING:
    from mgpt.config import Settings
    from mgpt.config.evaluation import ModelEvaluationSettings

DESCRIBED = "described"  # the dataset that the describe stage makes
_TRAININGS = ("pretrain", "multitask", "instruct")
_PARTS = ("vision", "language", "qformer")
Found: TypeAlias = Iterator[Mistake]


@dataclass(frozen=True)
class Given:
    """The names that the params file gives to others, from its plain content."""

    content: Any

    def below(self, *path: str) -> set[str]:
        """The keys that stand below a path; `*` stands for every key."""
        places = [self.content]
        for part in path:
            maps = [place for place in places if isinstance(place, dict)]
            places = [value for place in maps for key, value in place.items() if part in ("*", key)]
        return {str(key) for place in places if isinstance(place, dict) for key in place}

    @property
    def datasets(self) -> set[str]:
        """What curation can make."""
        return self.below("sources", "*", "datasets")


def mistakes_between_sections(settings: Settings, content: Any, in_job: bool) -> list[Mistake]:
    """All of them.

    Args:
        content: the params file as plain values, before anything wrong was dropped from it.
        in_job: a job does not look for local sources: they lie where its client runs.
    """
    given, checks = (
        Given(content),
        [_models, _backbones, _mixtures, _datasets, _checkpoints, _gates, _cluster, _sharding],
    )
    return [one for check in checks + ([] if in_job else [_sources]) for one in check(settings, given)]


def _unknown(key: str, value: object, rule: str, known: Iterable[str]) -> Mistake:
    return Mistake(key, value, rule, f"correct the name, or add it; there are: {', '.join(sorted(known)) or 'none'}")


def _sources(settings: Settings, _: Given) -> Found:
    """A source all of whose places are folders of this machine needs one that is there."""
    for name, source in settings.sources.items():
        local = [place for place in source.locations if "://" not in place]
        if (
            local
            and len(local) == len(source.locations)
            and not any(Path(place).expanduser().exists() for place in local)
        ):
            fix = f"create {Path(local[0]).expanduser().absolute()} or correct the path"
            yield Mistake(f"sources.{name}.locations", ", ".join(local), "a local file or folder must exist", fix)


def _models(settings: Settings, given: Given) -> Found:
    for stage in (*_TRAININGS, "promote"):
        for model_name in getattr(settings, stage):
            if model_name not in given.below("models"):
                fix = f"add models.{model_name}, or remove this section; models: {', '.join(settings.models)}"
                yield Mistake(f"{stage}.{model_name}", "...", "a model that is trained or promoted has a model", fix)


def _backbones(settings: Settings, given: Given) -> Found:
    for model_name, model in settings.models.items():
        for part in _PARTS:
            base = getattr(model, part)
            if base is not None and base.partition("/")[0] not in given.below("sources"):
                yield _unknown(
                    f"models.{model_name}.{part}",
                    base,
                    "SOURCE/FOLDER, with SOURCE one of sources",
                    given.below("sources"),
                )


def _mixtures(settings: Settings, given: Given) -> Found:
    for stage in _TRAININGS:
        allowed = given.datasets | ({DESCRIBED} if stage == "instruct" else set())
        for model_name, training in getattr(settings, stage).items():
            for name in sorted(set(training.mixture) - allowed):
                yield _unknown(
                    f"{stage}.{model_name}.mixture.{name}", training.mixture[name], "one of sources.*.datasets", allowed
                )


def _datasets(settings: Settings, given: Given) -> Found:
    named = {"describe": settings.describe.datasets} | {
        f"evaluate.{model_name}": of.datasets for model_name, of in _evaluated(settings)
    }
    for section, datasets in named.items():
        for name in sorted(set(datasets) - given.datasets):
            yield _unknown(f"{section}.datasets", name, "one of sources.*.datasets", given.datasets)


def _evaluated(settings: Settings) -> Iterator[tuple[str, ModelEvaluationSettings]]:
    for name, field in type(settings.evaluate).model_fields.items():
        yield field.alias or name, getattr(settings.evaluate, name)


def _checkpoints(settings: Settings, given: Given) -> Found:
    """What is judged must have been trained."""
    for model_name, judged in _evaluated(settings):
        trained = {"untrained", *(stage for stage in _TRAININGS if model_name in given.below(stage))}
        for name in [one for one in judged.checkpoints if one not in trained]:
            yield _unknown(
                f"evaluate.{model_name}.checkpoints", name, f"untrained, or a stage that trains {model_name}", trained
            )


def _gates(settings: Settings, given: Given) -> Found:
    """A metric is named after its task: `refer_accuracy` is measured where evaluate asks `refer`."""
    for model_name, gate in settings.promote.items():
        asked = sorted(given.below("evaluate", model_name, "tasks"))
        for rule, metrics in (("floors", gate.floors), ("ceilings", gate.ceilings), ("compare", gate.compare)):
            for name in metrics:
                if not name.startswith(tuple(f"{task}_" for task in asked)):
                    fix = f"correct the name, or ask its task in evaluate.{model_name}.tasks; asked: {', '.join(asked) or 'none'}"
                    yield Mistake(f"promote.{model_name}.{rule}", name, "a metric of a task that evaluate asks", fix)


def _cluster(settings: Settings, _: Given) -> Found:
    """A job on another machine cannot write to this machine's disk; on this machine it can."""
    local = ("http://127.0.0.1", "http://localhost", "https://localhost")
    if not settings.cluster.address or settings.cluster.address.startswith(local):
        return
    if "://" not in settings.storage.root:
        rule = "a cluster elsewhere cannot reach a folder of this machine"
        yield Mistake(
            "storage.root", settings.storage.root, rule, "use s3://bucket/prefix, or an empty cluster.address"
        )
    if settings.tracking.uri.startswith("sqlite"):
        rule, fix = (
            "a cluster elsewhere cannot reach a database file of this machine",
            "the http(s) address of an MLflow server",
        )
        yield Mistake("tracking.uri", settings.tracking.uri, rule, f"use {fix}, or an empty cluster.address")


def _sharding(settings: Settings, _: Given) -> Found:
    """Quantised weights are packed: FSDP cannot give each worker a share of them."""
    for model_name, model in settings.models.items():
        if settings.cluster.training.parallelism == "fsdp" and model.quantization:
            rule = f"replicated where a language model is quantised, as models.{model_name} is ({model.quantization})"
            yield Mistake(
                "cluster.training.parallelism",
                "fsdp",
                rule,
                f"set it to replicated, or models.{model_name}.quantization to null",
            )
