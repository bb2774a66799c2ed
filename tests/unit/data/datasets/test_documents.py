"""The examples in the documentation work."""

import random
import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from mgpt.config.sources import SourceSettings
from mgpt.data.datasets import READERS
from mgpt.data.tasks import load_tasks, render

DOCUMENTS = Path(__file__).parents[4] / "docs"
PHOTOGRAPHS = files("sklearn.datasets") / "images"


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCUMENTS / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def photographs(dataset):
    for name in ("china.jpg", "flower.jpg"):
        dataset.file(name, (PHOTOGRAPHS / name).read_bytes())
    return dataset


def test_own_data_lines(photographs):
    (lines,) = blocks("own-data.md", "jsonl")
    photographs.file("mine.jsonl", lines)
    samples = photographs.samples("jsonl")
    assert [sample.task for sample in samples] == ["caption", "vqa", "refer", "instruction", "text"]
    assert render(samples[3], random.Random(0))[1]["content"] == "<p>the blossom</p> {<3><2><93><93>}"


def test_own_data_source():
    (text,) = blocks("own-data.md", "yaml")
    source = SourceSettings(**yaml.safe_load(text)["sources"]["holiday"])
    assert source.datasets["holiday"].reader in READERS


def test_tasks(photographs, tmp_path):
    tasks_file = tmp_path / "mine.yaml"
    tasks_file.write_text("\n".join(blocks("tasks.md", "yaml")))
    tasks = load_tasks(tasks_file)
    photographs.file("mine.jsonl", "".join(blocks("tasks.md", "jsonl")))
    detection, triples = photographs.samples("jsonl")
    promised = re.findall(r"The answer is trained as `(.*?)`\.", (DOCUMENTS / "tasks.md").read_text(encoding="utf-8"))
    assert [render(sample, random.Random(0), tasks=tasks)[1]["content"] for sample in (detection, triples)] == promised
    assert {"count", "detect-json", "triples"} <= set(tasks)
