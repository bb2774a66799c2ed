"""Rules over several sections: names that one section defines and another uses, and addresses that must be reachable.

Without them a wrong name would be found when its stage starts, after the stages before it have finished. A name counts
as defined when the file has its key, even where something below that key is wrong: one error is reported once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

from mgpt.config.issues import ConfigIssue, KeyPath
from mgpt.config.params_file import ParamsFile
from mgpt.config.settings import Settings

DESCRIBED = "described"  # the dataset that the describe stage writes
DESCRIBE_MODEL = "minigpt4"  # the model whose pretrained weights the describe stage uses
TRAINING_STAGES = ("pretrain", "multitask", "instruct")  # in their order
_BACKBONES = ("vision", "language", "qformer")
_LOCAL_SERVERS = ("http://127.0.0.1", "http://localhost", "https://localhost")
Issues: TypeAlias = Iterator[ConfigIssue]


def cross_section_issues(settings: Settings, params: ParamsFile, in_job: bool) -> list[ConfigIssue]:
    """Returns every broken rule.

    Args:
        settings: what is valid in the file.
        params: the file, wrong values included.
        in_job: skips local sources, which are on the machine of the job's client.
    """
    checks = [_models, _backbones, _mixtures, _datasets, _checkpoints, _stage_order, _cluster, _sharding]
    found = [issue for check in checks for issue in check(settings, params)]
    return found if in_job else [*_sources(settings, params), *found]


def unknown_name(path: KeyPath, value: object, rule: str, known: Iterable[str]) -> ConfigIssue:
    """Returns the issue of a name that is not among the known ones.

    The name is `value`, or the last part of `path` where it is a key.
    """
    names = sorted(known)
    close = [*difflib.get_close_matches(str(value), names), *difflib.get_close_matches(str(path[-1]), names)]
    fix = f"did you mean {' or '.join(dict.fromkeys(close))}?" if close else f"use one of {', '.join(names) or 'none'}"
    return ConfigIssue(path, value, rule, fix)


def _dataset_names(params: ParamsFile) -> set[str]:
    return params.names("sources", "*", "datasets", "*")


def _sources(settings: Settings, params: ParamsFile) -> Issues:
    """There is a source, and one all of whose locations are local has a location that exists."""
    if not params.names("sources", "*"):
        yield ConfigIssue(("sources",), None, "at least one source", "add sources; see docs/own-data.md", absent=True)
    for name, source in settings.sources.items():
        local = [Path(location).expanduser() for location in source.locations if "://" not in location]
        if local and len(local) == len(source.locations) and not any(path.exists() for path in local):
            fix = f"create {local[0].absolute()}, or correct the path"
            path = ("sources", name, "locations")
            yield ConfigIssue(path, ", ".join(source.locations), "the file or folder must exist", fix)


def _models(settings: Settings, params: ParamsFile) -> Issues:
    known = params.names("models", "*")
    for stage in (*TRAINING_STAGES, "evaluate", "promote"):
        for name in sorted(params.names(stage, "*") - known):
            rule = "a model of the section models"
            fix = f"add models.{name}, or remove this section; models: {', '.join(sorted(known)) or 'none'}"
            yield ConfigIssue((stage, name), "...", rule, fix)


def _backbones(_: Settings, params: ParamsFile) -> Issues:
    known = params.names("sources", "*")
    for part in _BACKBONES:
        for path, backbone in params.select("models", "*", part):
            if isinstance(backbone, str) and backbone.partition("/")[0] not in known:
                yield unknown_name(path, backbone, "SOURCE/FOLDER, with SOURCE one of sources", known)


def _mixtures(_: Settings, params: ParamsFile) -> Issues:
    for stage in TRAINING_STAGES:
        known = _dataset_names(params)
        if stage == "instruct" and "describe" in params.values:
            known.add(DESCRIBED)
        for path, weight in params.select(stage, "*", "mixture", "*"):
            if path[-1] not in known:
                yield unknown_name(path, weight, "a dataset of sources.*.datasets", known)


def _datasets(_: Settings, params: ParamsFile) -> Issues:
    known = _dataset_names(params)
    for pattern in (("describe", "datasets", "*"), ("evaluate", "*", "datasets", "*")):
        for path, name in params.select(*pattern):
            if name not in known:
                yield unknown_name(path, name, "a dataset of sources.*.datasets", known)


def _checkpoints(_: Settings, params: ParamsFile) -> Issues:
    for path, name in params.select("evaluate", "*", "checkpoints", "*"):
        model_name = path[1]
        known = ["untrained", *(stage for stage in TRAINING_STAGES if model_name in params.names(stage, "*"))]
        if name in TRAINING_STAGES and name not in known:
            yield unknown_name(path, name, f"untrained, or a stage that trains {model_name}", known)


def _stage_order(_: Settings, params: ParamsFile) -> Issues:
    """Every stage has the stage whose result it starts from."""
    trained = {stage: params.names(stage, "*") for stage in TRAINING_STAGES}
    needed = [("multitask", name, "pretrain", trained["pretrain"]) for name in trained["multitask"]]
    before = trained["pretrain"] | trained["multitask"]
    needed += [("instruct", name, "pretrain", before) for name in trained["instruct"]]
    needed += [("promote", name, "evaluate", params.names("evaluate", "*")) for name in params.names("promote", "*")]
    for stage, name, origin, known in sorted(needed, key=lambda row: row[:2]):
        if name not in known:
            rule = f"{stage} uses the result of {origin}.{name}, which is absent"
            yield ConfigIssue((stage, name), "...", rule, f"add {origin}.{name}, or remove this section")
    if params.values.get("describe") is not None and DESCRIBE_MODEL not in trained["pretrain"]:
        rule = f"describe uses the weights of pretrain.{DESCRIBE_MODEL}, which is absent"
        yield ConfigIssue(("describe",), "...", rule, f"add pretrain.{DESCRIBE_MODEL}, or remove this section")


def _cluster(settings: Settings, _: ParamsFile) -> Issues:
    """A job on another machine cannot write to this machine's disk; a cluster on this machine can."""
    if not settings.cluster.address or settings.cluster.address.startswith(_LOCAL_SERVERS):
        return
    root, uri = settings.storage.root, settings.tracking.uri
    if "://" not in root:
        rule = "a remote cluster cannot reach a folder of this machine"
        yield ConfigIssue(("storage", "root"), root, rule, "use s3://bucket/prefix, or an empty cluster.address")
    if uri.startswith("sqlite"):
        rule = "a remote cluster cannot reach a database file of this machine"
        fix = "use the http(s) address of an MLflow server, or an empty cluster.address"
        yield ConfigIssue(("tracking", "uri"), uri, rule, fix)


def _sharding(settings: Settings, _: ParamsFile) -> Issues:
    """Quantized weights are packed, so FSDP cannot shard them."""
    for name, model in settings.models.items():
        if settings.cluster.training.parallelism == "fsdp" and model.quantization:
            rule = f"data_parallel where a language model is quantized, as models.{name} is ({model.quantization})"
            fix = f"set it to data_parallel, or models.{name}.quantization to null"
            yield ConfigIssue(("cluster", "training", "parallelism"), "fsdp", rule, fix)
