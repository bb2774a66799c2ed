"""How fast curation is beside the least that could be done, and whether its memory grows with the data.

    python benchmarks/curate.py [--images 2000] [--most 20000] [--side 512] [--keep FOLDER] [--out FILE]

Bare work is reading, decoding and hashing the same images in one process. Curation, on the same shards in one process, adds checks,
fingerprints, records, duplicates, Parquet and the card. Peak memory is of a fresh process for each size. The last line is JSON:
`throughput_ratio` (curation's images a second over bare's, at the size where it is smaller; goal 0.8 or more: above 1, since curation
makes a small image of a JPEG), `throughput_ratios` (at each size) and `peak_memory_growth` (peak at `--most` over peak at `--images`).
`--keep` is where images stay for another run; `--out` takes the line.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

PER_SHARD = 1000


def main() -> None:
    """Runs every size in processes of their own and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--most", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=("bare", "curate"), help="used by the benchmark itself")
    parser.add_argument("--folder", type=Path, help="used by the benchmark itself")
    asked = parser.parse_args()
    if asked.step:
        print(json.dumps(bare(asked.folder) if asked.step == "bare" else curated(asked.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        small, large = (images(asked.keep or Path(scratch), count, asked.side) for count in (asked.images, asked.most))
        found = {"bare": measure("bare", small), "curate": measure("curate", small)}
        found |= {"bare, most": measure("bare", large), "curate, most": measure("curate", large)}
    for name, row in found.items():
        print(
            f"{name:>14}: {row['pictures']:>6} images, {row['rate']:8.1f} a second and core, peak {row['peak_mb']:.0f} MB"
        )
    pairs = (("bare", "curate"), ("bare, most", "curate, most"))
    ratios = {str(found[own]["images"]): round(found[own]["rate"] / found[bare]["rate"], 3) for bare, own in pairs}
    growth = found["curate, most"]["peak_mb"] / found["curate"]["peak_mb"]
    versions = {name: version(name) for name in ("numpy", "pillow", "pyarrow", "scipy")} | {
        "python": platform.python_version()
    }
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "side": asked.side,
        "steps": found,
        "versions": versions,
    }
    smallest = {"throughput_ratio": min(ratios.values()), "throughput_ratios": ratios}
    line = json.dumps({**smallest, "peak_memory_growth": round(growth, 3), **machine})
    if asked.out:
        asked.out.write_text(line + "\n", encoding="utf-8")
    print(line)


def images(folder: Path, count: int, side: int) -> Path:
    """The folder below `folder` with `count` images; a whole one of an earlier run is used again."""
    found = folder / f"{count}-{side}"
    if not (found / "whole").exists():
        shutil.rmtree(found, ignore_errors=True)
        write_shards(found, count, side)
        (found / "whole").touch()
    return found


def write_shards(folder: Path, count: int, side: int) -> None:
    """JPEGs of smooth noise with captions, as webdataset shards of a thousand."""
    (folder / "source").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for first in range(0, count, PER_SHARD):
        with tarfile.open(folder / "source" / f"{first // PER_SHARD:05d}.tar", "w") as tar:
            for number in range(first, min(first + PER_SHARD, count)):
                small = Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8))
                file = io.BytesIO()
                small.resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
                for name, data in (
                    (f"{number:09d}.jpg", file.getvalue()),
                    (f"{number:09d}.txt", f"image number {number}".encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def measure(step: str, folder: Path) -> dict[str, float]:
    """One step in a fresh process: images, images a second of processor time, peak memory in MB."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[-1]
    )


def bare(folder: Path) -> dict[str, float]:
    """Reads, decodes and hashes every image."""
    started, images = time.process_time(), 0
    for path in sorted((folder / "source").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None and member.name.endswith(".jpg"):
                    data = file.read()
                    hashlib.sha256(data).hexdigest()
                    Image.open(io.BytesIO(data)).convert("RGB")
                    images += 1
    return result(images, time.process_time() - started)


def curated(folder: Path) -> dict[str, float]:
    """The whole curation of the same shards, in this process; downloading them is not counted."""
    from mgpt.config.sources import CurateSettings, DatasetSettings, DownloadSettings, SourceSettings
    from mgpt.curation import curate
    from mgpt.download import download
    from mgpt.storage import Store

    sources = {
        "pairs": SourceSettings(
            locations=(str(folder / "source"),), datasets={"laion": DatasetSettings(reader="laion")}
        )
    }
    shutil.rmtree(folder / "store", ignore_errors=True)
    store = Store(str(folder / "store"))
    manifest = download(sources, DownloadSettings(parallel=1), store, lambda line: None).manifest
    started = time.process_time()
    found = curate(manifest, sources, CurateSettings(workers=0), store, store.uri("curated"), lambda line: None)
    return result(found.report["records"], time.process_time() - started)


def result(images: int, seconds: float) -> dict[str, float]:
    """What a step reports."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images": images, "rate": images / seconds, "peak_mb": peak}


if __name__ == "__main__":
    main()
