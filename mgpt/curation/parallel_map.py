"""Coarse tasks side by side: on Ray Data where workers are wanted, or one after another in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa


def give_back_memory() -> None:
    """Lets Arrow use the model's allocator from now on, and returns what is free to the model. Arrow's own keeps what its threads freed:
    a process's memory grew with the number of files that it had seen."""
    pa.set_memory_pool(pa.system_memory_pool())
    pa.default_memory_pool().release_unused()


def each(function: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[tuple[int, Any]]:
    """Yields (position, function(item)) as results arrive, with at most `workers` at a time; 0 workers means this process.

    A task is a whole file of a dataset, so Ray's overhead is paid per file and not per record, and a lost worker repeats one file.
    """
    give_back_memory()
    if not workers or len(items) == 0:
        yield from ((position, function(item)) for position, item in enumerate(items))
        return
    import ray

    # Ray would otherwise look for a cluster by itself, and find whatever runs on this machine.
    assert ray.is_initialized(), "connect to Ray (mgpt.execution.session) before work is given to its workers"
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    shared = ray.put((function, list(items)))  # once in the object store, not once a task

    def call(row: dict[str, Any]) -> dict[str, Any]:
        action, everything = ray.get(shared)
        give_back_memory()
        return {"position": row["id"], "result": pickle.dumps(action(everything[row["id"]]))}

    tasks = ray.data.range(len(items), override_num_blocks=len(items))
    for row in tasks.map(call, compute=ray.data.TaskPoolStrategy(size=workers)).iter_rows():
        yield int(row["position"]), pickle.loads(row["result"])
