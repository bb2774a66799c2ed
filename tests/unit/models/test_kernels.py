import sys

import torch

from mgpt.models import kernels


def test_cpu_has_no_fused_kernels():
    assert kernels.fused_ops(torch.zeros(2)) is None


def test_missing_package_warns_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    kernels.liger_ops.cache_clear()
    try:
        assert kernels.liger_ops() is kernels.liger_ops() is None
    finally:
        kernels.liger_ops.cache_clear()
    assert [record.message.count("pip install mgpt[gpu]") for record in caplog.records] == [1]
