import threading
import time

import pytest
import torch

from mgpt.training.async_checkpointer import AsyncCheckpointer
from mgpt.training.callbacks.checkpoint import CheckpointCallback
from mgpt.training.types import Callback
from tests.fixtures.toy_training import make_trainer, steps


def slowly(seconds, kept):
    def keep(state):
        time.sleep(seconds)
        kept.append((state.position, {name: tensor.clone() for name, tensor in state.parameters.items()}))

    return keep


class After(Callback):
    """Sets an event after a step."""

    def __init__(self, step, event):
        self.step, self.event = step, event

    def on_step(self, trainer):
        if trainer.step == self.step:
            self.event.set()


def test_training_goes_on_while_a_checkpoint_is_written_and_what_is_written_is_of_its_step(settings):
    """The writing ends after steps that come later, so a state that they touched would be seen."""
    later, kept, waited, stopped = threading.Event(), [], [], make_trainer(settings(steps=8))
    stopped.run(steps())

    def keep(state):
        waited.append(later.wait(60))
        kept.append((state.position, {name: tensor.clone() for name, tensor in state.parameters.items()}))

    trainer = make_trainer(settings(steps=8), [CheckpointCallback(8, AsyncCheckpointer(keep)), After(11, later)])
    trainer.settings = settings(steps=12)  # the same first eight steps
    trainer.run(steps())
    assert waited == [True, True]
    assert [position for position, _ in kept] == [8, 12]
    assert all(torch.equal(kept[0][1][name], weight) for name, weight in stopped.model.trainable_parameters().items())


def test_a_checkpoint_waits_for_the_one_before_and_the_end_for_the_last(settings):
    kept = []
    checkpoint = CheckpointCallback(1, AsyncCheckpointer(slowly(0.2, kept)))
    trainer = make_trainer(settings(steps=3, warmup_steps=0, log_every=1), [checkpoint])
    trainer.run(steps())
    assert [position for position, _ in kept] == [1, 2, 3]
    assert all(stall > 0.1 for stall in checkpoint.stalls[1:])


def test_a_checkpoint_that_cannot_be_written_stops_training(settings):
    def keep(state):
        raise OSError("storage is gone")

    with pytest.raises(OSError, match="storage is gone"):
        make_trainer(settings(), [CheckpointCallback(4, AsyncCheckpointer(keep))]).run(steps())


def test_a_notice_brings_one_checkpoint_at_once_and_the_word_that_it_is_kept(settings):
    kept, said, told = [], [], threading.Event()
    notice = CheckpointCallback(
        100,
        AsyncCheckpointer(slowly(0.1, kept)),
        can_read=lambda step: True,
        after_preemption=lambda: said.append(len(kept)),
    )

    def stream():
        for step, batches in steps():
            if step == 5:
                told.set()
            yield step, batches

    trainer = make_trainer(settings(), [notice])
    trainer.is_preempted = told.is_set
    trainer.run(stream())
    assert [position for position, _ in kept] == [6, 12]
    assert said == [1]


def test_without_a_notice_there_is_none(settings):
    kept = []
    make_trainer(
        settings(), [CheckpointCallback(100, AsyncCheckpointer(slowly(0, kept)), can_read=lambda step: True)]
    ).run(steps())
    assert [position for position, _ in kept] == [12]
