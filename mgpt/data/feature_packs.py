"""Features of images as files: what a frozen tower made of each distinct image, found by the sha256 of the image's encoded bytes.

A pack is one safetensors file, written whole: `features` (images, tokens, width), `digests` (images, 32) uint8, `checks` (images) int64,
the CRC-32 of each image's features; its metadata says how many seconds of computing went into it. A reader takes single images out of
packs by their place, so packs may be larger than memory, here or in a bucket.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from mgpt.storage import Store

SUFFIX = ".safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_HEAD_BYTES = 1 << 20  # more than any head has
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def serialize_pack(digests: Sequence[bytes], features: Tensor, seconds: float) -> bytes:
    """The file of a pack: `features` (images, tokens, width) in the order of `digests`."""
    features = features.contiguous()
    rows = features.view(torch.uint8).reshape(len(digests), -1).numpy()
    checks = torch.tensor([zlib.crc32(row.tobytes()) for row in rows], dtype=torch.int64)
    names = torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 32).copy())
    return save({"features": features, "digests": names, "checks": checks}, {"seconds": repr(seconds)})


@dataclass(frozen=True)
class FeaturePack:
    """The head of a pack: which images it holds, and where in the file their features lie."""

    uri: str
    digests: list[bytes]
    checks: list[int]
    start: int  # byte of the first feature
    shape: tuple[int, int]  # (tokens, width)
    dtype: torch.dtype
    seconds: float

    @classmethod
    def open(cls, uri: str) -> FeaturePack:
        """Reads a pack's head. Raises ValueError for a file that is none."""
        store = Store(uri.rsplit("/", 1)[0])
        try:
            (length,) = struct.unpack("<Q", store.read_range(uri, 0, 8))
            if length > _HEAD_BYTES:
                raise ValueError(f"a head of {length} bytes")
            head = json.loads(store.read_range(uri, 8, 8 + length))
            parts = {name: head[name]["data_offsets"] for name in ("features", "digests", "checks")}
            names, checks = (
                store.read_range(uri, *(8 + length + at for at in parts[name])) for name in ("digests", "checks")
            )
            _, tokens, width = head["features"]["shape"]
            rest = ((tokens, width), _STORED[head["features"]["dtype"]], float(head["__metadata__"]["seconds"]))
        except (struct.error, ValueError, KeyError) as error:
            raise ValueError(
                f"{uri}: no pack of features ({error}); delete it, and the next training computes it again"
            ) from error
        digests = [names[at : at + 32] for at in range(0, len(names), 32)]
        return cls(uri, digests, np.frombuffer(checks, np.int64).tolist(), 8 + length + parts["features"][0], *rest)

    @property
    def size(self) -> int:
        """Bytes of one image's features."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def read(self, row: int) -> Tensor:
        """Features (tokens, width) of image number `row`. Raises ValueError when they are not what was written."""
        start = self.start + row * self.size
        found = Store(self.uri.rsplit("/", 1)[0]).read_range(self.uri, start, start + self.size)
        if zlib.crc32(found) != self.checks[row]:
            raise ValueError(
                f"{self.uri}: image {row} was altered; delete the file, and the next training computes it again"
            )
        return torch.frombuffer(bytearray(found), dtype=self.dtype).reshape(self.shape)


class FeatureReader:
    """Random access to the features below a folder. `places`: image digest -> (pack, row)."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.packs = [FeaturePack.open(uri) for uri in Store(folder).list(folder) if uri.endswith(SUFFIX)]
        self.locations = {digest: (pack, row) for pack in self.packs for row, digest in enumerate(pack.digests)}

    def read(self, digests: Sequence[bytes]) -> Tensor:
        """(images, tokens, width), in the order asked for. Raises ValueError for an image that is not there or was altered."""
        absent = [digest.hex() for digest in digests if digest not in self.locations]
        if absent:
            what = f"{self.folder}: no features of {len(absent)} images, the first with sha256 {absent[0]}"
            raise ValueError(f"{what}; start the stage again, which computes what is not there")
        return torch.stack([pack.read(row) for pack, row in map(self.locations.__getitem__, digests)])
