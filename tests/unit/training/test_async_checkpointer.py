import threading
import time

import pytest
import torch

from mgpt.training.async_checkpointer import AsyncCheckpointer
from mgpt.training.callbacks.checkpoint import CheckpointCallback
from mgpt.training.types import Callback
from tests.fixtures.toy_training import make_trainer, steps


def slow_writer(seconds, written):
    def write(state):
        time.sleep(seconds)
        written.append((state.position, {name: tensor.clone() for name, tensor in state.parameters.items()}))

    return write


class After(Callback):
    """Sets an event after a step."""

    def __init__(self, step, event):
        self.step, self.event = step, event

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.event.set()


def test_write_overlaps_later_steps(settings):
    """The write ends after later steps, and must hold the state of its own step."""
    later, written, waited, stopped = threading.Event(), [], [], make_trainer(settings(steps=8))
    stopped.run(steps())

    def write(state):
        waited.append(later.wait(60))
        written.append((state.position, {name: tensor.clone() for name, tensor in state.parameters.items()}))

    trainer = make_trainer(settings(steps=8), [CheckpointCallback(8, AsyncCheckpointer(write)), After(11, later)])
    trainer.settings = settings(steps=12)  # the same first eight steps
    trainer.run(steps())
    assert waited == [True, True]
    assert [position for position, _ in written] == [8, 12]
    assert all(
        torch.equal(written[0][1][name], weight) for name, weight in stopped.model.trainable_parameters().items()
    )


def test_checkpoint_waits_for_previous_one(settings):
    written = []
    checkpoint = CheckpointCallback(1, AsyncCheckpointer(slow_writer(0.2, written)))
    trainer = make_trainer(settings(steps=3, warmup_steps=0, log_every=1), [checkpoint])
    trainer.run(steps())
    assert [position for position, _ in written] == [1, 2, 3]
    assert all(stall > 0.1 for stall in checkpoint.stalls[1:])


def test_write_error_stops_training(settings):
    def write(state):
        raise OSError("storage is gone")

    with pytest.raises(OSError, match="storage is gone"):
        make_trainer(settings(), [CheckpointCallback(4, AsyncCheckpointer(write))]).run(steps())


def test_preemption_writes_one_checkpoint_at_once(settings):
    written, notified, preempted = [], [], threading.Event()
    checkpoint = CheckpointCallback(
        100,
        AsyncCheckpointer(slow_writer(0.1, written)),
        can_read=lambda step: True,
        after_preemption=lambda: notified.append(len(written)),
    )

    def stream():
        for step, batches in steps():
            if step == 5:
                preempted.set()
            yield step, batches

    trainer = make_trainer(settings(), [checkpoint])
    trainer.is_preempted = preempted.is_set
    trainer.run(stream())
    assert [position for position, _ in written] == [6, 12]
    assert notified == [1]


def test_no_checkpoint_without_preemption(settings):
    written = []
    make_trainer(
        settings(), [CheckpointCallback(100, AsyncCheckpointer(slow_writer(0, written)), can_read=lambda step: True)]
    ).run(steps())
    assert [position for position, _ in written] == [12]
