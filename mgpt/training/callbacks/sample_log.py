"""Logs which samples each step consumed, so that a run's stream can be audited after any number of kills."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mgpt.training.types import Callback, TrainerView

# {"step": number counted from 0, "workers": how many took part, "ids": of all samples of the step}
Entry = dict[str, Any]


class SampleLog(Callback):
    """The samples of all workers, by step. It is part of the checkpoint, so it lacks steps that a kill undid."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def on_step(self, trainer: TrainerView) -> None:
        own = [name for batch in trainer.batches for name in batch.ids]
        gathered = trainer.parallel.gather(own)
        ids = [name for names in gathered for name in names]
        self.entries.append({"step": trainer.step - 1, "workers": len(gathered), "ids": ids})

    def state(self) -> dict[str, Any]:
        return {"entries": list(self.entries)}

    def load(self, state: dict[str, Any]) -> None:
        self.entries = list(state["entries"])


def audit(entries: Sequence[Mapping[str, Any]], planned: Callable[[int], Sequence[str]], steps: int) -> tuple[int, int]:
    """Compares a log with the plan and returns (lost, repeated) samples.

    Lost are samples of `planned(step)`, over all `steps` steps, that this step did not consume; repeated are those
    consumed more often than planned.
    """
    consumed = Counter((entry["step"], name) for entry in entries for name in entry["ids"])
    due = Counter((step, name) for step in range(steps) for name in planned(step))
    return (due - consumed).total(), (consumed - due).total()
