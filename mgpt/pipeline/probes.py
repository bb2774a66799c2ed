"""Probes of the services that the settings point to: the store, the tracking server and the cluster's job server."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from mgpt.config import ConfigIssue, Settings
from mgpt.config.loader import LoadedSettings
from mgpt.config.registry import SERVERS
from mgpt.storage import Store
from mgpt.tracking.client import SQLITE, absolute_uri

_SECONDS = 10.0  # that a server has to respond


def probe_services(loaded: LoadedSettings) -> LoadedSettings:
    """Adds an issue for every service that does not respond. A service with wrong settings is not probed."""
    probes: dict[str, Callable[[Settings], ConfigIssue | None]] = {
        "storage": probe_store,
        "tracking": probe_tracking,
        "cluster": probe_cluster,
    }
    wrong = {issue.path[0] for issue in loaded.issues}
    with ThreadPoolExecutor(len(probes)) as pool:
        running = [pool.submit(probe, loaded.settings) for name, probe in probes.items() if name not in wrong]
        return loaded.with_issues(issue for one in running if (issue := one.result()) is not None)


def probe_store(settings: Settings) -> ConfigIssue | None:
    """Writes, reads and deletes a file in the store."""
    root = settings.storage.root
    try:
        Store(root).check()
    except ValueError as error:
        fix = (
            "check the address, the credentials (AWS_*), that the bucket exists, or the folder's permissions and space"
        )
        rule = f"a store that can be written, read and deleted from ({error.__cause__ or error})"
        return ConfigIssue(("storage", "root"), root, rule, fix)
    return None


def probe_tracking(settings: Settings) -> ConfigIssue | None:
    """Requests the version of an MLflow server, or opens the database."""
    uri = absolute_uri(settings.tracking.uri, Path.cwd())
    if uri.startswith(SERVERS):
        problem = _http_problem(f"{uri.rstrip('/')}/version", _mlflow_headers(), _mlflow_login())
        fix = (
            "start the MLflow server, open the tunnel to it, or set MLFLOW_TRACKING_USERNAME and _PASSWORD (or _TOKEN)"
        )
    elif uri.startswith(SQLITE):
        problem = _sqlite_problem(Path(uri.removeprefix(SQLITE)))
        fix = "check the path and its permissions; MLflow creates a file that does not exist"
    else:
        problem = _database_problem(uri)
        fix = "start the database, or correct its address and credentials"
    if not problem:
        return None
    return ConfigIssue(("tracking", "uri"), settings.tracking.uri, f"an MLflow store that responds ({problem})", fix)


def probe_cluster(settings: Settings) -> ConfigIssue | None:
    """Requests the version of the cluster's job server; a local Ray is started when a stage needs it."""
    address = settings.cluster.address
    if not address:
        return None
    problem = _http_problem(f"{address}/api/version", _ray_headers())
    if not problem:
        return None
    fix = "start the cluster, open the tunnel to it, or set RAY_AUTH_TOKEN_PATH to the file of its token"
    return ConfigIssue(("cluster", "address"), address, f"a Ray job server that responds ({problem})", fix)


def _http_problem(url: str, headers: dict[str, str], login: tuple[str, str] | None = None) -> str:
    """Returns what is wrong with the response to a GET request, or an empty string."""
    try:
        response = requests.get(url, headers=headers, auth=login, timeout=_SECONDS)
    except requests.RequestException as error:
        return f"{url}: {type(error).__name__}"
    return "" if response.ok else f"{url}: HTTP {response.status_code} {response.reason}"


def _mlflow_headers() -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _mlflow_login() -> tuple[str, str] | None:
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    return (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", "")) if user else None


def _ray_headers() -> dict[str, str]:
    """Returns the token header, from the same places as Ray's own client."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    if not token and file.is_file():
        token = file.read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _sqlite_problem(path: Path) -> str:
    if not path.exists():
        folder = next(parent for parent in path.parents if parent.exists())
        return "" if os.access(folder, os.W_OK) else f"{path} cannot be created: {folder} is not writable"
    try:
        # Read-only: a check creates no database and migrates none.
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=_SECONDS)
        connection.execute("select name from sqlite_master limit 1").fetchall()
        connection.close()
    except sqlite3.Error as error:
        return f"{path}: {error}"
    return "" if os.access(path, os.W_OK) else f"{path} is not writable"


def _database_problem(uri: str) -> str:
    try:
        import sqlalchemy  # heavy, and no dependency of the light installation

        engine = sqlalchemy.create_engine(uri)
        with engine.connect():
            return ""
    except Exception as error:  # each database driver raises its own
        return f"{type(error).__name__}: {error}".splitlines()[0]
