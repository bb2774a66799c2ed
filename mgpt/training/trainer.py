"""The training loop: torch only, for one worker or many, with callbacks for everything that is not the step itself.

The loss is the sum over supervised tokens divided by their count over all workers and accumulated batches, so the curve does not depend
on how a global batch is cut. Nothing is read from the device here; callbacks do so on their own steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mgpt.config.training import TrainingSettings
from mgpt.training.batch import Batch
from mgpt.training.checkpoint import TrainingState
from mgpt.training.lr_scheduler import Schedule
from mgpt.training.optimizer import load_optimiser, optimiser_tensors
from mgpt.training.types import NOTICES, Callback, Model, Parallel, StepBatches


@dataclass
class Loop:
    """One worker's training. `step` is the number of finished steps; the fields below it describe the step that finished last."""

    model: Model
    optimiser: torch.optim.Optimizer
    schedule: Schedule
    parallel: Parallel
    settings: TrainingSettings
    device: torch.device
    callbacks: Sequence[Callback] = ()
    attention: str = "sdpa"  # the language model's attention implementation, for packed rows
    notice: Callable[[], bool] = lambda: False  # whether this worker was told that it will be stopped
    step: int = 0
    stop: bool = False
    batches: Sequence[Batch] = ()
    losses: list[Tensor] = field(default_factory=list)  # this worker's loss sum of each batch
    learning_rate: float = 0.0
    gradient_norm: Tensor | None = None
    wait_seconds: float = 0.0  # time the step waited for data

    def run(self, stream: Iterable[StepBatches]) -> None:
        """Trains until the settings' number of steps, or until a callback sets `stop`. Raises ValueError when the stream gives another
        step than is due."""
        batches = iter(stream)
        self._call("on_start")
        while self.step < self.settings.steps and not self.stop:
            self.batches = self.parallel.align(self._next(batches))
            self._train_step()
            self.step += 1
            self._call("on_step")
        self._call("on_end")

    def _next(self, stream: Iterator[StepBatches]) -> Sequence[Batch]:
        began = time.perf_counter()
        step, batches = next(stream, (None, ()))
        self.wait_seconds = time.perf_counter() - began
        if step != self.step:
            raise ValueError(
                f"training stream: got step {step} where {self.step} is due; start the stream at the checkpoint's position"
            )
        return batches

    def _train_step(self) -> None:
        self._seed()
        self.parallel.start()
        self.parallel.totals[NOTICES].fill_(self.notice())  # assigned, it would be copied from the host, and waited for
        self.losses = [self._accumulate(batch) for batch in self.batches]
        self.parallel.reduce()
        self.gradient_norm = self.parallel.normalise(self.parallel.totals[1].clamp(min=1), self.settings.gradient_clip)
        self.learning_rate = self.schedule(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        self.optimiser.step()

    def _accumulate(self, batch: Batch) -> Tensor:
        sizes = torch.tensor(batch.sizes()).to(
            self.device, non_blocking=True
        )  # counted before the move: nothing is read back
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            loss, supervised = self.model.loss_sum(batch.to(self.device).inputs(self.attention))
        if loss.requires_grad:  # not where a batch touches no trainable: text alone, without LoRA
            loss.backward()
        loss = loss.detach()
        self.parallel.totals[:NOTICES].add_(torch.stack([loss, supervised.to(loss), *sizes.to(loss)]))
        return loss

    def _seed(self) -> None:
        # Dropout is a function of (seed, step, worker): a checkpoint needs no generator state, and a resumed step draws what it would
        # have drawn.
        torch.manual_seed(
            int(np.random.SeedSequence([self.settings.seed, self.step, self.parallel.rank]).generate_state(1)[0])
        )

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def state(self) -> TrainingState:
        """The checkpoint of the run as it stands between two steps."""
        parameters = self.model.trainable_parameters()
        trainables = {name: parameter.detach() for name, parameter in parameters.items()}
        callbacks = {type(callback).__name__: callback.state() for callback in self.callbacks}
        optimiser = optimiser_tensors(self.optimiser, parameters)
        return TrainingState(
            trainables, optimiser, self.schedule.state(), {"seed": self.settings.seed}, self.step, callbacks
        )

    def load(self, state: TrainingState) -> None:
        """Goes on from a checkpoint. Raises ValueError when it belongs to a run with another schedule, seed or model."""
        for key, saved, mine in (
            ("schedule", state.schedule, self.schedule.state()),
            ("seed", state.rng, {"seed": self.settings.seed}),
        ):
            if saved != mine:
                raise ValueError(f"checkpoint: {key} {saved} is not this run's {mine}; start a run of its own folder")
        self.model.load_trainable(state.trainables)
        load_optimiser(self.optimiser, self.model.trainable_parameters(), state.optimiser)
        self.step = state.position
        for callback in self.callbacks:
            callback.load(state.callbacks.get(type(callback).__name__, {}))
