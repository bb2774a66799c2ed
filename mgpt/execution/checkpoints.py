"""A run's checkpoints on storage: written with patience, mended before a run goes on, tidied when it is done.

Ray Train commits a checkpoint by naming it in its snapshot, one file below the run's URI. What is not named there does not count, so a
checkpoint is there whole or not at all, whatever is killed.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as SNAPSHOT

from mgpt.storage import Store
from mgpt.training.checkpoint_format import read_head

ATTEMPTS = 5  # of one upload
_FIRST_PAUSE = 0.5  # seconds before the second attempt; each pause is twice the one before
Result = TypeVar("Result")


def retried(action: Callable[[], Result], what: str, pause: float = _FIRST_PAUSE) -> Result:
    """What `action` returns; tries `ATTEMPTS` times in all, since storage answers 503 now and then. Raises the last OSError."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except OSError as error:
            print(f"{what}: attempt {attempt} of {ATTEMPTS} failed ({error}); the next in {pause:g} s", flush=True)
            time.sleep(pause)
            pause *= 2
    return action()


def mend(run_uri: str, report: Callable[[str], None] = print) -> int:
    """Takes checkpoints that are gone or altered out of the run, so that it goes on from the newest whole one; returns how many.

    Ray refuses a run of which one named checkpoint is gone, and hands an altered one to the workers.
    """
    store, snapshot = Store(run_uri), f"{run_uri}/{SNAPSHOT}"
    if not store.exists(snapshot):
        return 0
    try:
        content = json.loads(store.read(snapshot))
        names = [result["checkpoint_dir_name"] for result in content["checkpoint_results"]]
    except (ValueError, KeyError, TypeError):
        report(f"{snapshot} is not whole, so no checkpoint counts: the run begins at step 0")
        store.delete(snapshot)
        return 1
    wrong = {name: fault for name in names if (fault := _fault(store, f"{run_uri}/{name}")) is not None}
    if wrong:
        _drop(content, set(wrong))
        left = content["latest_checkpoint_result"]
        goes_on = f"goes on from {left['checkpoint_dir_name']}" if left else "begins at step 0"
        report("\n".join([*wrong.values(), f"The run {goes_on}"]))
        store.write(snapshot, json.dumps(content).encode())
    return len(wrong)


def _fault(store: Store, uri: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            store.fetch_folder(uri, folder)
            read_head(folder)
        except (FileNotFoundError, ValueError) as error:
            return str(error).replace(folder, uri)
    return None


def _drop(content: dict[str, Any], names: set[str]) -> None:
    kept = [at for at, result in enumerate(content["checkpoint_results"]) if result["checkpoint_dir_name"] not in names]
    for key in ("checkpoint_results", "checkpoint_report_indices"):
        content[key] = [content[key][at] for at in kept]
    content["latest_checkpoint_result"] = content["checkpoint_results"][-1] if kept else None


def tidy(run_uri: str) -> None:
    """Deletes what kills left of checkpoints that no longer count, or never did. Only for a run that nobody trains."""
    store = Store(run_uri)
    named = {
        result["checkpoint_dir_name"]
        for result in json.loads(store.read(f"{run_uri}/{SNAPSHOT}"))["checkpoint_results"]
    }
    inside = [Path(uri.removeprefix(f"{run_uri}/")).parts for uri in store.list(run_uri)]
    for name in {parts[0] for parts in inside if len(parts) > 1 and parts[0].startswith("checkpoint_")} - named:
        store.delete(f"{run_uri}/{name}")
