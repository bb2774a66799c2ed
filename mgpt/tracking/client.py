"""Connects to an MLflow store: absolute addresses, short retries, experiments created on first use.

Importing `mlflow` takes 1.4 s, so nothing here or in `runs` imports it before it is needed.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt.config.registry import SERVERS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

SQLITE = "sqlite:///"
# With MLflow's own defaults a call to a server that is down blocks for more than 100 s. Here AsyncLogger does the
# retries.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
NOISY = ("mlflow.store.db.utils", "alembic")  # log every migration of a new database


def absolute_uri(uri: str, project: Path) -> str:
    """Returns the store's address with a relative SQLite path made absolute.

    Ray workers and jobs run in other folders, where a relative path would silently open a second, empty store.
    """
    if not uri.startswith(SQLITE) or uri.startswith(SQLITE + "/"):
        return uri
    return f"{SQLITE}{(project / uri.removeprefix(SQLITE)).resolve()}"


def connect(tracking_uri: str) -> MlflowClient:
    """Returns a client that gives up on an unreachable server within seconds, unless the environment's MLFLOW_* values
    differ."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def mlflow_error() -> type[MlflowException]:
    """Returns the class of MLflow's errors, for `except` in modules that do not import mlflow."""
    from mlflow.exceptions import MlflowException

    return MlflowException


def experiment_id(client: MlflowClient, tracking_uri: str, name: str, artifacts: str | None) -> str:
    """Returns the id of an experiment, which is created if missing.

    Args:
        artifacts: folder or `s3://` prefix for artifacts; ignored with a server, which stores its artifacts itself.
    """
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None if tracking_uri.startswith(SERVERS) else artifacts
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except mlflow_error():
        # Another process may have created it between the two calls.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)
