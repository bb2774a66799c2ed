import os

import pytest
import torch

from mgpt.training.determinism import is_nondeterministic_error, set_determinism


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that what a test sets is taken back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("device", "asked", "mode"), [("cpu", False, 1), ("cpu", True, 1), ("cuda", False, 0), ("cuda", True, 2)]
)
def test_a_cpu_is_always_deterministic_and_a_gpu_where_it_is_asked_for(device, asked, mode):
    """torch's modes: 0 off, 1 warns of an operation without a deterministic form, 2 raises."""
    set_determinism(torch.device(device), asked)
    assert torch.get_deterministic_debug_mode() == mode
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == (mode == 2)


def test_torchs_refusal_is_known():
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as refused:
        torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    assert is_nondeterministic_error(refused.value)
    assert not is_nondeterministic_error(RuntimeError("out of memory"))
