"""`mgpt convert`: original files to our folders, and back."""

from __future__ import annotations

from typing import get_args

import torch

from mgpt.cli.convert import ModelName
from mgpt.cli.main import main
from mgpt.models.presets import ARCHITECTURES
from tests.fixtures import golden_cases as golden
from tests.fixtures import tiny_models as tiny


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def test_models_are_those_with_presets():
    assert set(get_args(ModelName)) == set(ARCHITECTURES)


def test_original_round_trip(tmp_path, capsys):
    files = golden.files("v1")
    vision = ["--eva-vit", files["eva_vit"], "--qformer", files["qformer"]]
    vision += ["--sizes", golden.FOLDER / "v1" / "config.json"]
    whole = [*vision, "--llm", files["llm"], "--released", files["released"], "--out", tmp_path / "ours"]
    assert convert("original", "minigpt4", *whole) == 0
    assert convert("to-original", tmp_path / "ours", "--out", tmp_path / "back.pth") == 0
    assert convert("backbones", "minigpt4", *vision, "--out", tmp_path / "backbones") == 0
    assert "ready for" in capsys.readouterr().out
    back, released = (
        torch.load(path, weights_only=True)["model"] for path in (tmp_path / "back.pth", files["released"])
    )
    assert back.keys() == released.keys()
    assert all(torch.equal(back[name], released[name]) for name in back)
    assert sorted(path.name for path in (tmp_path / "backbones").iterdir()) == ["qformer", "vision"]


def test_trained_weights_are_converted_back(tmp_path, backbones, capsys):
    model, trained = tiny.v2(backbones), tmp_path / "trained"
    model.save_trainable(trained)
    given = [part for name in ("vision", "language") for part in ("--backbone", f"{name}={backbones[name]}")]
    assert convert("to-original", trained, *given, "--out", tmp_path / "x.pth") == 0
    state = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    assert torch.equal(state["llama_proj.weight"], model.projection.weight)
    assert convert("to-original", trained, "--backbone", "vision", "--out", tmp_path / "y.pth") == 2
    assert "vision has no '='" in capsys.readouterr().err


def test_unreadable_sizes_are_refused(tmp_path, capsys):
    (tmp_path / "sizes.json").write_text("{")
    given = ["--eva-vit", tmp_path, "--sizes", tmp_path / "sizes.json", "--out", tmp_path / "backbones"]
    assert convert("backbones", "minigpt-v2", *given) == 2
    assert "sizes.json cannot be read as JSON" in capsys.readouterr().err
