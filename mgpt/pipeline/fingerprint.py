"""One fingerprint a piece of work: hash(stage, declared params, digests of the inputs it uses, code that can change its
result).

It names the Ray run, the Ray job, the MLflow run and the checkpoint folder, so that equal work is found again and
changed work starts from scratch. It changes when a result can change, and only then: see `stages` for the inputs,
`code` for the code.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mgpt.config import Settings
from mgpt.config.restricted_view import child
from mgpt.pipeline.code import CodeBase
from mgpt.pipeline.stages import Stage, pipeline_stages
from mgpt.storage.hashing import content_digest, sha256_json
from mgpt.storage.names import DATA_STAGES, RUN_FILE

_LENGTH = 16  # hexadecimal digits of a fingerprint: 64 bits, and short enough to read
# Params that name a file: it counts by content. `*` stands for every key.
FILE_PARAMS = ("describe.filters.vocabulary", "describe.review", "evaluate.*.vocabulary")
# Of each source, what changes what is downloaded, or what is made of it.
_READ_BY_CURATE = ("kind", "licence", "datasets")
_PACKAGE = "package://"


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of a project's stages as its files are now. Digests are computed once."""

    project: Path
    settings: Settings
    code: CodeBase
    _known: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, project: Path, settings: Settings) -> Fingerprints:
        """Returns those of a project whose code is the code that this Python imports."""
        return cls(project, settings, CodeBase.installed())

    def fingerprint(self, stage: Stage) -> str:
        """Returns the fingerprint of a stage's work.

        Raises ValueError where an input is missing, or a param names nothing.
        """
        if stage.name not in self._known:
            self._known[stage.name] = self._compute(stage)
        return self._known[stage.name]

    def _compute(self, stage: Stage) -> str:
        content = {
            "stage": [stage.stage, stage.model_name],
            "params": param_values(stage, self.settings),
            "inputs": input_digests(self.project, stage),
            "files": self.file_digests(stage),
            "code": self.code.digest(stage.stage),
        }
        return sha256_json(content)[:_LENGTH]

    def changed_before(self, stage: Stage) -> list[str]:
        """Returns the names of earlier stages, in order, whose results here are of other work than is declared now.

        A stage that reads what a changed one makes counts as changed. Data stages are the exception: which of the files
        that they list change is known when they have run.
        """
        folders = {one.folder: one for one in self._stages}
        changed: list[str] = []
        for one in self._stages:
            if one.name in self._ancestors(stage, folders):
                record = self.project / one.folder / RUN_FILE
                recorded = json.loads(record.read_text(encoding="utf-8"))["fingerprint"] if record.is_file() else None
                behind = set(changed).difference(DATA_STAGES) & self._ancestors(one, folders)
                if behind or recorded != self.fingerprint(one):
                    changed.append(one.name)
        return changed

    def file_digests(self, stage: Stage) -> dict[str, str]:
        """Returns the digests of the files that a stage's params name, and of local folders that `download` reads."""
        named = {key: self._named_file(value) for key, value in _file_params(param_values(stage, self.settings))}
        if stage.stage == "download":
            named |= {f"sources.{name} {location}": path for name, location, path in self._local_sources()}
        return {key: content_digest(path) for key, path in sorted(named.items()) if path.exists()}

    @cached_property
    def _stages(self) -> list[Stage]:
        return pipeline_stages(self.settings)

    def _ancestors(self, stage: Stage, folders: dict[str, Stage]) -> set[str]:
        before = [folders[folder] for one in stage.inputs if (folder := one.path.rpartition("/")[0]) in folders]
        return {one.name for one in before}.union(*(self._ancestors(one, folders) for one in before))

    def _named_file(self, value: str) -> Path:
        """Returns the file of a vocabulary that ships, or the path of a user's own."""
        shipped = self.code.roots["mgpt"] / "data" / "vocabularies" / f"{value}.yaml"
        return shipped if shipped.is_file() else self.project / Path(value).expanduser()

    def _local_sources(self) -> Iterator[tuple[str, str, Path]]:
        for name, source in self.settings.sources.items():
            for location in source.locations:
                if location.startswith(_PACKAGE):
                    package, *rest = location.removeprefix(_PACKAGE).split("/")
                    if package in self.code.roots:
                        yield name, location, self.code.roots[package].joinpath(*rest)
                elif "://" not in location:
                    yield name, location, self.project / Path(location).expanduser()


def param_values(stage: Stage, settings: Settings) -> dict[str, Any]:
    """Returns the values of the declared params as plain JSON values by dotted key, defaults included.

    Of `sources` each stage has the part that it reads: a further mirror does not repeat curation, a further dataset no
    download.
    """
    values = {key: _value(settings, key, stage.name) for key in stage.params}
    if "sources" in values:
        values["sources"] = _read_sources(stage.stage, values["sources"])
    return values


def input_digests(project: Path, stage: Stage) -> dict[str, str]:
    """Returns the digest of each input by path. Raises ValueError that names the stage to run where one is missing."""
    for one in stage.inputs:
        if not (project / one.path).exists():
            raise ValueError(
                f"{stage.name} needs {one.path}, which is not there; run `dvc repro {stage.name}`, which makes it first"
            )
    return {one.path: one.digest(project) for one in stage.inputs}


def _read_sources(stage: str, sources: dict[str, Any]) -> dict[str, Any]:
    if stage == "curate":
        with_data = {name: source for name, source in sources.items() if source["datasets"]}
        return {name: {key: source[key] for key in _READ_BY_CURATE} for name, source in with_data.items()}
    return {name: {key: one for key, one in source.items() if key != "datasets"} for name, source in sources.items()}


def _file_params(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the dotted key and the value of every file that params name."""
    for key, value in _flat(values):
        if value and any(fnmatch.fnmatchcase(key, pattern) for pattern in FILE_PARAMS):
            yield key, str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(settings: Settings, dotted: str, stage: str) -> Any:
    value: Any = settings
    for part in dotted.split("."):
        try:
            value = child(value, part)
        except (KeyError, TypeError) as error:
            raise ValueError(f"params.yaml has no {dotted}, which {stage} reads; add it") from error
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
