"""Object vocabularies."""

import pytest

from mgpt.data.vocabulary import load_vocabulary


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a small red circle and two blue squares", ["red circle", "blue square"]),
        ("a red small disc", ["red circle"]),
        ("a circle", ["circle"]),
        ("red and a circle over there, crosses", ["circle", "cross"]),
        ("an orange orange cross", ["orange cross"]),
        ("a sign that says cat", []),
    ],
)
def test_shapes(text, expected):
    assert load_vocabulary("shapes").mentions(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two men eat a hot dog beside a dog.", ["person", "hot dog", "dog"]),
        ("a train at the train station", ["train"]),
        ("knives, benches, buses and teddy bears", ["knife", "bench", "bus", "teddy bear"]),
        ("a glass vase on a glass table", ["vase", "dining table"]),
        ("a polar bear", ["bear"]),
        ("a man in a bow tie on a fire truck next to a fire hydrant", ["person", "tie", "truck", "fire hydrant"]),
    ],
)
def test_coco(text, expected):
    assert load_vocabulary("coco").mentions(text) == expected


def test_coco_has_80_classes():
    assert len(set(load_vocabulary("coco").nouns.values())) == 80


def test_noun_alone_matches_any_attribute():
    shapes = load_vocabulary("shapes")
    assert shapes.is_present("circle", ["red circle"])
    assert not shapes.is_present("blue circle", ["red circle"])
    assert not load_vocabulary("coco").is_present("bear", ["teddy bear"])


def test_own_file(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("nouns: {fruit: [apple, pear]}\n")
    assert load_vocabulary(str(own)).mentions("pears and apples") == ["fruit", "fruit"]


@pytest.mark.parametrize("content", ["[]", "nouns: {}", "nouns: {a: []}\nverbs: {}", ""])
def test_invalid_file(tmp_path, content):
    own = tmp_path / "own.yaml"
    own.write_text(content)
    with pytest.raises(ValueError, match="must be a mapping with 'nouns'"):
        load_vocabulary(str(own))


def test_unknown_name():
    with pytest.raises(ValueError, match="use one of coco, shapes"):
        load_vocabulary("imagenet")
