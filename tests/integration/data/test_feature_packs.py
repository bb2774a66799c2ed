"""Feature packs in a folder and in a bucket."""

import hashlib

import pytest
import torch

from mgpt.data.feature_packs import FeaturePack, FeatureReader, serialize_pack
from mgpt.storage import Store


def image_digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()


IMAGES = [bytes([number]) * 9 for number in range(5)]


def write(root: str, name: str, numbers: list[int], dtype: torch.dtype) -> torch.Tensor:
    features = torch.randn(len(numbers), 3, 4, generator=torch.Generator().manual_seed(numbers[0])).to(dtype)
    store = Store(root)
    store.write(
        store.uri(f"{name}.safetensors"),
        serialize_pack([image_digest(IMAGES[number]) for number in numbers], features, 2.5),
    )
    return features


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_read_across_packs(tmp_path, dtype):
    first, second = write(str(tmp_path), "a", [0, 1], dtype), write(str(tmp_path), "b", [3, 2], dtype)
    reader = FeatureReader(str(tmp_path))
    found = reader.read([image_digest(IMAGES[number]) for number in (2, 0, 2, 1)])
    assert found.dtype == dtype
    assert torch.equal(found, torch.stack([second[1], first[0], second[1], first[1]]))
    assert {pack.seconds for pack in reader.packs} == {2.5}


def test_read_from_bucket(bucket):
    features = write(bucket, "a", [4, 0, 1], torch.float32)
    assert torch.equal(FeatureReader(bucket).read([image_digest(IMAGES[1])])[0], features[2])


def test_missing_image(tmp_path):
    write(str(tmp_path), "a", [0], torch.float32)
    with pytest.raises(ValueError, match=f"no features of 1 images.*{image_digest(IMAGES[4]).hex()}"):
        FeatureReader(str(tmp_path)).read([image_digest(IMAGES[4])])


def test_altered_byte(tmp_path):
    features = write(str(tmp_path), "a", [0, 1], torch.float32)
    path = tmp_path / "a.safetensors"
    content = bytearray(path.read_bytes())
    content[FeaturePack.open(str(path)).start + features[0].nbytes] ^= 1  # the second image's first byte
    path.write_bytes(content)
    reader = FeatureReader(str(tmp_path))
    assert torch.equal(reader.read([image_digest(IMAGES[0])])[0], features[0])
    with pytest.raises(ValueError, match=r"a\.safetensors: image 1"):
        reader.read([image_digest(IMAGES[1])])


@pytest.mark.parametrize("content", [b"", b"12345678", b"\x02\0\0\0\0\0\0\0{}"])
def test_file_is_not_a_pack(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: not a feature pack"):
        FeatureReader(str(tmp_path))
