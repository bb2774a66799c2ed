"""The names of Ray outside its documented interface. A failure here says what a new version of Ray broke."""

import dataclasses
import inspect

import pytest
import ray.data
from ray.train.torch import TorchConfig

from mgpt.execution import compat
from mgpt.execution.preemption import SignalBackend, SignalTorchConfig


def test_installed_ray_is_the_tested_version():
    compat.check_version()


def test_other_versions_are_refused():
    with pytest.raises(RuntimeError, match=r"3\.1\.0.*RAY_TESTED"):
        compat.check_version("3.1.0")


def test_execution_callbacks_have_the_methods_of_the_throttle():
    fields = {field.name: field for field in dataclasses.fields(ray.data.DataContext)}
    fix = "change PollThrottle: Ray Data's execution callbacks are configured in another way"
    assert "custom_execution_callback_classes" in fields, fix
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    theirs, ours = (
        {name: len(inspect.signature(method).parameters) for name, method in vars(each).items() if callable(method)}
        for each in (ExecutionCallback, compat.PollThrottle)
    )
    assert theirs == ours, "change PollThrottle: the base class of Ray Data's execution callbacks has other methods"


def test_workers_hold_the_preemption_notification():
    from ray.train.v2._internal.execution.context import TrainContext
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    fix = "change node_is_preempted: read the notification where ray.train.get_preemption_info does now"
    assert "preemption_context" in {field.name for field in dataclasses.fields(TrainContext)}, fix
    assert PreemptionContext().preemption_info is None, fix


def test_torch_backend_starts_in_the_workers():
    assert issubclass(SignalTorchConfig(backend="gloo").backend_cls, TorchConfig().backend_cls)
    fix = "change SignalBackend: Ray's torch backend starts in another way"
    assert list(inspect.signature(SignalBackend.__mro__[1].on_start).parameters)[1:] == [
        "worker_group",
        "backend_config",
    ], fix
