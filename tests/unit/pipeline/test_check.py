"""Every name in the params file must exist; all errors are reported at once, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt.config import ConfigError, ConfigIssue, load_settings
from mgpt.pipeline.check import load_checked_settings

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def edited(*edits: tuple[str, str]) -> tuple[str, dict[str, ConfigIssue]]:
    """Returns the default params file after edits, and the issues of it by key."""
    text = (ROOT / "params.yaml").read_text()
    for before, after in edits:
        assert before in text, before
        text = text.replace(before, after, 1)
    Path("params.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_checked_settings("params.yaml", {})
    assert all(str(issue) in str(caught.value) for issue in caught.value.issues)
    return text, {issue.key: issue for issue in caught.value.issues}


@pytest.mark.parametrize("path", ["params.yaml", "recipes/a100.yaml"])
def test_shipped_files_are_valid(path: str) -> None:
    assert load_checked_settings(ROOT / path, {}) == load_settings(ROOT / path, {})


def test_eight_errors_are_reported_at_once_with_their_lines() -> None:
    text, found = edited(
        ("laion: {reader: laion,", "laion: {reader: lajon,"),  # unknown reader
        ("    compare: [description_", "    compare: [beauty, description_"),  # unknown metric
        ("      vqa: {examples: 400", "      poetry: {examples: 400}\n      vqa: {examples: 400"),  # unknown task
        ("    steps: 500\n", "    steps: many\n"),  # wrong type
        ("  images: 900", "  review: no/such/review.csv\n  images: 900"),  # missing file
        ("    warmup_steps: 5\n", "    warmup_steps: 500\n"),  # impossible: more than steps
        ("    micro_batch_size: 20\n", "    micro_batch_size: 2000\n"),  # impossible: more than global_batch_size
        ("rows_per_shard: 1000", "rows_per_shardd: 1000"),  # misspelt key
    )
    expected = {
        "sources.world.datasets.laion.reader": "reader: lajon",
        "curate.rows_per_shardd": "rows_per_shardd",
        "pretrain.minigpt4.micro_batch_size": "micro_batch_size: 2000",
        "describe.review": "review: no/such/review.csv",
        "multitask.minigpt-v2.steps": "steps: many",
        "instruct.minigpt4.warmup_steps": "warmup_steps: 500",
        "evaluate.minigpt-v2.tasks.poetry": "poetry: {",
        "promote.minigpt4.compare[0]": "compare: [beauty",
    }
    assert set(found) == set(expected)
    lines = text.splitlines()
    for key, part in expected.items():
        assert part in lines[found[key].line - 1], key
        assert found[key].source == f"params.yaml:{found[key].line}"
    assert "laion" in found["sources.world.datasets.laion.reader"].fix


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("format: minigpt4-caption", "format: minigpt5", "pretrain.minigpt4.format"),
        ("cc_sbu: caption-bare}", "cc_sbu: limerick}", "pretrain.minigpt4.tasks.cc_sbu"),
        ("vocabulary: shapes", "vocabulary: no/such.yaml", "describe.filters.vocabulary"),
        ("vision: backbones/vision", "vision: backbones/visions", "models.minigpt4.vision"),
        ("ceilings: {description_", "ceilings: {x_", "promote.minigpt4.ceilings.x_degeneration_rate"),
        (
            "    generation: {workers: 2",
            "    vocabulary: nowhere\n    generation: {workers: 2",
            "evaluate.minigpt4.vocabulary",
        ),
    ],
)
def test_unknown_name_is_found(before: str, after: str, key: str) -> None:
    text, found = edited((before, after))
    assert set(found) == {key}
    added = after.splitlines()[0].strip()
    assert added in text.splitlines()[found[key].line - 1]
    assert found[key].fix


def test_evaluation_format_must_exist() -> None:
    text = (ROOT / "params.yaml").read_text()
    section = text[text.index("\nevaluate:") :].split("generation")[0]
    _, found = edited((section, section.replace("format: minigpt4\n", "format: minigpt5\n")))
    assert set(found) == {"evaluate.minigpt4.format"}


def test_malformed_vocabulary_is_refused() -> None:
    Path("mine.yaml").write_text("verbs: {run: []}\n")
    _, found = edited(("vocabulary: shapes", "vocabulary: mine.yaml"))
    assert "nouns" in found["describe.filters.vocabulary"].rule


def test_names_are_checked_in_invalid_sections_too() -> None:
    _, found = edited(("    steps: 240\n", ""), ("format: minigpt4-caption", "format: minigpt5"))
    assert set(found) == {"pretrain.minigpt4.steps", "pretrain.minigpt4.format"}
