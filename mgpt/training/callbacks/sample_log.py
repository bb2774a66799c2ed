"""Which samples each step consumed, kept so that a run's whole stream can be audited after any number of kills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mgpt.training.trainer import Loop
from mgpt.training.types import Callback

Entry = dict[
    str, Any
]  # {"step": the step's number, counted from 0, "workers": how many took part, "ids": of all of its samples}


class Ledger(Callback):
    """The samples of all workers, step by step. Part of the checkpoint: what a kill undid is no longer in it, what was resumed is."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def on_step(self, loop: Loop) -> None:
        mine = [name for batch in loop.batches for name in batch.ids]
        everyone = loop.parallel.gather(mine)
        self.entries.append(
            {"step": loop.step - 1, "workers": len(everyone), "ids": [name for ids in everyone for name in ids]}
        )

    def state(self) -> dict[str, Any]:
        return {"entries": list(self.entries)}

    def load(self, state: dict[str, Any]) -> None:
        self.entries = list(state["entries"])


def audit(entries: Sequence[Mapping[str, Any]], planned: Callable[[int], Sequence[str]], steps: int) -> tuple[int, int]:
    """(lost, repeated): of the samples `planned(step)` of all `steps` steps, how many no step of the ledger consumed in its place, and how
    many were consumed once more than planned."""
    consumed = Counter((entry["step"], name) for entry in entries for name in entry["ids"])
    due = Counter((step, name) for step in range(steps) for name in planned(step))
    return (due - consumed).total(), (consumed - due).total()
