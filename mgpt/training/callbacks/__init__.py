"""What happens around training steps: checkpoints, the stop on non-finite numbers, early stop. The curve has its own module."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mgpt.training.async_checkpointer import Keeper
from mgpt.training.callbacks.metrics_logger import Curve
from mgpt.training.trainer import Loop
from mgpt.training.types import NOTICES, Callback


class NonFiniteError(ArithmeticError):
    """Loss or gradient became infinite or not a number. `ids` are the samples of the step's batches to blame."""

    def __init__(self, step: int, ids: Sequence[str], reason: str) -> None:
        fix = "Look at these samples, lower learning_rate, or set gradient_clip"
        super().__init__(f"step {step}: {reason}; samples: {', '.join(ids)}. {fix}")
        self.step, self.ids = step, tuple(ids)


class NonFinite(Callback):
    """Stops before a checkpoint could keep damaged weights: remembers each step's numbers on the device and looks at them every `every`
    steps."""

    def __init__(self, every: Callable[[int], bool]) -> None:
        self._due = every
        self._seen: list[tuple[int, Tensor, list[Tensor], list[tuple[str, ...]]]] = []

    def on_step(self, loop: Loop) -> None:
        assert loop.gradient_norm is not None
        watched = torch.stack([loop.parallel.totals[0], loop.gradient_norm])
        self._seen.append((loop.step - 1, watched, loop.losses, [batch.ids for batch in loop.batches]))
        if self._due(loop.step):
            for step, numbers, losses, ids in self._seen:
                if not bool(torch.isfinite(numbers).all()):
                    raise self._error(loop, step, numbers, losses, ids)
            self._seen.clear()

    def _error(
        self, loop: Loop, step: int, numbers: Tensor, losses: list[Tensor], ids: list[tuple[str, ...]]
    ) -> NonFiniteError:
        mine = [
            name for loss, names in zip(losses, ids, strict=True) if not math.isfinite(float(loss)) for name in names
        ]
        blamed = [name for names in loop.parallel.gather(mine) for name in names]
        if blamed:
            return NonFiniteError(step, blamed, "the loss is not finite")
        everyone = [name for names in loop.parallel.gather([name for names in ids for name in names]) for name in names]
        return NonFiniteError(step, everyone, f"the gradient norm is {float(numbers[1])}")


class Checkpoint(Callback):
    """Keeps the state every `every` steps, at the end, and once when a worker was told that it will be stopped.

    The notice is the last of the totals, so every worker sees it after the same step. It is read where `reads` says that reading costs
    nothing. `after_notice` is called when that checkpoint is kept.
    """

    def __init__(
        self,
        every: int,
        keeper: Keeper,
        reads: Callable[[int], bool] = lambda step: False,
        after_notice: Callable[[], None] = lambda: None,
    ) -> None:
        self._every, self._keeper, self._reads, self._after_notice = every, keeper, reads, after_notice
        self._saved: int | None = None
        self._noticed = False
        self.stalls: list[float] = []  # seconds for which each checkpoint of this process held up training

    def on_start(self, loop: Loop) -> None:
        self._saved = loop.step

    def on_step(self, loop: Loop) -> None:
        noticed = not self._noticed and self._reads(loop.step) and float(loop.parallel.totals[NOTICES]) > 0
        if noticed or loop.step % self._every == 0:
            self._keep(loop)
        if noticed:
            self._noticed = True
            self._keeper.wait()
            self._after_notice()

    def on_end(self, loop: Loop) -> None:
        if self._saved != loop.step:
            self._keep(loop)
        self._keeper.wait()

    def _keep(self, loop: Loop) -> None:
        began = time.perf_counter()
        self._keeper.save(loop.state())
        self.stalls.append(time.perf_counter() - began)
        self._saved = loop.step


class EarlyStop(Callback):
    """Ends the run when the curve's loss has not fallen by `least` for `patience` rows. Comes after `curve` in the list of callbacks."""

    def __init__(self, curve: Curve, patience: int, least: float = 0.0) -> None:
        self._curve, self._patience, self._least = curve, patience, least

    def on_start(self, loop: Loop) -> None:
        self.on_step(loop)  # a run that was killed after its last step does not train another one

    def on_step(self, loop: Loop) -> None:
        losses = [row["loss"] for row in self._curve.rows]
        if len(losses) > self._patience:
            # A function of the rows alone, which every worker has alike: all stop at the same step, before and after a resume.
            loop.stop = min(losses[-self._patience :]) > min(losses[: -self._patience]) - self._least
