"""JSON in pieces, against the standard library; and what happens when a file breaks."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt.data.datasets import streams
from mgpt.data.datasets.streams import json_rows, jsonl_rows, plain_pickle

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", 7)


def rows(data: bytes, key: str | None = None) -> list:
    return list(json_rows(io.BytesIO(data), key))


@settings(max_examples=200, deadline=None)
@given(st.lists(values, max_size=6), st.sampled_from([None, 2]), st.booleans())
def test_a_list_comes_out_as_it_went_in(content: list, indent: int | None, ascii_only: bool):
    data = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if b"\xed\xa0" not in data and b"\xed\xb0" not in data:
        assert rows(data) == [(str(number), value) for number, value in enumerate(content)]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values, max_size=6))
def test_an_object_comes_out_by_its_keys(content: dict):
    assert rows(json.dumps(content).encode()) == list(content.items())


def test_rows_below_a_key_are_found_past_everything_before():
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
def test_a_broken_list_gives_what_came_before(broken: bytes):
    stream = json_rows(io.BytesIO(broken))
    assert next(stream) == ("0", {"a": 1})
    with pytest.raises(ValueError, match=r"cannot be read|expected one of"):
        list(stream)


@pytest.mark.parametrize("data", [b"", b"  \n", b"7", b'"text"', b"\x00\x01", b"[" * 100_000])
def test_what_is_no_list_or_object_is_refused(data: bytes):
    with pytest.raises(ValueError, match=r"cannot be read|expected one of"):
        rows(data)


def test_a_byte_order_mark_and_invalid_utf8():
    assert rows(b"\xef\xbb\xbf[1]") == [("0", 1)]
    ((_, text),) = rows(b'["caf\xe9"]')
    assert text == "caf\udce9"  # which a Sample refuses, so that only this record is lost


def test_a_record_without_end_is_not_held_in_memory_for_ever(monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", 1000)
    with pytest.raises(ValueError, match="cannot be read"):
        rows(b'["' + b"a" * 100_000)


def test_lines_are_counted_with_the_empty_ones():
    found = list(jsonl_rows(io.BytesIO(b'{"a": 1}\n\n  \nnope\n[2]')))
    assert [key for key, _ in found] == ["1", "4", "5"]
    assert isinstance(found[1][1], ValueError)


def test_pickles_of_plain_values_only():
    import collections
    import pickle

    assert plain_pickle(pickle.dumps([{"a": (1, 2.5, None)}, {"b"}])) == [{"a": (1, 2.5, None)}, {"b"}]
    with pytest.raises(ValueError, match=r"wants to load collections\.OrderedDict"):
        plain_pickle(pickle.dumps(collections.OrderedDict()))
