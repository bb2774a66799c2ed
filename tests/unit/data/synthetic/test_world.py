"""Scenes are deterministic, disjoint between splits, and drawn exactly within their boxes."""

import numpy as np
import pytest

from mgpt.data.synthetic.world import BACKGROUNDS, CANVAS, COLOURS, SIGN_WORDS, draw, scenes, split_of


def test_scenes_are_deterministic() -> None:
    short, long = list(scenes("test", 20, 7)), list(scenes("test", 40, 7))
    assert short == long[:20]
    assert all(split_of(s) == s.split == "test" for s in long)
    assert [s.name for s in short[:2]] == ["test-000000", "test-000001"]
    assert np.array_equal(np.asarray(draw(short[3])), np.asarray(draw(long[3])))
    assert short != list(scenes("test", 20, 8))


def test_things_do_not_overlap() -> None:
    for scene in scenes("train", 300, 3):
        assert 1 <= len(scene.things) <= 4
        boxes = [t.box for t in scene.things] + ([scene.sign.box] if scene.sign else [])
        for i, a in enumerate(boxes):
            assert 0 < a[0] < a[2] <= CANVAS
            assert 0 < a[1] < a[3] <= CANVAS
            assert all(a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1] for b in boxes[i + 1 :])


def test_boxes_match_drawings() -> None:
    for scene in scenes("train", 60, 5):
        if len(scene.things) > 1 or scene.sign:
            continue
        image = np.asarray(draw(scene)).astype(int)
        thing = scene.things[0]
        near = np.abs(image - COLOURS[thing.colour]).sum(-1) < np.abs(image - BACKGROUNDS[scene.background]).sum(-1)
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == pytest.approx(thing.box, abs=1)


def test_words_are_distinct() -> None:
    plates = {}
    for scene in scenes("train", 600, 9):
        if scene.sign and scene.sign.word not in plates:
            x1, y1, x2, y2 = (int(v) for v in scene.sign.box)
            plates[scene.sign.word] = np.asarray(draw(scene))[y1:y2, x1:x2].mean(-1) < 100
    assert set(plates) == set(SIGN_WORDS)
    ink = list(plates.values())
    assert all((a != b).sum() >= 8 for i, a in enumerate(ink) for b in ink[i + 1 :])
