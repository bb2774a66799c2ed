"""Ships one run's metrics, parameters, tags and files to MLflow from a background thread, in order.

Training must not wait for a tracking server, nor stop because of one: what cannot be sent stays in the buffer and is tried again.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mgpt.tracking.client import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
BATCH = 1000  # MLflow's limit for metrics in one call
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between tries while a server is down
WORTH_A_RETRY = (408, 429)


@dataclass(frozen=True)
class Point:
    """One value of one curve. The time is kept, so that a batch sent twice is stored once (MLflow collapses exact duplicates)."""

    key: str
    value: float
    milliseconds: int
    step: int


Call = Callable[["MlflowClient"], None]


class Sender:
    """The buffer of one run, and the thread that empties it.

    Curves stay free of repeats: a point is dropped when its step is not beyond the last one stored for its key, so a run that goes
    back to a checkpoint and repeats steps adds nothing twice.
    """

    def __init__(self, tracking_uri: str, run_id: str, patience_seconds: float) -> None:
        self.tracking_uri, self.run_id, self.patience_seconds = tracking_uri, run_id, patience_seconds
        self._waiting: deque[Point | Call] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None
        self._client: MlflowClient | None = None
        self._last_steps: dict[str, int] = {}

    def put(self, *items: Point | Call) -> None:
        """Queues points or calls; returns at once."""
        with self._changed:
            self._waiting.extend(items)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"mlflow-{self.run_id[:8]}", daemon=True)
                self._thread.start()
                atexit.register(self.drain)
            self._changed.notify_all()

    def drain(self, seconds: float | None = None) -> bool:
        """Waits until everything is sent, at most `seconds` (the run's patience by default). True when nothing is left."""
        until = time.monotonic() + (self.patience_seconds if seconds is None else seconds)
        with self._changed:
            while self._waiting or self._busy:
                left = until - time.monotonic()
                if left <= 0:
                    count = len(self._waiting) + self._busy
                    log.warning(
                        "MLflow at %s: %d entries of run %s are not sent yet", self.tracking_uri, count, self.run_id
                    )
                    return False
                self._changed.wait(left)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                batch = self._take()
                self._busy = True
            self._deliver(batch)
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _take(self) -> list[Point] | Call:
        """The next call, or all points that stand together at the head of the queue (at most one batch)."""
        head = self._waiting.popleft()
        if not isinstance(head, Point):
            return head
        points = [head]
        while self._waiting and len(points) < BATCH and isinstance(self._waiting[0], Point):
            points.append(self._waiting.popleft())  # type: ignore[arg-type]
        return points

    def _deliver(self, batch: list[Point] | Call) -> None:
        """Sends until it is stored, or until MLflow says that it never will be."""
        pause = FIRST_PAUSE
        while True:
            try:
                self._send(batch)
            except Exception as error:  # the network, the store and the server all raise their own kinds
                if is_final(error):
                    log.error(
                        "MLflow at %s refused an entry of run %s, it is left out: %s",
                        self.tracking_uri,
                        self.run_id,
                        error,
                    )
                    return
                if pause == FIRST_PAUSE:
                    log.warning(
                        "MLflow at %s does not answer; work goes on, entries are sent later: %s",
                        self.tracking_uri,
                        error,
                    )
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                if pause > FIRST_PAUSE:
                    log.warning(
                        "MLflow at %s answers again; the entries kept meanwhile are being sent", self.tracking_uri
                    )
                return

    def _send(self, batch: list[Point] | Call) -> None:
        if self._client is None:
            self._client = connect(self.tracking_uri)
        if callable(batch):
            batch(self._client)
        else:
            self._send_points(self._client, batch)

    def _send_points(self, client: "MlflowClient", points: list[Point]) -> None:
        from mlflow.entities import Metric

        last = dict(self._last_steps)
        fresh = []
        for point in points:
            if point.key not in last:
                last[point.key] = max(
                    (stored.step for stored in client.get_metric_history(self.run_id, point.key)), default=-1
                )
            if point.step > last[point.key]:
                last[point.key] = point.step
                fresh.append(Metric(point.key, point.value, point.milliseconds, point.step))
        if fresh:
            client.log_batch(self.run_id, metrics=fresh)
        self._last_steps = last


def is_final(error: Exception) -> bool:
    """True when trying again cannot help: MLflow understood the request and refused it."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return isinstance(error, (TypeError, ValueError, AttributeError, FileNotFoundError))
    status = int(error.get_http_status_code())
    return 400 <= status < 500 and status not in WORTH_A_RETRY
