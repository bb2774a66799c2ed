"""The example reader in the docstring of `mgpt.data.datasets.base`."""

import re
import textwrap
from typing import Any

import pytest

from mgpt.data.datasets import base
from mgpt.data.datasets.base import Card, Reader, RejectedRecord
from mgpt.data.types import Sample, Turn


@pytest.fixture
def reader() -> Reader:
    (source,) = re.findall(r"^    from collections.*?(?=\n2\. )", base.__doc__ or "", re.DOTALL | re.MULTILINE)
    scope: dict[str, Any] = {}
    exec(textwrap.dedent(source), scope)
    return scope["Titles"](Card("titles", "Titles", "caption", ("caption",), "titles_*.json", "2", "CC0"))


def test_sample(dataset, reader):
    image = dataset.image("images/1.jpg", 64, 48)
    dataset.file("titles_val.json", [{"file": "1.jpg", "title": "A dog."}])
    (sample,) = reader.records(reader.files(str(dataset.root)))
    assert isinstance(sample, Sample)
    assert (sample.dataset, sample.split, sample.task, sample.source) == (
        "titles",
        "validation",
        "caption",
        "titles_val.json#0",
    )
    assert (sample.images[0].data, sample.images[0].width, sample.images[0].height, sample.licence) == (
        image,
        64,
        48,
        "CC0",
    )
    assert sample.turns == (Turn("user", ""), Turn("assistant", "A dog."))


def test_reject_reasons(dataset, reader):
    dataset.image("images/1.jpg")
    dataset.file("titles_val.json", [{"file": "2.jpg", "title": "A dog."}, {"file": "1.jpg"}, 7])
    records = list(reader.records(reader.files(str(dataset.root))))
    assert all(isinstance(record, RejectedRecord) for record in records)
    assert [record.reason for record in records] == ["missing image", "missing field", "missing field"]
