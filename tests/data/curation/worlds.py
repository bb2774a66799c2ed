"""Small sources made by hand for the curation tests."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from mgpt.data.curation import Curation, curate
from mgpt.data.download import download
from mgpt.settings.sources import CurateSettings, DatasetSettings, DownloadSettings, SourceSettings
from mgpt.storage import Store


def photo(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A picture that resembles no other: smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write_own(folder: Path, rows: list[dict[str, object]], files: dict[str, bytes], name: str = "train.jsonl") -> None:
    """Our own JSONL beside its pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    with open(folder / name, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def own_source(folder: Path, **options: object) -> SourceSettings:
    return SourceSettings(locations=(str(folder),), licence="CC0-1.0", datasets={"own": DatasetSettings(reader="jsonl", **options)})


def run(sources: dict[str, SourceSettings], store: Store, folder: str = "curated", **settings: object) -> Curation:
    manifest = download(sources, DownloadSettings(), store, lambda line: None).manifest
    chosen = CurateSettings(**({"workers": 0} | settings))
    return curate(manifest, sources, chosen, store, store.uri(folder), lambda line: None)


def rows(curation: Curation, store: Store) -> list[dict[str, object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return [row for entry in curation.manifest.entries for row in pq.read_table(pa.BufferReader(store.read(entry.uri))).to_pylist()]


def lost(curation: Curation, store: Store) -> list[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(store.read(curation.quarantine.entries[0].uri))).to_pylist()
