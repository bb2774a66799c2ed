"""A run's checkpoints on storage: uploaded with retries, verified, dropped where damaged.

Each is a folder `<run>/checkpoints/<step>-<random>/`. Its head file carries the sha256 of the others and is uploaded
last, so a checkpoint without one does not count: it is there whole or not at all, whatever is killed. Checkpoints are
not reported to Ray Train, which refuses a run of which one checkpoint is gone and hands a damaged one to the workers.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import botocore.exceptions
from tenacity import RetryCallState, retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from mgpt.storage import Store, is_remote
from mgpt.training.checkpoint_format import HEAD, CorruptCheckpointError, read_head

ATTEMPTS = 5  # of an upload; an object store answers 503 now and then
# s3fs passes on botocore's errors of connections, most of which are not OSErrors.
UPLOAD_ERRORS = (OSError, botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: the number of steps done, and the URI of its folder."""

    step: int
    uri: str


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run."""

    run_uri: str

    @cached_property
    def store(self) -> Store:
        return Store(self.run_uri)

    @property
    def uri(self) -> str:
        return f"{self.run_uri}/checkpoints"

    def committed(self) -> list[Checkpoint]:
        """Returns the checkpoints that count, oldest first."""
        folders = [uri.removesuffix(f"/{HEAD}") for uri in self.store.list(self.uri) if uri.endswith(f"/{HEAD}")]
        return sorted((Checkpoint(_step(uri), uri) for uri in folders), key=lambda found: (found.step, found.uri))

    def latest(self) -> Checkpoint | None:
        """Returns the newest checkpoint, or None at step 0."""
        return next(reversed(self.committed()), None)

    def latest_step(self) -> int:
        """Returns the step from which the run resumes; 0 without a checkpoint."""
        latest = self.latest()
        return 0 if latest is None else latest.step

    def upload(self, folder: Path, step: int, keep: int) -> None:
        """Commits a local checkpoint and deletes all but the newest `keep`.

        The folder's name is new each time: a retry never mixes with the files of an upload that was killed.

        Raises:
            UPLOAD_ERRORS: a file could not be stored in `ATTEMPTS` attempts.
        """
        target = f"{self.uri}/{step:09d}-{secrets.token_hex(4)}"
        for path in sorted(folder.iterdir(), key=lambda path: path.name == HEAD):
            upload_file(self.store, path, f"{target}/{path.name}")
        for old in self.committed()[:-keep]:
            self._delete(old.uri)

    @contextmanager
    def local(self, checkpoint: Checkpoint) -> Iterator[Path]:
        """Yields a local folder with the checkpoint's files."""
        if not is_remote(checkpoint.uri):
            yield Path(checkpoint.uri)
            return
        with tempfile.TemporaryDirectory() as folder:
            self.store.fetch_folder(checkpoint.uri, folder)
            yield Path(folder)

    def drop_corrupt_checkpoints(self, report: Callable[[str], None] = print) -> int:
        """Deletes damaged checkpoints until the newest one is whole; returns how many."""
        dropped = 0
        while (latest := self.latest()) is not None and (damage := self._damage(latest)) is not None:
            self._delete(latest.uri)
            report(f"{damage}; deleted. The run resumes from step {self.latest_step()}")
            dropped += 1
        return dropped

    def delete_orphaned_checkpoints(self) -> None:
        """Deletes what killed uploads and deletions left. Only for a run that nobody trains."""
        whole = {checkpoint.uri for checkpoint in self.committed()}
        for folder in {uri.rpartition("/")[0] for uri in self.store.list(self.uri)} - whole:
            self.store.delete(folder)

    def _damage(self, checkpoint: Checkpoint) -> str | None:
        try:
            with self.local(checkpoint) as folder:
                read_head(folder)
        except (FileNotFoundError, CorruptCheckpointError) as error:
            return str(error)
        return None

    def _delete(self, uri: str) -> None:
        self.store.delete(f"{uri}/{HEAD}")  # first: from now on it does not count
        self.store.delete(uri)


def _step(uri: str) -> int:
    return int(uri.rpartition("/")[2].partition("-")[0])


def _report_attempt(state: RetryCallState) -> None:
    assert state.outcome is not None
    assert state.next_action is not None
    error, pause = state.outcome.exception(), state.next_action.sleep
    print(f"upload: attempt {state.attempt_number} of {ATTEMPTS} failed ({error}); next in {pause:g} s", flush=True)


retry_upload = retry(
    retry=retry_if_exception_type(UPLOAD_ERRORS),
    stop=stop_after_attempt(ATTEMPTS),
    wait=wait_exponential(multiplier=0.5),
    before_sleep=_report_attempt,
    reraise=True,
)  # raises the last error after ATTEMPTS attempts


@retry_upload
def upload_file(store: Store, path: Path, uri: str) -> None:
    """Stores a local file and verifies its size, with retries. Raises one of UPLOAD_ERRORS."""
    store.put_file(path, uri)
    if store.size(uri) != path.stat().st_size:
        raise OSError(f"{uri}: stored {store.size(uri)} bytes of {path.stat().st_size}")
