import sys

import torch

from mgpt.models import kernels


def test_a_cpu_has_no_fused_kernels():
    assert kernels.fused(torch.zeros(2)) is None


def test_without_the_package_training_goes_on_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    kernels._liger.cache_clear()
    try:
        assert kernels._liger() is kernels._liger() is None
    finally:
        kernels._liger.cache_clear()
    assert [record.message.count("pip install mgpt[gpu]") for record in caplog.records] == [1]
