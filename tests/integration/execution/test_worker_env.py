"""What Ray runs where, on a real Ray: processes serve on, and following a dataset leaves the interpreter to training."""

import os
import time

import pyarrow as pa
import pytest

from mgpt.config.training import WorkerSettings
from mgpt.execution.worker_env import set_up_ray_train


def process() -> int:
    return os.getpid()


class Controller:
    """Starts a task as a worker of Ray Train does."""

    def ask(self) -> int:
        import ray

        return ray.get(ray.remote(num_cpus=0)(process).remote())


@pytest.mark.usefixtures("ray_here")
def test_a_task_runs_on_in_the_process_that_an_earlier_one_made_ready():
    import ray

    options = set_up_ray_train(WorkerSettings())
    controller = ray.remote(num_cpus=0, **options)(Controller).remote()
    first = ray.get(controller.ask.remote())
    warmed = ray.get(ray.remote(num_cpus=0, **options)(process).remote())
    plain = ray.get(ray.remote(num_cpus=0)(process).remote())
    assert warmed == first == ray.get(controller.ask.remote())
    assert plain != warmed  # other variables, another process: what the options are for


@pytest.mark.usefixtures("ray_here")
def test_a_dataset_that_waits_for_its_reader_is_looked_at_in_pauses():
    import ray.data

    from mgpt.execution.data_feed import PATIENCE_SECONDS, Patience

    turns = []

    class Counting(Patience):
        def on_execution_step(self, executor):
            turns.append(1)
            super().on_execution_step(executor)

    blocks = ray.data.from_arrow([pa.table({"step": [number]}) for number in range(40)])
    blocks.context.custom_execution_callback_classes.append(Counting)
    rows = iter(
        blocks.map_batches(lambda table: table, batch_format="pyarrow").iter_batches(
            batch_size=None, prefetch_batches=0
        )
    )
    next(rows)
    begun, before = time.perf_counter(), len(turns)
    time.sleep(0.5)
    assert len(turns) - before <= (time.perf_counter() - begun) / PATIENCE_SECONDS + 1
    assert len(list(rows)) == 39
