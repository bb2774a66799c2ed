"""Predicted memory and FLOPs against what full-size steps took on an H100 (`benchmarks/gpu_step.py`). It reads the measurements: no GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mgpt.config.models import LoraSettings
from mgpt.models.presets import preset_parts
from mgpt.planning.memory import Kinds, Rows, Way, training_memory
from mgpt.planning.sizes import Sizes, sizes_of
from mgpt.planning.work import Lengths, training_flops
from mgpt.training.batch import IGNORE, Batch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
STAGES = [
    "minigpt4-pretrain",
    "minigpt4-instruct",
    "minigpt-v2-pretrain",
    "minigpt-v2-multitask",
    "minigpt-v2-instruct",
]
WAYS = {
    "supervised": Way(),  # plain layers, as another architecture has them
    "packed": Way("varlen"),
    "fused": Way("varlen"),
    "cached": Way("varlen", features="fp32"),
    "checkpointed": Way("varlen", recomputed=True),
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
    import gpu_step  # it imports its neighbours as a script does

    return gpu_step


def sizes_for(model: str) -> Sizes:
    parts = preset_parts(model)
    return sizes_of(parts, parts["merge"], LoraSettings(**parts["lora"]) if parts["lora"] else None)


def drawn(script: ModuleType, stage: str, way: str, sizes: Sizes) -> list[Batch]:
    """The rows that were measured: lengths do not depend on the images, which are one pixel here."""
    images = {"num_image_tokens": sizes.image_tokens, "image_token_id": 1, "image_size": 1, "projection_inputs": 1}
    stand_in = SimpleNamespace(**images, text_config=SimpleNamespace(vocab_size=sizes.language.vocabulary))
    return [batch for step in script.batches(stand_in, script.STAGES[stage], script.VARIANTS[way]) for batch in step]


def rows_of(batch: Batch) -> Rows:
    (rows, length), samples = batch.tensors["labels"].shape, len(batch.ids)
    return Rows(rows, length, samples, int(batch.tensors["labels"].ne(IGNORE).sum()), samples)


@pytest.mark.parametrize("stage", STAGES)
def test_memory_of_a_full_size_step_is_predicted_within_a_tenth(
    measured: dict[str, Any], benchmark_script: ModuleType, stage: str
) -> None:
    sizes = sizes_for(benchmark_script.STAGES[stage].model)
    for name, way in WAYS.items():
        lean = benchmark_script.VARIANTS[name].fused
        built = replace(sizes, language=replace(sizes.language, lean=lean))
        rows = [rows_of(batch) for batch in drawn(benchmark_script, stage, name, sizes)]
        fullest = max(
            (training_memory(built, one, Kinds("bf16", None, "bf16"), way) for one in rows), key=lambda one: one.total
        )
        found = measured[stage][name]["memory_gib"] * 2**30
        assert fullest.total == pytest.approx(found, rel=0.02), name
        # Weights are most of it and hardly to be missed, so what comes on top of them is held to a tenth too.
        assert fullest.total - fullest.weights == pytest.approx(found - fullest.weights, rel=0.1), name


@pytest.mark.parametrize("stage", STAGES)
def test_flops_are_counted_as_the_curve_counts_them(
    measured: dict[str, Any], benchmark_script: ModuleType, stage: str
) -> None:
    """So that an MFU which was measured may be planned with."""
    sizes = sizes_for(benchmark_script.STAGES[stage].model)
    rows = [rows_of(batch) for batch in drawn(benchmark_script, stage, "fused", sizes)]
    samples, supervised = (sum(getattr(one, name) for one in rows) for name in ("samples", "supervised"))
    text = sum(one.positions for one in rows) / samples - sizes.image_tokens
    for name in WAYS:
        planned = training_flops(sizes, Lengths(text, supervised / samples, 1, 0, 0), cached=name == "cached").counted
        found = measured[stage][name]
        assert planned / 1e12 == pytest.approx(found["teraflops"] / found["samples_per_second"], rel=0.02), name
