"""Streaming of JSON, compared with Python's json, and of damaged files."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.data.datasets import streams
from mgpt.data.datasets.streams import json_rows, jsonl_rows, plain_pickle
from mgpt.data.types import Sample, Turn

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(streams, "JSON_CHUNK", 7)


def rows(data: bytes, key: str | None = None) -> list:
    return list(json_rows(io.BytesIO(data), key))


@settings(max_examples=200, deadline=None)
@given(st.lists(values, max_size=6), st.sampled_from([None, 2]), st.booleans())
def test_list_rows(content: list, indent: int | None, ascii_only: bool):
    data = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if b"\xed\xa0" not in data and b"\xed\xb0" not in data:
        assert rows(data) == [(str(number), value) for number, value in enumerate(content)]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=6))
def test_object_rows(content: dict):
    assert rows(json.dumps(content).encode()) == list(content.items())


def test_rows_under_a_key():
    data = json.dumps(
        {
            "info": {"data": [9]},
            "licences": [1, [2], {"data": 3}],
            "n": 12345678901234567890,
            "data": [{"a": 1}, {"a": 2}],
            "end": 1,
        }
    ).encode()
    assert rows(data, "data") == [("0", {"a": 1}), ("1", {"a": 2})]
    with pytest.raises(ValueError, match="no 'nothing'"):
        rows(data, "nothing")


@pytest.mark.parametrize(
    "broken", [b'[{"a": 1}, {"a": 2', b'[{"a": 1} {"a": 2}]', b'[{"a": 1}, nope]', b'[{"a": 1},', b'[{"a": 1}']
)
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_rows_before_damage_are_given(broken: bytes, chunk: int, monkeypatch):
    monkeypatch.setattr(streams, "JSON_CHUNK", chunk)
    stream = json_rows(io.BytesIO(broken))
    assert next(stream) == ("0", {"a": 1})
    with pytest.raises(ValueError, match=r"not valid JSON near byte \d+"):
        list(stream)


@pytest.mark.parametrize("data", [b"", b"  \n", b"7", b'"text"', b"\x00\x01"])
def test_neither_list_nor_object(data: bytes):
    with pytest.raises(ValueError, match="not valid JSON"):
        rows(data)


def test_endless_nesting(monkeypatch):
    for chunk in (7, 4096):
        monkeypatch.setattr(streams, "JSON_CHUNK", chunk)
        with pytest.raises(ValueError, match="levels deep"):
            rows(b"[" * 100_000)


@pytest.mark.parametrize("content", [[], {}, [{"a": {"b": [1]}}, 2], {"a": {"b": 1}, "": {"c": 2}}])
def test_rows_under_a_key_of_any_kind(content):
    data = json.dumps({"first": [1, {"data": 2}], "data": content, "last": {"data": [7]}}).encode()
    expected = list(content.items()) if isinstance(content, dict) else [(str(i), row) for i, row in enumerate(content)]
    assert rows(data, "data") == expected


def test_byte_order_mark():
    assert rows(b"\xef\xbb\xbf[1]") == [("0", 1)]


@pytest.mark.parametrize("text", [b"caf\xe9", rb"caf\ud83d", rb"caf\udce9", rb"caf\ude00\ud83d", rb"caf\\\ud83d x"])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_invalid_unicode_costs_one_record(text: bytes, chunk: int, monkeypatch):
    monkeypatch.setattr(streams, "JSON_CHUNK", chunk)
    (_, before), (_, broken), (_, after) = rows(rb'["\ud83d\ude00", "' + text + rb'", "\\ud83d"]')
    assert (before, after) == ("\N{GRINNING FACE}", r"\ud83d")
    assert broken.startswith("caf")
    fields = {"dataset": "d", "split": "train", "task": "text", "images": ()}
    with pytest.raises(ValueError, match="UTF-8"):
        Sample.create(turns=(Turn("user", broken),), **fields)


def test_record_without_end_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(streams, "MAX_RECORD", 1000)
    file = io.BytesIO(b'["' + b"a" * 100_000)
    with pytest.raises(ValueError, match="longer than 1000 bytes"):
        list(json_rows(file))
    assert file.tell() < 2000


def test_empty_lines_count():
    found = list(jsonl_rows(io.BytesIO(b'{"a": 1}\n\n  \nnope\n[2]')))
    assert [key for key, _ in found] == ["1", "4", "5"]
    assert isinstance(found[1][1], ValueError)


def test_pickle_with_classes_is_rejected():
    import collections
    import pickle

    assert plain_pickle(pickle.dumps([{"a": (1, 2.5, None)}, {"b"}])) == [{"a": (1, 2.5, None)}, {"b"}]
    with pytest.raises(ValueError, match=r"collections\.OrderedDict"):
        plain_pickle(pickle.dumps(collections.OrderedDict()))
