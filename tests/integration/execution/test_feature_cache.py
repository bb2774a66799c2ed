"""The feature cache on a real Ray: computed once per image, shared between stages, resumed pack by pack."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mgpt.config.training import WorkerSettings
from mgpt.data.feature_packs import FeatureReader
from mgpt.execution.data_feed import BatchBuilder, DataPlan
from mgpt.execution.feature_cache import fill_cache
from mgpt.models.encoder import ImageEncoder
from mgpt.models.loading import ModelSpec
from tests.fixtures.training_runs import SHORT, settings

INIT = SHORT["init"]
STEPS = {name: value for name, value in SHORT.items() if name != "init"}
SHOWN = "120 images shown, 48 of them distinct (2.5 times each)"


def filled(training, features_folder, **changes):
    chosen = settings(**STEPS, **changes)
    plan = DataPlan.from_settings(chosen, training[1], ModelSpec(training[0], None, INIT))
    return fill_cache(plan, chosen, WorkerSettings(), str(features_folder))


def packs(features_folder):
    return sorted(features_folder.glob("*/*.safetensors"))


def test_each_image_is_computed_once(cached, short):
    assert (cached.cached.computed, short.cached) == (48, None)
    reader = FeatureReader(cached.cached.folder)
    assert sum(len(pack.digests) for pack in reader.packs) == len(reader.locations) == 48
    assert cached.cached.size == 48 * reader.packs[0].size
    effect = cached.cached.effect(0.1, 20)
    assert f"on: {SHOWN}, 0 MB of features; computed 48 in" in effect
    without = 0.1 + cached.cached.image_seconds * 120 / 20
    assert f"a step without it about {without:.3f} s" in effect


def test_training_on_the_same_tower_computes_nothing(cached, training, features_folder):
    before = {path: path.stat().st_mtime_ns for path in packs(features_folder)}
    again = filled(training, features_folder, features="auto", seed=9)
    assert (again.folder, again.computed) == (cached.cached.folder, 0)
    assert {path: path.stat().st_mtime_ns for path in packs(features_folder)} == before


def test_only_missing_packs_are_computed(cached, training, features_folder):
    kept, lost = packs(features_folder)
    before, content = kept.stat().st_mtime_ns, load_file(lost)
    lost.unlink()
    again = filled(training, features_folder, features=True)
    assert (again.computed, kept.stat().st_mtime_ns) == (len(content["digests"]), before)
    assert all(torch.equal(tensor, content[name]) for name, tensor in load_file(lost).items())


def test_half_precision_has_its_own_cache(cached, training, features_folder):
    half = filled(training, features_folder, features=True, features_dtype="bf16")
    whole, halves = FeatureReader(cached.cached.folder), FeatureReader(half.folder)
    assert half.folder != cached.cached.folder
    assert half.size * 2 == cached.cached.size
    names = sorted(whole.locations)
    assert torch.equal(halves.read(names), whole.read(names).to(torch.bfloat16))


def test_auto_is_off_for_rarely_shown_images(ray_here, training, features_folder):
    plan = filled(training, features_folder, features="auto", features_above=3)
    assert (plan.folder, plan.computed, plan.estimate()) == (None, 0, f"off: {SHOWN}")


def test_auto_is_off_for_too_large_features(ray_here, training, features_folder):
    plan = filled(training, features_folder, features="auto", features_gigabytes=1e-6)
    assert (plan.folder, plan.computed) == (None, 0)
    assert plan.estimate().startswith(f"off: {SHOWN}")


def test_off_computes_nothing(training, features_folder):
    assert filled(training, features_folder, features=False).estimate() == "off"


@pytest.mark.parametrize("pack_tokens", [None, 160])
def test_batches_hold_features_in_place_of_pixels(cached, training, pack_tokens):
    plan = DataPlan.from_settings(
        settings(pack_tokens=pack_tokens, **STEPS), training[1], ModelSpec(training[0], None, INIT)
    )
    model = plan.model.load_model()
    plain, fed = (
        next(BatchBuilder(replace(plan, features=features)).batches([1], 0, 1))
        for features in (None, cached.cached.folder)
    )
    assert [batch.ids for batch in fed] == [batch.ids for batch in plain]
    for one, other in zip(fed, plain, strict=True):
        assert "pixel_values" not in one.tensors
        sums = [model.loss_sum(batch.inputs("sdpa"))[0].item() for batch in (one, other)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-6)
    assert any("image_features" in batch.tensors for batch in fed)


def test_frozen_part_alone_equals_the_model(training):
    start = ModelSpec(training[0], None, INIT)
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ImageEncoder(start.encoder_spec())(pixels), start.load_model().encode_images(pixels))


def test_key_depends_on_what_changes_features(training):
    spec = ModelSpec(training[0], None, INIT).encoder_spec()
    keys = {
        spec.key("fp32", "fp32"),
        spec.key("fp32", "bf16"),
        spec.key("bf16", "fp32"),
        replace(spec, merge=2).key("fp32", "fp32"),
        replace(spec, image_size=32).key("fp32", "fp32"),
        replace(spec, vision=training[0]["language"]).key("fp32", "fp32"),
    }
    assert len(keys) == 6
