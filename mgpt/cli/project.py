"""The project that a command runs in: the current folder, its settings, store and tracking server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mgpt.storage import Store

PARAMS = Path("params.yaml")


def project_folder() -> Path:
    """Returns the current folder. Raises ValueError where it is not a project's."""
    folder = Path.cwd()
    if not (folder / PARAMS).is_file():
        raise ValueError(f"no {PARAMS} here ({folder}); run mgpt in a project's folder, which has params.yaml")
    return folder


def project_store() -> Store:
    """Returns the store of `storage.root`."""
    from mgpt.config import load_settings
    from mgpt.storage import Store

    return Store(load_settings(PARAMS).storage.root)


def tracking_uri() -> str:
    """Returns the address of `tracking.uri`, a relative SQLite path made absolute."""
    from mgpt.config import load_settings
    from mgpt.tracking.client import absolute_uri

    return absolute_uri(load_settings(PARAMS).tracking.uri, Path.cwd())


@contextmanager
def tracking_errors() -> Iterator[None]:
    """Turns an error of the tracking server's into a ValueError that says what to check."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise ValueError(
            f"tracking.uri: the MLflow store cannot be used ({error.message}); run `mgpt check`"
        ) from error
