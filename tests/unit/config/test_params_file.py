"""The params file is read as DVC reads it, and every key has its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mgpt.config import load_settings
from mgpt.config.params_file import ParamsFile


@pytest.fixture
def read(tmp_path: Path):
    def read_text(text: str) -> ParamsFile:
        (tmp_path / "params.yaml").write_text(text)
        return ParamsFile.read(tmp_path / "params.yaml")

    return read_text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"yaml:2: .*duplicate key"),
        ("- 1\n", "holds list"),
        ("", "holds NoneType"),
        ("a: [1\n", r"yaml:2: not valid YAML"),
        ("a: *x\n", r"yaml:1: .*alias"),
    ],
)
def test_invalid_file_is_refused(read, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(text)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no .*params\.yaml here"):
        load_settings(tmp_path / "params.yaml", {})


def test_scalars_are_read_as_dvc_reads_them(read) -> None:
    scalars = ["1e-4", "2.5", "7", "-3", "1.e3", "'1e-4'", "1e5x", ".5", "yes", "0.0", "0o17", "010", "~", "1:30"]
    text = "".join(f"key{number}: {scalar}\n" for number, scalar in enumerate(scalars))
    ours, dvcs = read(text).values, dict(YAML(typ="safe").load(text))
    assert ours == dvcs
    assert {key: type(value) for key, value in ours.items()} == {key: type(value) for key, value in dvcs.items()}


def test_anchors_and_merge_keys(read) -> None:
    file = read("base: &base\n  x: 1\n  y: 2\nother: &other {z: 3}\nown:\n  <<: [*base, *other]\n  y: 4\nsame: *base\n")
    assert file.values["own"] == {"x": 1, "y": 4, "z": 3}
    assert file.values["same"] == {"x": 1, "y": 2}
    assert [file.line(("own", key)) for key in "xyz"] == [2, 7, 4]


def test_line_of_absent_key_is_its_section(read) -> None:
    file = read("a:\n  b:\n    - 1\n    - c: 2\n")
    assert file.line(("a", "b", 1, "c")) == 4
    assert file.line(("a", "b", 0)) == 3
    assert file.line(("a", "d")) == 1
    assert file.line(("e",)) == 0


def test_select_matches_keys_and_items(read) -> None:
    file = read("m:\n  one: {t: [x, y]}\n  two: {t: z, u: 1}\n")
    assert list(file.select("m", "*", "t", "*")) == [(("m", "one", "t", 0), "x"), (("m", "one", "t", 1), "y")]
    assert dict(file.select("m", "*", "u")) == {("m", "two", "u"): 1}
    assert file.names("m", "*") == {"one", "two"}
