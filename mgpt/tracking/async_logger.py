"""Sends one run's metrics, parameters, tags and files to MLflow from a background thread, in order.

Training must neither wait for a tracking server nor fail because of one: what cannot be sent stays in the buffer and is
retried.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from mgpt.tracking.client import connect, mlflow_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
BATCH = 1000  # MLflow's limit for metrics in one call
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between attempts while a server is down
RETRIABLE_STATUS = (408, 429)  # client errors that pass


@dataclass(frozen=True)
class Point:
    """One value of a metric. The time is part of it, so that a batch sent twice is stored once (MLflow collapses exact
    duplicates)."""

    key: str
    value: float
    milliseconds: int
    step: int


Call: TypeAlias = "Callable[[MlflowClient], None]"


class AsyncLogger:
    """The buffer of one run, and the thread that empties it.

    Curves have no repeats: a point whose step is not beyond the last one stored for its key is dropped, so a run that
    returns to a checkpoint and repeats steps adds nothing twice.
    """

    def __init__(self, tracking_uri: str, run_id: str, patience_seconds: float) -> None:
        self.tracking_uri, self.run_id, self.patience_seconds = tracking_uri, run_id, patience_seconds
        self._queue: deque[Point | Call] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None
        self._client: MlflowClient | None = None
        self._last_steps: dict[str, int] = {}

    def put(self, *items: Point | Call) -> None:
        """Queues points or calls; returns at once."""
        with self._changed:
            self._queue.extend(items)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"mlflow-{self.run_id[:8]}", daemon=True)
                self._thread.start()
                atexit.register(self.drain)
            self._changed.notify_all()

    def drain(self, seconds: float | None = None) -> bool:
        """Waits until everything is sent, at most `seconds` (default: the run's patience). Returns whether nothing is
        left."""
        until = time.monotonic() + (self.patience_seconds if seconds is None else seconds)
        with self._changed:
            while self._queue or self._busy:
                left = until - time.monotonic()
                if left <= 0:
                    count = len(self._queue) + self._busy
                    log.warning(
                        "MLflow at %s: %d entries of run %s not sent yet", self.tracking_uri, count, self.run_id
                    )
                    return False
                self._changed.wait(left)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                batch = self._next_batch()
                self._busy = True
            self._send_until_stored(batch)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next_batch(self) -> list[Point] | Call:
        """Takes the next call, or all consecutive points at the head of the queue (at most one batch)."""
        head = self._queue.popleft()
        if not isinstance(head, Point):
            return head
        points = [head]
        while self._queue and len(points) < BATCH and isinstance(self._queue[0], Point):
            points.append(self._queue.popleft())  # type: ignore[arg-type]
        return points

    def _send_until_stored(self, batch: list[Point] | Call) -> None:
        """Retries until the batch is stored, or until MLflow refuses it for good."""
        pause = FIRST_PAUSE
        while True:
            try:
                self._send(batch)
            except Exception as error:  # the network, the store and the server each raise their own types
                if is_final(error):
                    log.error("MLflow at %s refused an entry of run %s: %s", self.tracking_uri, self.run_id, error)
                    return
                if pause == FIRST_PAUSE:
                    log.warning("MLflow at %s does not respond, entries are kept: %s", self.tracking_uri, error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if pause > FIRST_PAUSE:
                    log.warning("MLflow at %s responds again, sending the entries kept meanwhile", self.tracking_uri)
                return

    def _send(self, batch: list[Point] | Call) -> None:
        if self._client is None:
            self._client = connect(self.tracking_uri)
        if callable(batch):
            batch(self._client)
        else:
            self._send_points(self._client, batch)

    def _send_points(self, client: MlflowClient, points: list[Point]) -> None:
        from mlflow.entities import Metric

        last = dict(self._last_steps)
        new = []
        for point in points:
            if point.key not in last:
                history = client.get_metric_history(self.run_id, point.key)
                last[point.key] = max((stored.step for stored in history), default=-1)
            if point.step > last[point.key]:
                last[point.key] = point.step
                new.append(Metric(point.key, point.value, point.milliseconds, point.step))
        if new:
            client.log_batch(self.run_id, metrics=new)
        self._last_steps = last


def is_final(error: Exception) -> bool:
    """Returns whether retrying is useless: MLflow understood the request and refused it."""
    if not isinstance(error, mlflow_error()):
        return isinstance(error, (TypeError, ValueError, AttributeError, FileNotFoundError))
    status = int(error.get_http_status_code())
    return 400 <= status < 500 and status not in RETRIABLE_STATUS
