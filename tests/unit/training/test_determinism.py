import os

import pytest
import torch

from mgpt.training.determinism import is_nondeterministic_error, set_determinism


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # registers the variable for restoring
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("device", "requested", "mode"), [("cpu", False, 1), ("cpu", True, 1), ("cuda", False, 0), ("cuda", True, 2)]
)
def test_cpu_always_and_gpu_on_request(device, requested, mode):
    """torch's modes for operations without a deterministic form: 0 off, 1 warn, 2 raise."""
    set_determinism(torch.device(device), requested)
    assert torch.get_deterministic_debug_mode() == mode
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == (mode == 2)


def test_refused_operation_is_recognised():
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as refused:
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    assert is_nondeterministic_error(refused.value)
    assert not is_nondeterministic_error(RuntimeError("out of memory"))
