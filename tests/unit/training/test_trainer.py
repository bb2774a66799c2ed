import pytest
import torch

from mgpt.training.async_checkpointer import AsyncCheckpointer
from mgpt.training.callbacks.checkpoint import CheckpointCallback
from mgpt.training.callbacks.early_stopping import EarlyStopping
from mgpt.training.callbacks.metrics_logger import MetricsLogger
from mgpt.training.callbacks.non_finite import NonFiniteCheck, NonFiniteError
from mgpt.training.checkpoint import TrainingState
from tests.fixtures.toy_training import Halt, ToyModel, collate, make_trainer, step_rows, steps


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.trainable_parameters().values()])


def losses(curve):
    return [row["loss"] for row in curve.rows]


def test_matches_plain_adamw_on_token_mean(settings):
    trainer = make_trainer(settings(gradient_clip=None, weight_decay=0.0))
    trainer.run(steps())
    model = ToyModel()
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2, weight_decay=0.0)
    for step in range(12):
        optimizer.param_groups[0]["lr"] = trainer.lr_scheduler(step)
        loss, count = model.loss_sum(collate(list(step_rows(step))).tensors)
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in model.trainable_parameters().values()])
    assert torch.allclose(weights(trainer), expected, atol=1e-6)


@pytest.mark.parametrize("micro", [4, 2, 1])
def test_accumulation_does_not_change_losses(settings, micro):
    whole, cut = MetricsLogger(1), MetricsLogger(1)
    make_trainer(settings(), [whole]).run(steps())
    make_trainer(settings(), [cut]).run(steps(micro=micro))
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)


def test_clipping_limits_gradient_norm(settings):
    trainer = make_trainer(settings(gradient_clip=1e-3))
    trainer.run(steps())
    assert float(trainer.gradient_norm) > 1e-3
    assert float(trainer.parallel.gradients.norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("stop", [4, 5, 11])
def test_resume_is_bit_identical(settings, tmp_path, stop):
    """With dropout, and stops between two logged rows."""
    whole = MetricsLogger(3)
    reference = make_trainer(settings(), [whole], dropout=0.3)
    reference.run(steps())

    first = make_trainer(settings(), [MetricsLogger(3), Halt(stop)], dropout=0.3)
    first.run(steps())
    first.state().save(tmp_path)

    rest = MetricsLogger(3)
    second = make_trainer(settings(), [rest], dropout=0.3)
    second.load(TrainingState.load(tmp_path))
    second.run(steps(start=stop))
    assert torch.equal(weights(second), weights(reference))
    assert [row["step"] for row in rest.rows] == [3, 6, 9, 12]
    assert losses(rest) == losses(whole)


def test_stream_at_wrong_step_is_error(settings):
    with pytest.raises(ValueError, match="got step 3, expected 0"):
        make_trainer(settings()).run(steps(start=3))


def test_short_stream_is_error(settings):
    with pytest.raises(ValueError, match="got step None, expected 1"):
        make_trainer(settings()).run([next(steps())])


@pytest.mark.parametrize(("change", "what"), [({"learning_rate": 2e-2}, "lr_scheduler"), ({"seed": 7}, "seed")])
def test_checkpoint_of_another_run_is_error(settings, change, what):
    trainer = make_trainer(settings())
    trainer.run(steps())
    with pytest.raises(ValueError, match=f"checkpoint: {what}"):
        make_trainer(settings(**change)).load(trainer.state())


def test_checkpoint_steps(settings):
    saved = []
    make_trainer(
        settings(steps=10), [CheckpointCallback(4, AsyncCheckpointer(lambda state: saved.append(state.position)))]
    ).run(steps())
    assert saved == [4, 8, 10]


def test_non_finite_loss_stops_before_checkpoint(settings):
    saved = []
    callbacks = [
        NonFiniteCheck(lambda step: step % 4 == 0),
        CheckpointCallback(4, AsyncCheckpointer(lambda state: saved.append(state.position))),
    ]

    def poisoned():
        for step, batches in steps(micro=2):
            if step == 5:
                batches[1].tensors["pixel_values"][0, 0] = float("nan")
            yield step, batches

    with pytest.raises(NonFiniteError, match="step 5: the loss is not finite") as caught:
        make_trainer(settings(), callbacks).run(poisoned())
    assert caught.value.ids == ("5-2", "5-3")
    assert saved == [4]


def test_infinite_gradient_stops(settings):
    trainer = make_trainer(settings(), [NonFiniteCheck(lambda step: True)])
    trainer.model.mix.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="step 0: the gradient norm is") as caught:
        trainer.run(steps())
    assert len(caught.value.ids) == 8


def test_early_stopping_patience(settings):
    curve = MetricsLogger(1)
    trainer = make_trainer(
        settings(steps=40, learning_rate=1e-30), [curve, EarlyStopping(curve, patience=5, min_delta=1.0)]
    )
    trainer.run(steps())
    assert len(curve.rows) == 6


def test_bf16_is_close_to_fp32(settings):
    exact, rounded = MetricsLogger(1), MetricsLogger(1)
    make_trainer(settings(), [exact]).run(steps())
    make_trainer(settings(precision="bf16"), [rounded]).run(steps())
    assert losses(rounded) == pytest.approx(losses(exact), rel=2e-2)
    assert losses(rounded) != losses(exact)


def test_early_stopping_holds_after_resume(settings):
    def made():
        curve = MetricsLogger(1)
        return make_trainer(
            settings(steps=40, learning_rate=1e-30), [curve, EarlyStopping(curve, patience=5, min_delta=1.0)]
        )

    trainer, resumed = made(), made()
    trainer.run(steps())
    resumed.load(trainer.state())
    resumed.run(iter(()))
    assert resumed.step == trainer.step == 6
