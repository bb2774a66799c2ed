"""The training loop: torch only, for one worker or many. Everything that is not the step itself is a callback.

The loss is the sum over supervised tokens divided by their number, over all workers and accumulated batches, so it
does not depend on how a global batch is divided. Nothing is read from the device here; callbacks do so on their own
steps.
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
from mgpt.training.lr_scheduler import LRScheduler
from mgpt.training.optimizer import load_optimizer_state, optimizer_state
from mgpt.training.types import PREEMPTIONS, Callback, Model, Parallel, StepBatches


@dataclass
class Trainer:
    """One worker's training.

    `step` is the number of finished steps; the fields below it describe the last finished step.
    """

    model: Model
    optimizer: torch.optim.Optimizer
    lr_scheduler: LRScheduler
    parallel: Parallel
    settings: TrainingSettings
    device: torch.device
    callbacks: Sequence[Callback] = ()
    attention: str = "sdpa"  # the language model's attention implementation, for packed rows
    is_preempted: Callable[[], bool] = lambda: False  # whether this worker will be stopped
    step: int = 0
    stop: bool = False
    batches: Sequence[Batch] = ()
    losses: list[Tensor] = field(default_factory=list)  # this worker's loss sum of each batch
    learning_rate: float = 0.0
    gradient_norm: Tensor | None = None
    wait_seconds: float = 0.0  # time that the step waited for data

    def run(self, stream: Iterable[StepBatches]) -> None:
        """Trains until the settings' number of steps, or until a callback sets `stop`.

        Raises ValueError when the stream yields another step than the next one.
        """
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
                f"training stream: got step {step}, expected {self.step}; start the stream at the checkpoint's position"
            )
        return batches

    def _train_step(self) -> None:
        # Dropout is a function of (seed, step, worker), so a checkpoint needs no generator state and a resumed step
        # draws the same numbers.
        entropy = [self.settings.seed, self.step, self.parallel.rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        self.parallel.start()
        self.parallel.totals[PREEMPTIONS].fill_(
            self.is_preempted()
        )  # an assignment would wait for a copy from the host
        self.losses = [self._accumulate(batch) for batch in self.batches]
        self.parallel.reduce()
        supervised = self.parallel.totals[1].clamp(min=1)
        self.gradient_norm = self.parallel.normalize_gradients(supervised, self.settings.gradient_clip)
        self.learning_rate = self.lr_scheduler(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()

    def _accumulate(self, batch: Batch) -> Tensor:
        # Counted before the batch is moved, so that nothing is read back.
        sizes = torch.tensor(batch.sizes()).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            loss, supervised = self.model.loss_sum(batch.to(self.device).inputs(self.attention))
        if loss.requires_grad:  # False for a batch that uses no trained parameter: text only, without LoRA
            loss.backward()
        loss = loss.detach()
        self.parallel.totals[:PREEMPTIONS].add_(torch.stack([loss, supervised.to(loss), *sizes.to(loss)]))
        return loss

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)

    def state(self) -> TrainingState:
        """Returns the checkpoint of the run between two steps."""
        parameters = self.model.trainable_parameters()
        return TrainingState(
            {name: parameter.detach() for name, parameter in parameters.items()},
            optimizer_state(self.optimizer, parameters),
            self.lr_scheduler.state(),
            {"seed": self.settings.seed},
            self.step,
            {type(callback).__name__: callback.state() for callback in self.callbacks},
        )

    def load(self, state: TrainingState) -> None:
        """Continues from a checkpoint. Raises ValueError for one with another learning rate schedule, seed or model."""
        for key, saved, own in (
            ("lr_scheduler", state.lr_scheduler, self.lr_scheduler.state()),
            ("seed", state.rng, {"seed": self.settings.seed}),
        ):
            if saved != own:
                raise ValueError(f"checkpoint: {key} {saved} is not this run's {own}; start a run in a new folder")
        self.model.load_trainable(state.parameters)
        load_optimizer_state(self.optimizer, self.model.trainable_parameters(), state.optimizer)
        self.step = state.position
        for callback in self.callbacks:
            callback.load(state.callbacks.get(type(callback).__name__, {}))
