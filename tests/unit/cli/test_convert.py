"""`mgpt convert`, there and back, from the command line's arguments."""

from __future__ import annotations

import argparse

import pytest
import torch

from mgpt.cli.convert import add_arguments, run
from tests.fixtures import golden_cases as golden


def convert(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(argument) for argument in arguments]))


def test_there_and_back(tmp_path, capsys):
    files = golden.files("v1")
    given = [
        "--eva-vit",
        files["eva_vit"],
        "--qformer",
        files["qformer"],
        "--sizes",
        golden.FOLDER / "v1" / "config.json",
    ]
    convert(
        "original",
        "minigpt4",
        *given,
        "--llm",
        files["llm"],
        "--released",
        files["released"],
        "--out",
        tmp_path / "ours",
    )
    convert("to-original", tmp_path / "ours", "--out", tmp_path / "back.pth")
    convert("backbones", "minigpt4", *given, "--out", tmp_path / "backbones")
    assert "ready for" in capsys.readouterr().out
    back, released = (
        torch.load(path, weights_only=True)["model"] for path in (tmp_path / "back.pth", files["released"])
    )
    assert back.keys() == released.keys()
    assert all(torch.equal(back[name], released[name]) for name in back)
    assert sorted(path.name for path in (tmp_path / "backbones").iterdir()) == ["qformer", "vision"]


def test_trained_weights_go_back_too(tmp_path, backbones):
    from tests.fixtures import tiny_models as tiny

    model = tiny.v2(backbones)
    model.save_trainable(tmp_path / "trained")
    convert(
        "to-original",
        tmp_path / "trained",
        "--base",
        f"vision={backbones['vision']}",
        "--base",
        f"language={backbones['language']}",
        "--out",
        tmp_path / "x.pth",
    )
    state = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    assert torch.equal(state["llama_proj.weight"], model.projection.weight)
    with pytest.raises(ValueError, match="has no '='"):
        convert("to-original", tmp_path / "trained", "--base", "vision", "--out", tmp_path / "y.pth")


def test_sizes_that_cannot_be_read(tmp_path):
    (tmp_path / "sizes.json").write_text("{")
    with pytest.raises(ValueError, match=r"--sizes: .* cannot be read as JSON"):
        convert(
            "backbones",
            "minigpt-v2",
            "--eva-vit",
            tmp_path,
            "--sizes",
            tmp_path / "sizes.json",
            "--out",
            tmp_path / "backbones",
        )
