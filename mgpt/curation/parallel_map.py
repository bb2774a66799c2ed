"""Maps a function over coarse tasks: on Ray Data with workers, or one task after another in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa


def release_memory() -> None:
    """Switches Arrow to the system's allocator and returns free memory to the system.

    Arrow's own allocator keeps what its threads freed, so that a process grew with the number of files it had read.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    pa.default_memory_pool().release_unused()


def parallel_map(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[tuple[int, Any]]:
    """Yields (position, function(item)) as results arrive, at most `workers` at a time; 0 workers means this process.

    A task is a whole file of a dataset: Ray's overhead is per file rather than per record, and a lost worker repeats
    one file.
    """
    release_memory()
    if not workers or len(items) == 0:
        yield from ((position, function(item)) for position, item in enumerate(items))
        return
    import ray

    # Without this check Ray would connect to any cluster that runs on this machine.
    assert ray.is_initialized(), "connect to Ray (mgpt.execution.session) before tasks are given to workers"
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    shared = ray.put((function, list(items)))  # once in the object store rather than once per task

    def call(row: dict[str, Any]) -> dict[str, Any]:
        action, everything = ray.get(shared)
        release_memory()
        return {"position": row["id"], "result": pickle.dumps(action(everything[row["id"]]))}

    tasks = ray.data.range(len(items), override_num_blocks=len(items))
    for row in tasks.map(call, compute=ray.data.TaskPoolStrategy(size=workers)).iter_rows():
        yield int(row["position"]), pickle.loads(row["result"])
