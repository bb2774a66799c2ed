"""Feature packs: files with the features that a frozen vision tower computed, found by the sha256 of the image's bytes.

A pack is one safetensors file, written once: `features` (images, tokens, width), `digests` (images, 32) uint8, and
`checks` (images) int64, the CRC-32 of each image's features; its metadata holds the seconds of computation. Single
images are read by byte range from a folder or bucket, so packs may be larger than memory.
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
_MAX_HEADER_BYTES = 1 << 20  # far more than a pack's header needs
_SAFETENSORS_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def serialize_pack(digests: Sequence[bytes], features: Tensor, seconds: float) -> bytes:
    """Returns the bytes of a pack with `features` (images, tokens, width) in the order of `digests`."""
    features = features.contiguous()
    rows = features.view(torch.uint8).reshape(len(digests), -1).numpy()
    checks = torch.tensor([zlib.crc32(row.tobytes()) for row in rows], dtype=torch.int64)
    names = torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 32).copy())
    return save({"features": features, "digests": names, "checks": checks}, {"seconds": repr(seconds)})


@dataclass(frozen=True)
class FeaturePack:
    """The header of a pack: the images it holds and the position of their features in the file."""

    uri: str
    digests: list[bytes]
    checks: list[int]
    start: int  # byte offset of the first feature
    shape: tuple[int, int]  # (tokens, width)
    dtype: torch.dtype
    seconds: float

    @classmethod
    def open(cls, uri: str) -> FeaturePack:
        """Reads the header of a pack.

        Raises:
            ValueError: the file is not a pack.
        """
        store = Store(uri.rsplit("/", 1)[0])
        try:
            (length,) = struct.unpack("<Q", store.read_range(uri, 0, 8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"the header has {length} bytes")
            header = json.loads(store.read_range(uri, 8, 8 + length))
            offsets = {name: header[name]["data_offsets"] for name in ("features", "digests", "checks")}
            digests, checks = (
                store.read_range(uri, *(8 + length + offset for offset in offsets[name]))
                for name in ("digests", "checks")
            )
            _, tokens, width = header["features"]["shape"]
            dtype, seconds = _SAFETENSORS_DTYPES[header["features"]["dtype"]], float(header["__metadata__"]["seconds"])
        except (struct.error, ValueError, KeyError) as error:
            raise ValueError(
                f"{uri}: not a feature pack ({error}); delete the file, the next training recomputes it"
            ) from error
        rows = [digests[first : first + 32] for first in range(0, len(digests), 32)]
        start = 8 + length + offsets["features"][0]
        return cls(uri, rows, np.frombuffer(checks, np.int64).tolist(), start, (tokens, width), dtype, seconds)

    @property
    def size(self) -> int:
        """Bytes of one image's features."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def read(self, row: int) -> Tensor:
        """Returns the features (tokens, width) of image number `row`.

        Raises:
            ValueError: the checksum does not match.
        """
        start = self.start + row * self.size
        data = Store(self.uri.rsplit("/", 1)[0]).read_range(self.uri, start, start + self.size)
        if zlib.crc32(data) != self.checks[row]:
            raise ValueError(
                f"{self.uri}: image {row} does not match its checksum; delete the file, the next training recomputes it"
            )
        return torch.frombuffer(bytearray(data), dtype=self.dtype).reshape(self.shape)


class FeatureReader:
    """Random access to the packs below a folder. `locations` maps an image digest to its pack and row."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.packs = [FeaturePack.open(uri) for uri in Store(folder).list(folder) if uri.endswith(SUFFIX)]
        self.locations = {digest: (pack, row) for pack in self.packs for row, digest in enumerate(pack.digests)}

    def read(self, digests: Sequence[bytes]) -> Tensor:
        """Returns features (images, tokens, width) in the order of `digests`.

        Raises:
            ValueError: an image has no features, or they do not match their checksum.
        """
        missing = [digest.hex() for digest in digests if digest not in self.locations]
        if missing:
            raise ValueError(
                f"{self.folder}: no features of {len(missing)} images, the first with sha256 {missing[0]}; "
                "run the stage again to compute them"
            )
        return torch.stack([pack.read(row) for pack, row in map(self.locations.__getitem__, digests)])
