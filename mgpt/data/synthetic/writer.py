"""The writer of the shapes world's files, whose bytes depend only on their content."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mgpt.data.synthetic.world import Scene, Split, draw, scenes

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PICKLE_PROTOCOL = 2  # as in the published RefCOCO files
QUALITY = 95


@dataclass(frozen=True)
class SceneImage:
    """A scene with its number, which names its files and is unique in the world."""

    number: int
    scene: Scene

    @cached_property
    def jpeg(self) -> bytes:
        """The scene as JPEG, without chroma subsampling."""
        file = io.BytesIO()
        draw(self.scene).save(file, "JPEG", quality=QUALITY, subsampling=0)
        return file.getvalue()

    @cached_property
    def png(self) -> bytes:
        """The scene as PNG."""
        file = io.BytesIO()
        draw(self.scene).save(file, "PNG")
        return file.getvalue()

    @property
    def coco_name(self) -> str:
        """The number with twelve digits, as in COCO's file names."""
        return f"{self.number:012d}"

    def rng(self, purpose: str) -> np.random.Generator:
        """Returns a generator for one purpose, independent of earlier draws."""
        digest = hashlib.sha256(f"{self.scene.seed}/{self.scene.name}/{purpose}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))


class WorldWriter:
    """Writes files below a root, and hands out scenes such that no two pools of datasets share an image."""

    def __init__(self, root: Path, seed: int, counts: Mapping[Split, int]) -> None:
        self.root = root
        self.seed = seed
        self.counts = {split: int(counts.get(split, 0)) for split in SPLITS}
        self._next = dict.fromkeys(SPLITS, 0)
        self._streams: dict[Split, Iterator[Scene]] = {split: scenes(split, 1 << 40, seed) for split in SPLITS}

    def take(self, split: Split, share: float = 1.0) -> list[SceneImage]:
        """Returns the next images of a split, its count times `share`."""
        taken = []
        for scene in islice(self._streams[split], round(self.counts[split] * share)):
            self._next[split] += 1
            taken.append(SceneImage(1_000_000 * SPLITS.index(split) + self._next[split], scene))
        return taken

    def write(self, path: str, data: bytes) -> None:
        """Writes a file below the root."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def write_json(self, path: str, content: Any) -> None:
        """Writes a JSON file."""
        self.write(path, json.dumps(content, ensure_ascii=False).encode())

    def write_lines(self, path: str, rows: Iterable[Any]) -> None:
        """Writes a JSON Lines file."""
        self.write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())

    def write_pickle(self, path: str, content: Any) -> None:
        """Writes a pickle of plain values."""
        self.write(path, pickle.dumps(content, protocol=PICKLE_PROTOCOL))

    def write_tar(self, path: str, members: Sequence[tuple[str, bytes]]) -> None:
        """Writes a tar file whose members have no owner and no time."""
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            for name, data in members:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o644
                shard.addfile(entry, io.BytesIO(data))
        self.write(path, file.getvalue())

    def write_images(self, folder: str, images: Iterable[SceneImage], name: str = "{}.jpg") -> None:
        """Writes a JPEG file per image; `name` is a template for its twelve-digit number."""
        for image in images:
            self.write(f"{folder}/{name.format(image.coco_name)}", image.jpeg)


def xywh(box: Sequence[float]) -> list[float]:
    """Converts a box to COCO's left, top, width, height."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]
