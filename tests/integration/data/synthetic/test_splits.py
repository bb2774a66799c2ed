"""Splits of the shapes world, over thousands of scenes."""

import pytest

from mgpt.data.synthetic.world import coarse_content, scenes


@pytest.mark.parametrize("seeds", [(7, 7), (7, 8)], ids=["one seed", "two seeds"])
def test_splits_share_no_coarse_content(seeds: tuple[int, int]) -> None:
    train = {coarse_content(s) for s in scenes("train", 3000, seeds[0])}
    for split in ("validation", "test"):
        assert not train & {coarse_content(s) for s in scenes(split, 600, seeds[1])}  # type: ignore[arg-type]
