"""Processes of a real Ray that serve on, and Ray Data's scheduling loop, which leaves the interpreter to training."""

import os
import time

import pyarrow as pa
import pytest

from mgpt.config.training import WorkerSettings
from mgpt.execution.worker_env import worker_environment


def process() -> int:
    return os.getpid()


class Controller:
    """Starts a task as a worker of Ray Train does."""

    def start_task(self) -> int:
        import ray

        return ray.get(ray.remote(num_cpus=0)(process).remote())


def test_variables_of_the_user_win(monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    monkeypatch.setenv("RAY_TRAIN_OTHER", "1")
    variables = worker_environment(WorkerSettings())
    assert (variables["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"], variables["RAY_TRAIN_OTHER"]) == ("7", "1")


@pytest.mark.usefixtures("ray_here")
def test_task_reuses_the_process_of_an_earlier_one():
    import ray

    options = {"runtime_env": {"env_vars": worker_environment(WorkerSettings())}}
    controller = ray.remote(num_cpus=0, **options)(Controller).remote()
    first = ray.get(controller.start_task.remote())
    warmed = ray.get(ray.remote(num_cpus=0, **options)(process).remote())
    plain = ray.get(ray.remote(num_cpus=0)(process).remote())
    assert warmed == first == ray.get(controller.start_task.remote())
    assert plain != warmed  # other variables, another process


@pytest.mark.usefixtures("ray_here")
def test_waiting_dataset_is_polled_with_pauses():
    import ray.data

    from mgpt.execution.compat import POLL_PAUSE_SECONDS, PollThrottle

    iterations = []

    class Counting(PollThrottle):
        def on_execution_step(self, executor):
            iterations.append(1)
            super().on_execution_step(executor)

    blocks = ray.data.from_arrow([pa.table({"step": [number]}) for number in range(40)])
    blocks.context.custom_execution_callback_classes.append(Counting)
    mapped = blocks.map_batches(lambda table: table, batch_format="pyarrow")
    rows = iter(mapped.iter_batches(batch_size=None, prefetch_batches=0))
    next(rows)
    begun, before = time.perf_counter(), len(iterations)
    time.sleep(0.5)
    assert len(iterations) - before <= (time.perf_counter() - begun) / POLL_PAUSE_SECONDS + 1
    assert len(list(rows)) == 39
