"""The training stream: exact shares, epochs without repeats, random access, independence of workers."""

import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.data.mixture import BLOCK, Mixture, Permutation, balanced_weights, sample_rng

# Ratios of the released third-stage configuration of MiniGPT-v2 (original code, minigptv2_finetune.yaml).
RELEASED = {
    "multitask_conversation": 50,
    "llava_conversation": 30,
    "unnatural_instructions": 10,
    "refvg": 40,
    "llava_detail": 20,
    "llava_reason": 80,
    "flickr_grounded_caption": 80,
    "flickr_caption_to_phrase": 80,
    "flickr_object_to_phrase": 80,
    "coco_caption": 10,
    "textcaps": 30,
    "refcoco": 25,
    "refcocop": 25,
    "refcocog": 25,
    "invrefcoco": 10,
    "invrefcocop": 10,
    "invrefcocog": 10,
    "vqav2": 15,
    "okvqa": 8,
    "aokvqa": 12,
    "gqa": 50,
    "ocrvqa": 30,
}


def released(batch: int = 20, seed: int = 3) -> Mixture:
    return Mixture(seed, RELEASED, {name: 1000 + 37 * number for number, name in enumerate(RELEASED)}, batch)


def test_shares_after_ten_thousand_samples():
    mixture = released()
    realized = mixture.realized_shares(500)
    drawn = Counter(ref.dataset for step in range(500) for ref in mixture.batch(step))
    for name, ratio in RELEASED.items():
        declared = ratio / sum(RELEASED.values())
        assert drawn[name] == realized[name] * 10_000
        assert abs(drawn[name] - declared * 10_000) <= max(1.5, 0.01 * declared * 10_000), name


def test_shares_hold_for_every_prefix():
    mixture = released()
    for step in (1, 7, 123, BLOCK // 20, BLOCK // 20 + 1, 40_000):
        for name, count in mixture.counts(step).items():
            declared = mixture.shares[name] * step * 20
            assert abs(count - declared) <= 2 + step * 20 / BLOCK, (step, name)


def test_epochs_are_permutations():
    mixture = Mixture(1, {"small": 3, "large": 1}, {"small": 100, "large": 100_000}, 8)
    refs = [ref for step in range(60) for ref in mixture.batch(step) if ref.dataset == "small"]
    epochs = [[ref.index for ref in refs if ref.epoch == epoch] for epoch in (0, 1, 2)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [ref.epoch for ref in refs] == sorted(ref.epoch for ref in refs)


def test_epochs_span_blocks():
    mixture = Mixture(5, {"a": 1, "b": 2}, {"a": 30_000, "b": 7}, 1)
    seen = [ref.index for ref in map(mixture.sample_ref, range(2 * BLOCK)) if ref.dataset == "a"]
    assert len(set(seen[:30_000])) == 30_000


def test_steps_have_random_access():
    walked = [released().batch(step) for step in range(5)]
    mixture = released()
    for step in (4, 0, 3, 1, 2):
        assert mixture.batch(step) == walked[step]
    assert [ref.position for ref in mixture.batch(3)] == list(range(60, 80))


def test_batch_size_does_not_change_the_stream():
    coarse, fine = released(batch=20), released(batch=5)
    assert coarse.batch(1) == [ref for step in range(4, 8) for ref in fine.batch(step)]


def test_weights_are_unordered_and_relative():
    sizes = {"a": 50, "b": 60}
    assert Mixture(1, {"a": 1, "b": 2}, sizes, 16).batch(9) == Mixture(1, {"b": 4, "a": 2}, sizes, 16).batch(9)
    assert Mixture(1, {"a": 1, "b": 2}, sizes, 16).batch(9) != Mixture(2, {"a": 1, "b": 2}, sizes, 16).batch(9)


def test_mixture_is_picklable():
    mixture = released()
    mixture.batch(2)
    assert pickle.loads(pickle.dumps(mixture)).batch(7) == mixture.batch(7)


def test_huge_datasets():
    mixture = Mixture(0, {"laion": 115, "cc_sbu": 14}, {"laion": 115_000_000, "cc_sbu": 14_000_000}, 96)
    refs = mixture.batch(399_999)
    assert {ref.dataset for ref in refs} == {"laion", "cc_sbu"}
    assert all(0 <= ref.index < mixture.sizes[ref.dataset] for ref in refs)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 9))
def test_permutation_is_a_bijection(size: int, key: int):
    permutation = Permutation(size, key)
    values = [permutation[index] for index in range(size)]
    assert sorted(values) == list(range(size))
    assert permutation.values(np.arange(size)).tolist() == values


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1, max_size=4), st.floats(1e-6, 1e6), min_size=1, max_size=30), st.integers(1, 64)
)
def test_any_weights_give_their_shares(weights: dict[str, float], batch: int):
    mixture = Mixture(0, weights, dict.fromkeys(weights, 11), batch)
    counts = mixture.counts(100)
    assert sum(counts.values()) == 100 * batch
    for name, count in counts.items():
        assert abs(count - mixture.shares[name] * 100 * batch) <= 2 + len(weights) * 100 * batch / BLOCK


def test_all_errors_are_reported():
    with pytest.raises(
        ValueError,
        match=r"weight of a is -1.*b has a weight but 0 rows.*c has .* no known number.*global_batch_size is 0",
    ):
        Mixture(0, {"a": -1, "b": 1, "c": 2}, {"a": 5, "b": 0}, 0)
    with pytest.raises(ValueError, match="no dataset has a weight above 0"):
        Mixture(0, {"a": 0}, {"a": 5}, 4)


def test_weight_of_zero():
    assert Mixture(0, {"a": 0, "b": 1}, {"b": 3}, 4).realized_shares(10) == {"b": 1.0}


def test_balanced_weights():
    weights = balanced_weights({"refcoco": "refer", "refcocog": "refer", "vqav2": "vqa", "flickr": "grounding"})
    assert weights == pytest.approx({"refcoco": 1 / 6, "refcocog": 1 / 6, "vqav2": 1 / 3, "flickr": 1 / 3})


def test_sample_rng_is_a_function_of_seed_and_position():
    assert sample_rng(1, 5).random() == sample_rng(1, 5).random()
    assert len({sample_rng(seed, position).random() for seed in range(5) for position in range(50)}) == 250


def test_draw_counts():
    mixture = Mixture(seed=3, weights={"a": 3, "b": 1}, sizes={"a": 7, "b": 50}, global_batch_size=4)
    refs = [ref for step in range(30) for ref in mixture.batch(step)]
    draws = mixture.draw_counts(30)
    for name, size in mixture.sizes.items():
        assert draws[name].tolist() == [
            sum((ref.dataset, ref.index) == (name, row) for ref in refs) for row in range(size)
        ]
    assert draws["a"].min() > 1 > draws["b"].min()
