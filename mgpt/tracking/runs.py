"""One MLflow run per stage and fingerprint, found again by tag, so that a resumed or re-attached stage goes on in the same run.

MLflow is imported when a call needs it. Ray Train's own MLflow callback is refused by Ray 2.60 (ray#49454), so rank 0 gets a `Tracker`:
it is picklable, and travels as the store's address and the run's id.
"""

import logging
import math
import re
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgpt.config.registry import TrackingSettings
from mgpt.tracking.async_logger import Point, Sender
from mgpt.tracking.client import absolute_uri, connect, experiment_id
from mgpt.tracking.lineage import FINGERPRINT, INPUT, STAGE, SYSTEM, code_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)
KEY, NOT_IN_KEY, LONGEST_KEY = re.compile(r"[\w\-. /:]{1,250}"), re.compile(r"[^\w\-. /:]"), 250
LONGEST_VALUE = 6000  # characters of a parameter; MLflow refuses more
LARGEST_BATCH = 100  # parameters or tags in one call
Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker:
    """Logs to one MLflow run. No method waits for the server but `flush`, `finish` and `log_artifact`, and these wait a bounded time.

    A step that is already stored for a metric is not stored again: after a resume the curve goes on without repeats.
    Call `flush()` where a checkpoint is written: a point that is still in this process's memory is lost with the process.
    """

    def __init__(self, tracking_uri: str, run_id: str, patience_seconds: float = 20.0) -> None:
        self.tracking_uri, self.run_id, self.patience_seconds = tracking_uri, run_id, patience_seconds
        self._sender = Sender(tracking_uri, run_id, patience_seconds)

    def __reduce__(self) -> tuple[type["Tracker"], tuple[str, str, float]]:
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
    ) -> "Tracker":
        """Finds the run of this stage and fingerprint, or makes it.

        Args:
            project: the project's folder (the current one by default): base of a relative store, and where git and dvc.lock are read.
            artifacts: folder or `s3://` prefix for artifacts of a store without a server.
            inputs: digest of each input, by name; stored as tags `mgpt.input.<name>`.

        Raises:
            ValueError: the store cannot be reached. A stage that cannot be recorded does not start.
        """
        folder = project or Path.cwd()
        uri = absolute_uri(settings.uri, folder)
        name = f"{stage}@{model_name}" if model_name else stage
        tags = {STAGE: stage, FINGERPRINT: fingerprint, "mlflow.runName": name, **code_tags(folder)}
        tags |= {SYSTEM: model_name} if model_name else {}
        tags |= {f"{INPUT}{key}": digest for key, digest in (inputs or {}).items()}
        client = connect(uri)
        try:
            run_id = _find_or_create(client, experiment_id(client, uri, settings.experiment, artifacts), tags)
        except Exception as error:
            raise ValueError(
                f"tracking.uri: {uri} cannot be used ({error}); start the MLflow server, or correct tracking.uri"
            ) from error
        return cls(uri, run_id, settings.patience_seconds)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Queues one value per metric at a step. NaN and infinities are kept out (SQL stores turn infinity into 1.8e308) with a warning.

        Raises:
            ValueError: a name that MLflow would refuse, or a negative step.
        """
        now = time.time_ns() // 1_000_000
        _check_keys(metrics)
        if step < 0:
            raise ValueError(f"step {step}: steps count from 0")
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            log.warning("step %d: %s not finite, not logged", step, ", ".join(sorted(set(metrics) - set(finite))))
        self._sender.put(*(Point(key, value, now, step) for key, value in finite.items()))

    def log_params(self, params: Mapping[str, object]) -> None:
        """Queues parameters; nested mappings become dotted keys. What the run already has stays as it is: parameters are logged once."""
        self._sender.put(partial(_send_params, run_id=self.run_id, params=flatten(params)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Queues tags; a later value replaces an earlier one."""
        _check_keys(tags)
        self._sender.put(partial(_send_tags, run_id=self.run_id, tags=dict(tags)))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Stores a file or a folder's files under the run's artifacts, and waits for it, at most the patience.

        Raises:
            ValueError: there is no such file.
        """
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder to log to MLflow")
        self._sender.put(partial(_send_artifact, run_id=self.run_id, path=path, folder=folder))
        self.flush()

    def flush(self, seconds: float | None = None) -> bool:
        """Waits until everything is stored, at most `seconds` (the patience by default). True when it is."""
        return self._sender.drain(seconds)

    def finish(self, status: Status = "FINISHED") -> bool:
        """Sets the run's final status and waits for all that is queued, at most the patience. True when all is stored."""
        self._sender.put(partial(_terminate, run_id=self.run_id, status=status))
        return self.flush()


def find_run(client: "MlflowClient", fingerprint: str, stage: str, experiment_ids: list[str]) -> "Run | None":
    """The run of a stage and fingerprint; the oldest, should there be several."""
    query = f"tags.`{FINGERPRINT}` = '{fingerprint}' and tags.`{STAGE}` = '{stage}'"
    runs = client.search_runs(experiment_ids, filter_string=query)
    return min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted keys with text values: `{"a": {"b": 1}}` is `{"a.b": "1"}`.

    Characters that MLflow does not take in a name become "_": a file name among the params may not stop a stage.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[NOT_IN_KEY.sub("_", f"{prefix}{key}")[:LONGEST_KEY]] = str(value)[:LONGEST_VALUE]
    return flat


def _find_or_create(client: "MlflowClient", experiment: str, tags: Mapping[str, str]) -> str:
    """MLflow has no "create if absent". Contract: `mgpt.stage` holds the fingerprint's lock, so no two processes are here for one fingerprint."""
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
            f"{', '.join(map(repr, wrong))}: names for MLflow are 1 to 250 letters, digits, spaces and _-./: characters"
        )


def _send_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    stored = client.get_run(run_id).data.params
    changed = sorted(key for key in params if key in stored and stored[key] != params[key])
    if changed:
        log.warning("run %s keeps its first value of %s: MLflow parameters cannot change", run_id, ", ".join(changed))
    fresh = [Param(key, value) for key, value in params.items() if key not in stored]
    for start in range(0, len(fresh), LARGEST_BATCH):
        client.log_batch(run_id, params=fresh[start : start + LARGEST_BATCH])


def _send_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    items = [RunTag(key, str(value)) for key, value in tags.items()]
    for start in range(0, len(items), LARGEST_BATCH):
        client.log_batch(run_id, tags=items[start : start + LARGEST_BATCH])


def _send_artifact(client: "MlflowClient", run_id: str, path: Path, folder: str | None) -> None:
    send = client.log_artifacts if path.is_dir() else client.log_artifact
    send(run_id, str(path), folder)


def _terminate(client: "MlflowClient", run_id: str, status: Status) -> None:
    client.set_terminated(run_id, status=status)
