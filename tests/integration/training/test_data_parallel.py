"""Two real processes with gloo against one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from mgpt.config.training import TrainingSettings
from mgpt.training.callbacks.metrics_logger import MetricsLogger
from mgpt.training.callbacks.non_finite import NonFiniteCheck, NonFiniteError
from tests.fixtures.toy_training import make_trainer, steps


def run(settings, rank=0, world_size=1):
    curve = MetricsLogger(1)
    trainer = make_trainer(settings, [curve])
    trainer.run(steps(rank=rank, world_size=world_size, micro=2))
    weights = torch.cat([parameter.detach().flatten() for parameter in trainer.model.trainable_parameters().values()])
    return [row["loss"] for row in curve.rows], weights


def poisoned(settings, rank, world_size):
    """Trains with a NaN in a sample of worker 1, and returns this worker's error."""

    def stream():
        for step, batches in steps(rank=rank, world_size=world_size, micro=2):
            if step == 1 and rank == 1:
                batches[1].tensors["pixel_values"][1, 0] = float("nan")
            yield step, batches

    try:
        make_trainer(settings, [NonFiniteCheck(lambda step: step % 2 == 0)]).run(stream())
    except NonFiniteError as error:
        return str(error)
    return None


def work(rank, world_size, folder, settings):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    torch.save(
        {"run": run(settings, rank, world_size), "poisoned": poisoned(settings, rank, world_size)},
        folder / f"{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Results of two workers, and the settings. In every third step worker 1 has no image, so no projection
    gradient.
    """
    folder = tmp_path_factory.mktemp("pair")
    settings = TrainingSettings(
        format="minigpt-v2",
        mixture={"a": 1},
        steps=9,
        global_batch_size=8,
        micro_batch_size=2,
        learning_rate=1e-2,
        warmup_steps=2,
    )
    processes.spawn(work, (2, folder, settings), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)], settings


def test_two_workers_match_one(pair):
    workers, settings = pair
    losses, weights = run(settings)
    for worker in workers:
        assert worker["run"][0] == pytest.approx(losses, rel=1e-5)
        assert torch.allclose(worker["run"][1], weights, atol=1e-6)


def test_workers_stay_identical(pair):
    first, second = (worker["run"] for worker in pair[0])
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


def test_non_finite_sample_is_named_on_every_worker(pair):
    errors = [worker["poisoned"] for worker in pair[0]]
    assert errors[0] == errors[1]
    assert errors[0].startswith("step 1: the loss is not finite; samples: 1-6, 1-7.")
