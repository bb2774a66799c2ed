"""One MLflow run per stage and fingerprint, found by tag, so that a resumed or re-attached stage continues in the same
run.

MLflow is imported on first use. Ray 2.60 refuses Ray Train's own MLflow callback (ray#49454), so rank 0 gets a
`Tracker`, which is pickled as the store's address and the run's id.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgpt.config.registry import TrackingSettings
from mgpt.tracking.async_logger import AsyncLogger, Point
from mgpt.tracking.client import absolute_uri, connect, experiment_id
from mgpt.tracking.lineage import FINGERPRINT, INPUT, MODEL, STAGE, code_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)
# Limits of MLflow: characters of a name and of a parameter's value, parameters or tags in one call.
MAX_KEY_LENGTH, MAX_VALUE_LENGTH, MAX_BATCH = 250, 6000, 100
KEY, NOT_IN_KEY = re.compile(r"[\w\-. /:]{1,250}"), re.compile(r"[^\w\-. /:]")
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Logs to one MLflow run. Only `flush`, `finish` and `log_artifact` wait for the server, and only for a bounded
    time.

    A step that is already stored for a metric is not stored again, so a curve continues without repeats after a resume.
    Call `flush()` when a checkpoint is written: points that are still in this process's memory are lost with it.
    """

    def __init__(self, tracking_uri: str, run_id: str, patience_seconds: float = 20.0) -> None:
        self.tracking_uri, self.run_id, self.patience_seconds = tracking_uri, run_id, patience_seconds
        self._logger = AsyncLogger(tracking_uri, run_id, patience_seconds)

    def __reduce__(self) -> tuple[type[Tracker], tuple[str, str, float]]:
        return Tracker, (self.tracking_uri, self.run_id, self.patience_seconds)

    @classmethod
    def open(
        cls,
        settings: TrackingSettings,
        *,
        stage: str,
        fingerprint: str,
        model_name: str | None = None,
        project: Path | None = None,
        artifacts: str | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Tracker:
        """Finds the run of this stage and fingerprint, or creates it.

        Args:
            project: the project's folder (default: the current one), base of a relative store, with git and dvc.lock.
            artifacts: folder or `s3://` prefix for artifacts of a store without a server.
            inputs: digest of each input by name, stored as tags `mgpt.input.<name>`.

        Raises:
            ValueError: the store cannot be reached. A stage that cannot be recorded does not start.
        """
        folder = project or Path.cwd()
        uri = absolute_uri(settings.uri, folder)
        name = f"{stage}@{model_name}" if model_name else stage
        tags = {STAGE: stage, FINGERPRINT: fingerprint, "mlflow.runName": name, **code_tags(folder)}
        tags |= {MODEL: model_name} if model_name else {}
        tags |= {f"{INPUT}{key}": digest for key, digest in (inputs or {}).items()}
        client = connect(uri)
        try:
            run_id = _find_or_create(client, experiment_id(client, uri, settings.experiment, artifacts), tags)
        except Exception as error:
            raise ValueError(
                f"tracking.uri: {uri} cannot be used ({error}); start the MLflow server, or correct the address"
            ) from error
        return cls(uri, run_id, settings.patience_seconds)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Queues one value per metric at a step. NaN and infinity are skipped with a warning (SQL stores turn infinity
        into 1.8e308).

        Raises:
            ValueError: MLflow would refuse a name, or the step is negative.
        """
        now = time.time_ns() // 1_000_000
        _check_keys(metrics)
        if step < 0:
            raise ValueError(f"step {step} is negative; steps start at 0")
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            log.warning("step %d: not logged, not finite: %s", step, ", ".join(sorted(set(metrics) - set(finite))))
        self._logger.put(*(Point(key, value, now, step) for key, value in finite.items()))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Queues parameters; nested mappings become dotted keys. Parameters that the run already has keep their first
        value."""
        self._logger.put(partial(_send_params, run_id=self.run_id, params=flatten(params)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Queues tags; a later value replaces an earlier one."""
        _check_keys(tags)
        self._logger.put(partial(_send_tags, run_id=self.run_id, tags=dict(tags)))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a file, or the files of a folder, as artifacts of the run, and waits for that, at most
        `patience_seconds`.

        Raises:
            ValueError: there is no such file or folder.
        """
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder to log to MLflow")
        self._logger.put(partial(_send_artifact, run_id=self.run_id, path=path, folder=folder))
        self.flush()

    def flush(self, seconds: float | None = None) -> bool:
        """Waits until everything is stored, at most `seconds` (default: `patience_seconds`). Returns whether it is."""
        return self._logger.drain(seconds)

    def finish(self, status: Status = "FINISHED") -> bool:
        """Sets the run's final status and waits for the queue, at most `patience_seconds`. Returns whether everything
        is stored."""
        self._logger.put(partial(_terminate, run_id=self.run_id, status=status))
        return self.flush()


def find_run(client: MlflowClient, fingerprint: str, stage: str, experiment_ids: list[str]) -> Run | None:
    """Returns the run of a stage and fingerprint, the oldest if there are several."""
    query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and tags.`{STAGE}` = '{stage}'"
    runs = client.search_runs(experiment_ids, filter_string=query)
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flattens nested mappings to dotted keys with text values: `{"a": {"b": 1}}` becomes `{"a.b": "1"}`.

    Characters that MLflow refuses in a name become "_", so that a file name among the params cannot stop a stage.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[NOT_IN_KEY.sub("_", f"{prefix}{key}")[:MAX_KEY_LENGTH]] = str(value)[:MAX_VALUE_LENGTH]
    return flat


def _find_or_create(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> str:
    """Returns the run's id. MLflow has no atomic create-if-absent; the stage runner holds the fingerprint's lock
    meanwhile."""
    found = find_run(client, tags[FINGERPRINT], tags[STAGE], [experiment]) or client.create_run(
        experiment, tags=dict(tags)
    )
    run_id = str(found.info.run_id)
    if found.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    return run_id


def _check_keys(values: Mapping[str, object]) -> None:
    wrong = [key for key in values if not KEY.fullmatch(key)]
    if wrong:
        raise ValueError(
            f"{', '.join(map(repr, wrong))}: MLflow allows names of 1 to 250 letters, digits, spaces and the "
            "characters _-./:"
        )


def _send_params(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    stored = client.get_run(run_id).data.params
    changed = sorted(key for key in params if key in stored and stored[key] != params[key])
    if changed:
        log.warning("run %s keeps its first value of %s: MLflow parameters cannot change", run_id, ", ".join(changed))
    new = [Param(key, value) for key, value in params.items() if key not in stored]
    for start in range(0, len(new), MAX_BATCH):
        client.log_batch(run_id, params=new[start : start + MAX_BATCH])


def _send_tags(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    items = [RunTag(key, str(value)) for key, value in tags.items()]
    for start in range(0, len(items), MAX_BATCH):
        client.log_batch(run_id, tags=items[start : start + MAX_BATCH])


def _send_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    send = client.log_artifacts if path.is_dir() else client.log_artifact
    send(run_id, str(path), folder)


def _terminate(client: MlflowClient, run_id: str, status: Status) -> None:
    client.set_terminated(run_id, status=status)
