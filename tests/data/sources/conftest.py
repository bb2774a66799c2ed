"""A dataset's folder, written by hand."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mgpt.data.sample import Sample
from mgpt.data.sources import READERS, Problem


def jpeg(width: int = 64, height: int = 48, colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "JPEG")
    return file.getvalue()


class Dataset:
    """Files below one folder, and what a reader says of them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def file(self, path: str, content) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            target.write_bytes(content)
        else:
            target.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    def picture(self, path: str, width: int = 64, height: int = 48) -> bytes:
        data = jpeg(width, height)
        self.file(path, data)
        return data

    def read(self, reader: str) -> list[Sample | Problem]:
        return list(READERS[reader].records(READERS[reader].files(str(self.root))))

    def samples(self, reader: str) -> list[Sample]:
        records = self.read(reader)
        assert all(isinstance(record, Sample) for record in records), records
        return records

    def reasons(self, reader: str) -> list[tuple[str, str]]:
        """Source and reason of every problem."""
        return [(record.source, record.reason) for record in self.read(reader) if isinstance(record, Problem)]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def said(sample: Sample) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in sample.turns]


@pytest.fixture(name="said")
def _said():
    return said
