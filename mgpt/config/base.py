"""What every section of the settings shares: the base class, and how a cross-field rule reports a mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A frozen section of the params file: unknown keys are refused, defaults are validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, populate_by_name=True)


def mistake(rule: str, fix: str, key: str = "") -> PydanticCustomError:
    """The error that a validator raises: which rule is broken and how to mend it. `key` names the guilty key below the validated
    section.
    """
    return PydanticCustomError("mistake", "{rule}", {"rule": rule, "fix": fix, "key": key})


def _exists(path: str) -> str:
    if path and "://" not in path and not Path(path).expanduser().exists():
        raise mistake(
            "the file or folder must exist", f"create {Path(path).expanduser().absolute()} or correct the path"
        )
    return path


# A local path that must exist (relative to the project's root), or a URI, which is not looked at before its stage runs. Empty means none.
ExistingPath: TypeAlias = Annotated[str, AfterValidator(_exists)]
