"""Planned memory and FLOPs compared with full-size steps on an H100, as recorded by `benchmarks/gpu_step.py`.

Needs no GPU.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mgpt.config.models import LoraSettings
from mgpt.models.presets import preset_parts
from mgpt.planning.flops import Lengths, training_flops
from mgpt.planning.memory import BatchShape, Dtypes, StepOptions, training_memory
from mgpt.planning.sizes import ModelSizes, sizes_from_configs
from mgpt.training.batch import IGNORE, Batch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
STAGES = [
    "minigpt4-pretrain",
    "minigpt4-instruct",
    "minigpt-v2-pretrain",
    "minigpt-v2-multitask",
    "minigpt-v2-instruct",
]
VARIANTS = {
    "supervised": StepOptions(),  # layers as transformers computes them
    "packed": StepOptions("varlen"),
    "fused": StepOptions("varlen"),
    "cached": StepOptions("varlen", features="fp32"),
    "checkpointed": StepOptions("varlen", recompute=True),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    result = json.loads((BENCHMARKS / "results" / "gpu_step.json").read_text())
    assert not result["tiny"]
    assert "H100" in result["gpu"]
    return dict(result["stages"])


@pytest.fixture
def benchmark_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_step  # imports its neighbours as a script does

    return gpu_step


def model_sizes(model: str) -> ModelSizes:
    parts = preset_parts(model)
    return sizes_from_configs(parts, parts["merge"], LoraSettings(**parts["lora"]) if parts["lora"] else None)


def measured_batches(script: ModuleType, stage: str, variant: str, sizes: ModelSizes) -> list[Batch]:
    """Returns the batches that were measured, with images of one pixel, since lengths do not depend on them."""
    images = {"num_image_tokens": sizes.image_tokens, "image_token_id": 1, "image_size": 1, "projection_inputs": 1}
    stand_in = SimpleNamespace(**images, text_config=SimpleNamespace(vocab_size=sizes.language.vocabulary))
    return [
        batch for step in script.batches(stand_in, script.STAGES[stage], script.VARIANTS[variant]) for batch in step
    ]


def batch_shape(batch: Batch) -> BatchShape:
    (rows, length), samples = batch.tensors["labels"].shape, len(batch.ids)
    return BatchShape(rows, length, samples, int(batch.tensors["labels"].ne(IGNORE).sum()), samples)


@pytest.mark.parametrize("stage", STAGES)
def test_full_size_memory_is_planned_within_tolerance(
    measured: dict[str, Any], benchmark_script: ModuleType, stage: str
) -> None:
    sizes = model_sizes(benchmark_script.STAGES[stage].model)
    for name, options in VARIANTS.items():
        fused = benchmark_script.VARIANTS[name].fused
        built = replace(sizes, language=replace(sizes.language, fused=fused))
        rows = [batch_shape(batch) for batch in measured_batches(benchmark_script, stage, name, sizes)]
        fullest = max(
            (training_memory(built, one, Dtypes("bf16", None, "bf16"), options) for one in rows),
            key=lambda one: one.total,
        )
        found = measured[stage][name]["memory_gib"] * 2**30
        assert fullest.total == pytest.approx(found, rel=0.02), name
        # Weights dominate and are easily counted, so the rest is compared separately.
        assert fullest.total - fullest.weights == pytest.approx(found - fullest.weights, rel=0.1), name


@pytest.mark.parametrize("stage", STAGES)
def test_flops_match_training_counter(measured: dict[str, Any], benchmark_script: ModuleType, stage: str) -> None:
    """The same rule on both sides lets a measured MFU be used in a plan."""
    sizes = model_sizes(benchmark_script.STAGES[stage].model)
    rows = [batch_shape(batch) for batch in measured_batches(benchmark_script, stage, "fused", sizes)]
    samples, supervised = (sum(getattr(one, name) for one in rows) for name in ("samples", "supervised"))
    text = sum(one.positions for one in rows) / samples - sizes.image_tokens
    for name in VARIANTS:
        planned = training_flops(sizes, Lengths(text, supervised / samples, 1, 0, 0), cached=name == "cached").counted
        found = measured[stage][name]
        assert planned / 1e12 == pytest.approx(found["teraflops"] / found["samples_per_second"], rel=0.02), name
