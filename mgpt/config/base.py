"""Base class of all sections, and the error that a rule over several keys raises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

RULE_ERROR = "rule"  # pydantic's error type of `rule_error`


class Section(BaseModel):
    """A frozen section of the params file. Unknown keys are refused; defaults are validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def rule_error(rule: str, fix: str, key: str = "") -> PydanticCustomError:
    """Returns the error for a validator to raise: the broken rule and its fix.

    `key` is the dotted key at fault below the section, if it is not the section itself.
    """
    return PydanticCustomError(RULE_ERROR, "{rule}", {"rule": rule, "fix": fix, "key": key})


def _check_exists(path: str) -> str:
    if path and "://" not in path and not Path(path).expanduser().exists():
        fix = f"create {Path(path).expanduser().absolute()}, or correct the path"
        raise rule_error("the file or folder must exist", fix)
    return path


# A local path, relative to the project's folder, that must exist, or a URI, which the stage that reads it checks.
# Empty means none.
ExistingPath: TypeAlias = Annotated[str, AfterValidator(_check_exists)]
