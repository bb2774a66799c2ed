"""The toy backbones: checksums, size, and training data without the pipeline's tasks."""

import re
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from mgpt.data.synthetic.world import CANVAS, scenes
from tools.toy_backbones.__main__ import SHIPPED, check, file_checksums, recorded_checksums
from tools.toy_backbones.corpus import (
    IDENTIFY_TEMPLATES,
    LOCATION_TEMPLATES,
    SKILLS,
    examples,
    identify_question,
    locate_question,
    percent,
)
from tools.toy_backbones.language import PHASES
from tools.toy_backbones.targets import BINS, FEATURES, as_features, cell_targets, patch_targets, spread

IDENTIFIERS = ("[vqa]", "[caption]", "[grounding]", "[refer]", "[identify]", "[detection]")


def test_shipped_files_match_checksums() -> None:
    check(SHIPPED)
    assert {name.split("/")[0] for name in recorded_checksums(SHIPPED)} == {"vision", "qformer", "language"}
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 4_000_000


@pytest.mark.parametrize("fault", ["altered", "missing", "not recorded"])
def test_check_names_the_file(tmp_path: Path, fault: str) -> None:
    shutil.copytree(SHIPPED, tmp_path / "shapes")
    target = tmp_path / "shapes" / "vision" / "config.json"
    if fault == "altered":
        target.write_text(target.read_text() + " ")
    elif fault == "missing":
        target.unlink()
    else:
        target = target.with_name("stranger.json")
        target.write_text("{}")
    with pytest.raises(ValueError, match=rf"vision/{target.name}: {fault}"):
        check(tmp_path / "shapes")


def test_checksums_exclude_their_file() -> None:
    assert "SHA256SUMS" not in file_checksums(SHIPPED)


@pytest.mark.parametrize("skill", [None, *SKILLS])
def test_no_protocol_in_image_examples(skill: str | None) -> None:
    world = list(scenes("train", 200, 5))
    with_scene = [e for e in islice(examples(world, 5, ("Repeat this.",), skill), 2000) if e.scene]
    assert len(with_scene) > 1000
    for example in with_scene:
        for text, _ in example.after:
            assert "{<" not in text
            assert not any(identifier in text for identifier in IDENTIFIERS)


def test_backbones_read_train_scenes_only() -> None:
    world = list(scenes("train", 50, 5))
    assert all(e.scene is None or e.scene.split == "train" for e in islice(examples(world, 5, ("Repeat this.",)), 200))


def test_spread_is_invertible() -> None:
    pixels = np.array([0.0, 3.0, 17.5, 63.0, 64.0])
    marks = np.arange(BINS) * CANVAS / (BINS - 1)
    assert spread(pixels) @ marks == pytest.approx(pixels)


def test_targets_have_one_owner_per_thing() -> None:
    world = list(scenes("validation", 80, 3))
    dense, cells = patch_targets(world), cell_targets(world)
    assert dense.owner.sum(1).tolist() == [len(s.things) for s in world]
    for row, scene in enumerate(world):
        owned = {tuple(box) for box in dense.box[row][dense.owner[row] == 1].tolist()}
        assert owned == {t.box for t in scene.things}
        assert cells.owner[row].sum() <= len(scene.things)
    assert as_features(dense).shape == (80, 64, FEATURES)
    assert as_features(cells).shape == (80, 16, FEATURES)


def test_phases_cover_all_skills() -> None:
    assert {skill for phase in PHASES for skill in phase.shares} == {None, *SKILLS}


def test_location_questions_are_correct() -> None:
    rng = np.random.default_rng(3)
    questions = set()
    for scene in scenes("train", 300, 6):
        boxes = [tuple(percent(value) for value in thing.box) for thing in scene.things]
        if turn := locate_question(scene, rng):
            assert tuple(map(int, re.findall(r"\d+", turn[1]))) in boxes
        if turn := identify_question(scene, rng):
            assert tuple(map(int, re.findall(r"\d+", turn[0]))) in boxes
            assert any(turn[1].endswith(thing.kind) for thing in scene.things)
            questions.add(re.sub(r"\d+", "#", turn[0]))
    assert len(questions) == len(IDENTIFY_TEMPLATES) * len(LOCATION_TEMPLATES)
