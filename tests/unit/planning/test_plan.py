"""Plans of the default experiment and of the recipe, and the output of `mgpt plan`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mgpt.cli.main import main
from mgpt.cli.plan import UTILISATION
from mgpt.config import Settings, load_settings
from mgpt.planning.accelerators import ACCELERATORS, get_accelerator
from mgpt.planning.datasets import mixture_lengths, nominal_dataset
from mgpt.planning.features import is_cached
from mgpt.planning.flops import Lengths, training_flops
from mgpt.planning.memory import BatchShape, Dtypes, StepOptions, training_memory
from mgpt.planning.stages import (
    Resources,
    longest_batch,
    model_sizes,
    plan,
    published_runs,
    training_plan,
    training_plan_memory,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shapes() -> Settings:
    return load_settings(ROOT / "params.yaml", {})


@pytest.fixture(scope="module")
def a100() -> Settings:
    return load_settings(ROOT / "recipes" / "a100.yaml", {})


def test_published_hours_are_planned_within_a_quarter(a100: Settings) -> None:
    plans = {
        one.name: one for one in plan(a100, Resources.as_published(ACCELERATORS["a100-80"], UTILISATION["a100-80"]))
    }
    timed = {name: one for name, one in published_runs().items() if one.hours}
    assert len(timed) == 5
    for name, one in timed.items():
        assert plans[name].hours == pytest.approx(one.hours, rel=0.25), name
    # One MFU explains four of the five runs; only the fifth has its own.
    assert {name for name, one in timed.items() if one.mfu} == {"instruct@minigpt-v2"}


def test_flops_follow_counting_rule(a100: Settings) -> None:
    sizes = model_sizes(a100, "minigpt-v2")
    one, two = (training_flops(sizes, Lengths(tokens, 0, 0, 0, 0)) for tokens in (1, 2))
    # One more token costs 4N of the frozen model and 6N of LoRA without the last feed-forward; the rest is
    # attention's square.
    frozen = sizes.language.linear - sizes.language.feed_forward
    assert two.language - one.language == pytest.approx(4 * frozen + 6 * sizes.lora_parameters, rel=1e-3)
    image = training_flops(sizes, Lengths(1, 0, 1, 0, 0))
    assert image.tower == pytest.approx(2 * sizes.tower.linear * sizes.tower.tokens, rel=0.2)
    assert training_flops(sizes, Lengths(1, 0, 1, 0, 0), cached=True).tower == 0
    checkpointed = training_flops(sizes, Lengths(300, 20, 1, 0, 0), recompute=True)
    assert checkpointed.counted == training_flops(sizes, Lengths(300, 20, 1, 0, 0)).counted
    assert checkpointed.recomputed == pytest.approx(checkpointed.language / 2, rel=0.05)


def test_packed_rows_are_planned_as_cut(a100: Settings) -> None:
    for stage, model_name in [
        ("pretrain", "minigpt4"),
        ("pretrain", "minigpt-v2"),
        ("multitask", "minigpt-v2"),
        ("instruct", "minigpt-v2"),
    ]:
        training, sizes = getattr(a100, stage)[model_name], model_sizes(a100, model_name)
        sample = mixture_lengths(a100, training)
        packed, padded = (
            longest_batch(sizes, sample, training.model_copy(update={"pack_tokens": n}))
            for n in (training.pack_tokens, None)
        )
        assert (packed.rows, packed.length) == (1, training.pack_tokens)  # as `varlen` requires
        assert (padded.rows, padded.length) == (training.micro_batch_size, sample.longest + sizes.image_tokens)
        unlimited = longest_batch(sizes, sample, training.model_copy(update={"pack_tokens": 10**9}))
        assert unlimited.samples == training.global_batch_size


def test_memory_savings_are_planned(a100: Settings) -> None:
    """`varlen` saves the mask and prunes the last layer; fused layers save fewer tensors; a cache replaces pixels and
    the tower.
    """
    sizes, batch, dtypes = (
        model_sizes(a100, "minigpt-v2"),
        BatchShape(12, 400, 12, 600, 12),
        Dtypes("bf16", None, "bf16"),
    )
    plain = replace(sizes, language=replace(sizes.language, fused=False))
    fused, unmasked, plain_unmasked = (
        training_memory(chosen, batch, dtypes, StepOptions(attention)).activations
        for chosen, attention in ((sizes, "sdpa"), (sizes, "varlen"), (plain, "varlen"))
    )
    assert unmasked < fused < training_memory(plain, batch, dtypes, StepOptions("sdpa")).activations
    assert unmasked < 0.9 * plain_unmasked
    many = BatchShape(1, 8, 1, 1, 200)
    assert (
        training_memory(sizes, many, dtypes, StepOptions(features="bf16")).buffers
        < 0.6 * training_memory(sizes, many, dtypes, StepOptions()).buffers
    )


def test_feature_cache_follows_settings_or_nominal_rows(shapes: Settings, a100: Settings) -> None:
    training, sizes = shapes.instruct["minigpt4"], model_sizes(shapes, "minigpt4")
    assert is_cached(shapes, training, sizes)  # 7,680 samples of 300 images
    assert not is_cached(shapes, training.model_copy(update={"features_gigabytes": 1e-6}), sizes)
    published = a100.pretrain["minigpt4"]
    for setting, expected in ((True, True), (False, False), ("auto", False)):
        stage = published.model_copy(update={"features": setting})
        settings = a100.model_copy(update={"pretrain": {**a100.pretrain, "minigpt4": stage}})
        assert is_cached(settings, stage, model_sizes(a100, "minigpt4")) is expected
        one = training_plan(settings, "pretrain", "minigpt4", Resources(ACCELERATORS["a100-80"], 0.4))
        assert ("planned as off" in one.assumption) == (setting == "auto")
        assert one.memory == training_plan_memory(settings, "pretrain", "minigpt4", ACCELERATORS["a100-80"])


def test_mixed_datasets_have_nominal_lengths(shapes: Settings, a100: Settings) -> None:
    for settings in (shapes, a100):
        for section in (settings.pretrain, settings.multitask, settings.instruct):
            for stage in section.values():
                found = mixture_lengths(settings, stage)
                assert 0 < found.supervised < found.text <= found.longest


def test_dataset_without_source_is_named(shapes: Settings) -> None:
    with pytest.raises(ValueError, match=r"mixture\.nowhere"):
        nominal_dataset(shapes, "nowhere")


def test_more_workers_take_less_time_at_same_cost(a100: Settings) -> None:
    few, many = (plan(a100, Resources(ACCELERATORS["a100-80"], 0.4, workers)) for workers in (4, 8))
    for one, other in zip(few, many, strict=True):
        if one.name.startswith("pretrain"):
            assert one.hours == pytest.approx(2 * (other.hours or 0))
            assert one.cost == pytest.approx(other.cost)
            assert one.memory == other.memory


def test_absent_backbones_need_preset(a100: Settings) -> None:
    bare = a100.models["minigpt-v2"].model_copy(update={"preset": None})
    without = a100.model_copy(update={"models": {**a100.models, "minigpt-v2": bare}})
    with pytest.raises(ValueError, match=r"models\.minigpt-v2\.preset"):
        model_sizes(without, "minigpt-v2")


def test_command_prints_every_stage(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["plan", "--recipe", "a100"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "download",
        "curate",
        "pretrain@minigpt4",
        "describe",
        "multitask@minigpt-v2",
        "evaluate@minigpt-v2",
        "promote@minigpt4",
    ):
        assert name in printed
    assert "DOES NOT FIT" not in printed
    assert all(len(line) <= 100 for line in printed.splitlines())
    assert main(["plan", "--recipe", "a100", "--gpu", "a100-40"]) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main(["plan", "--recipe", "a100", "--mfu", "1.5"]) == 2
    assert "--mfu" in capsys.readouterr().err


def test_cpu_is_measured() -> None:
    found = get_accelerator("cpu", price=0.5)
    assert found.flops["fp32"] > 1e8
    assert found.memory > 1 << 30
    assert found.price == 0.5
    with pytest.raises(ValueError, match="--gpu"):
        get_accelerator("a9000")
