"""One fingerprint a piece of work: hash(stage, the params it declared, the digests of its inputs, the code it runs).

It names the Ray run, the Ray job, the MLflow run and the checkpoint folder, so equal work is found again and changed work starts afresh.
What a stage declares stands in dvc.yaml and nowhere else: DVC and the fingerprint read the same lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from mgpt.config import Settings
from mgpt.config.restricted_view import child
from mgpt.storage import Manifest, sha256_file

RESULTS = "results"
_LENGTH = 16  # hexadecimal digits of a fingerprint: 64 bits, and short enough to read
_IGNORED = ("__pycache__", ".pytest_cache")


@dataclass(frozen=True)
class Declaration:
    """What dvc.yaml says of one stage. `name` is DVC's (`pretrain@minigpt-v2`); stage and model are those of its command; `params` are
    dotted keys; `code`, `inputs` and `outputs` are paths from the project's folder.
    """

    name: str
    stage: str
    model_name: str | None
    params: tuple[str, ...]
    code: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Where its results lie, from the project's folder."""
        return f"{RESULTS}/{self.stage}/{self.model_name}" if self.model_name else f"{RESULTS}/{self.stage}"


def declarations(project: Path) -> list[Declaration]:
    """Every stage of the project's dvc.yaml, in the file's order."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = []
    for name, body in stages.items():
        if "foreach" not in body:
            found.append(_declaration(name, body))
            continue
        each = body["foreach"]
        for key, item in each.items() if isinstance(each, dict) else ((one, one) for one in each):
            found.append(_declaration(f"{name}@{key}", _fill(body["do"], key, item)))
    return found


def declaration(project: Path, stage: str, model_name: str | None) -> Declaration:
    """The declaration of one stage. Raises ValueError that lists the stages there are."""
    known = declarations(project)
    for one in known:
        if (one.stage, one.model_name) == (stage, model_name):
            return one
    asked = f"{stage}@{model_name}" if model_name else stage
    raise ValueError(f"dvc.yaml has no stage {asked}; it has {', '.join(one.name for one in known)}")


def identify(project: Path, declared: Declaration, settings: Settings, extra: Mapping[str, str] | None = None) -> str:
    """The fingerprint of a stage's work now.

    Args:
        project: the folder of dvc.yaml.
        declared: what the stage reads.
        settings: values of the declared params are taken from here, so defaults count as if written.
        extra: digests of inputs that dvc.yaml cannot name, such as a folder of a user's own images.

    Raises:
        ValueError: an input is missing, or a declared param names nothing.
    """
    content = {
        "stage": [declared.stage, declared.model_name],
        "params": declared_values(declared, settings),
        "inputs": input_digests(project, declared) | dict(extra or {}),
        "code": {path: digest(project / path) for path in declared.code},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:_LENGTH]


def declared_values(declared: Declaration, settings: Settings) -> dict[str, Any]:
    """The values of the declared params, as plain JSON values by dotted key."""
    return {key: _value(settings, key, declared.name) for key in declared.params}


def input_digests(project: Path, declared: Declaration) -> dict[str, str]:
    """The digest of each input by path. Raises ValueError that names the stage to run where one is missing."""
    digests = {}
    for path in declared.inputs:
        if not (project / path).exists():
            raise ValueError(
                f"{declared.name} needs {path}, which is not there; run `dvc repro {declared.name}`, which makes it first"
            )
        digests[path] = digest(project / path)
    return digests


def digest(path: Path) -> str:
    """The digest of a file's or folder's content. A manifest counts by what it lists, not by where that lies."""
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not set(_IGNORED) & set(file.parts) and file.suffix != ".pyc"
        )
        lines = "\n".join(f"{file.relative_to(path).as_posix()} {digest(file)}" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    return Manifest.load(path).digest if path.name == "manifest.json" else sha256_file(path)


def _declaration(name: str, body: dict[str, Any]) -> Declaration:
    command = body["cmd"].split()
    if command[:3] != ["python", "-m", "flows"] or len(command) not in (4, 5):
        raise ValueError(
            f"dvc.yaml: the command of {name} is {body['cmd']!r}; write `python -m flows STAGE` or `python -m flows STAGE SYSTEM`"
        )
    dependencies = body.get("deps", [])
    outputs = [
        next(iter(one)) if isinstance(one, dict) else one
        for kind in ("outs", "metrics", "plots")
        for one in body.get(kind, [])
    ]
    return Declaration(
        name,
        stage=command[3],
        model_name=command[4] if len(command) == 5 else None,
        params=tuple(body.get("params", [])),
        code=tuple(path for path in dependencies if not path.startswith(f"{RESULTS}/")),
        inputs=tuple(path for path in dependencies if path.startswith(f"{RESULTS}/")),
        outputs=tuple(outputs),
    )


def _fill(template: Any, key: str, item: Any) -> Any:
    """Puts `${key}`, `${item}` and `${item.field}` of a DVC foreach into a stage's body."""
    if isinstance(template, dict):
        return {_fill(name, key, item): _fill(value, key, item) for name, value in template.items()}
    if isinstance(template, list):
        return [_fill(value, key, item) for value in template]
    if isinstance(template, str):
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(_lookup(match.group(1), key, item)), template)
    return template


def _lookup(name: str, key: str, item: Any) -> Any:
    if name == "key":
        return key
    head, *rest = name.split(".")
    if head != "item":
        raise ValueError(f"dvc.yaml: ${{{name}}} is not understood; stages use ${{key}}, ${{item}} and ${{item.field}}")
    for part in rest:
        item = item[part]
    return item


def _value(settings: Settings, dotted: str, stage: str) -> Any:
    value: Any = settings
    for part in dotted.split("."):
        try:
            value = child(value, part)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"params.yaml has no {dotted}, which dvc.yaml declares for {stage}; add it, or correct dvc.yaml"
            ) from error
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
