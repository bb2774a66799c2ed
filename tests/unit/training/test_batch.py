import torch

from mgpt.training.batch import Batch, cut_by_length, cut_packed
from tests.fixtures.toy_training import collate, step_rows


def test_bytes_round_trip():
    batch = collate(list(step_rows(1)))
    again = Batch.from_bytes(batch.to_bytes())
    assert again.ids == batch.ids
    assert again.tensors.keys() == batch.tensors.keys()
    assert all(torch.equal(again.tensors[name], batch.tensors[name]) for name in batch.tensors)


def test_cut_by_length_keeps_rows_with_their_images():
    lengths, images = [3, 9, 4, 8, 2], [1, 0, 2, 1, 0]
    ids = torch.zeros(5, 9, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = row + 1
    mask = (ids > 0).long()
    pixels = torch.tensor([0.0, 2.0, 2.5, 3.0])[:, None]  # of rows 0, 2, 2, 3
    batches = cut_by_length(
        {"input_ids": ids, "attention_mask": mask, "labels": ids, "pixel_values": pixels}, list("abcde"), images, 2
    )
    assert [batch.ids for batch in batches] == [("e", "a"), ("c", "d"), ("b",)]
    assert [batch.tensors["input_ids"].shape[1] for batch in batches] == [3, 8, 9]
    assert [
        batch.tensors["pixel_values"].flatten().tolist() if "pixel_values" in batch.tensors else None
        for batch in batches
    ] == [
        [0],
        [2, 2.5, 3],
        None,
    ]
    for batch in batches:
        rows = [int(row.max()) - 1 for row in batch.tensors["input_ids"]]
        assert ["abcde"[row] for row in rows] == list(batch.ids)
        assert batch.tensors["attention_mask"].sum(1).tolist() == [lengths[row] for row in rows]


def test_single_gives_one_packed_row_per_batch():
    whole = collate(list(step_rows(1)))
    cut = (whole.tensors, whole.ids, [1] * len(whole.ids), 100, 16)  # room for many rows in a batch
    assert max(len(batch.tensors["input_ids"]) for batch in cut_packed(*cut)) > 1
    single = cut_packed(*cut, single=True)
    assert {len(batch.tensors["input_ids"]) for batch in single} == {1}
    assert sorted(name for batch in single for name in batch.ids) == sorted(whole.ids)
    assert all(batch.inputs("varlen")["max_length_q"] <= 16 for batch in single)


def test_packed_batches_hold_every_sample_once():
    whole = collate(list(step_rows(1)))
    images = [1] * len(whole.ids)
    batches = cut_packed(whole.tensors, whole.ids, images, 4, 16)
    assert sorted(name for batch in batches for name in batch.ids) == sorted(whole.ids)
    assert sum(batch.sizes()[1] for batch in batches) == whole.sizes()[1]
    again = Batch.from_bytes(batches[0].to_bytes()).inputs("sdpa")
    assert set(again) == {"input_ids", "labels", "position_ids", "pixel_values", "attention_mask"}
    assert again["attention_mask"].shape[2:] == (again["input_ids"].shape[1],) * 2
