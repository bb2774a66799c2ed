"""Shards in a bucket."""

from mgpt.data.shards import SampleReader, image_digests, scan_samples, write_shard
from mgpt.data.types import Sample, SampleImage, Turn
from mgpt.storage import Store


def sample(number: int) -> Sample:
    return Sample.create(
        dataset="made",
        split="train",
        task="caption",
        images=(SampleImage(bytes([number]) * 50_000, 64, 48),),
        turns=(Turn("user", ""), Turn("assistant", f"number {number}")),
    )


def test_samples_of_a_bucket(bucket):
    store = Store(bucket)
    uri = store.uri("0.lance")
    rows = write_shard(store, uri, map(sample, range(50)))
    shard = store.entry("made/train/0.lance", uri, dataset="made", split="train", rows=rows)
    wanted = [31, 2, 2, 49]
    assert SampleReader({"made": [shard]}).read([("made", index) for index in wanted]) == list(map(sample, wanted))
    assert list(scan_samples(uri)) == list(map(sample, range(50)))
    assert image_digests(uri)[0].tolist() == [bytes.fromhex(sample(n).images[0].sha256) for n in range(50)]
