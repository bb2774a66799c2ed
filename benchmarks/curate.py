"""Compares curation's throughput with bare decoding, and its peak memory at two sizes.

    python benchmarks/curate.py [--images 2000] [--most 20000] [--side 512] [--keep FOLDER] [--out FILE]

Bare work is reading, decoding and hashing images in one process. Curation of the same shards in one process adds
checks, fingerprints, records, duplicates, shards and the card. Each size runs in a new process, for its peak memory.
The last line is JSON:

- `throughput_ratio`: curation's images per second over bare decoding's, at the size where it is lower. Goal: at least
  0.8. It can exceed 1, since curation decodes JPEGs at a reduced size.
- `throughput_ratios`: the same at each size.
- `peak_memory_growth`: peak at `--most` over peak at `--images`.

`--keep` names a folder where images are kept for another run; `--out` is a file for the JSON line.
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
    """Runs each step and size in its own process and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--most", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=("bare", "curate"), help="used by the benchmark itself")
    parser.add_argument("--folder", type=Path, help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(bare(arguments.folder) if arguments.step == "bare" else curated(arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        small, large = (
            images(arguments.keep or Path(scratch), count, arguments.side)
            for count in (arguments.images, arguments.most)
        )
        found = {"bare": measure("bare", small), "curate": measure("curate", small)}
        found |= {"bare, most": measure("bare", large), "curate, most": measure("curate", large)}
    for name, row in found.items():
        print(
            f"{name:>14}: {row['images']:>6} images, {row['rate']:8.1f} a second and core, peak {row['peak_mb']:.0f} MB"
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
        "side": arguments.side,
        "steps": found,
        "versions": versions,
    }
    smallest = {"throughput_ratio": min(ratios.values()), "throughput_ratios": ratios}
    line = json.dumps({**smallest, "peak_memory_growth": round(growth, 3), **machine})
    if arguments.out:
        arguments.out.write_text(line + "\n", encoding="utf-8")
    print(line)


def images(folder: Path, count: int, side: int) -> Path:
    """Returns the folder under `folder` with `count` images, which an earlier run may have completed."""
    found = folder / f"{count}-{side}"
    if not (found / "whole").exists():
        shutil.rmtree(found, ignore_errors=True)
        write_shards(found, count, side)
        (found / "whole").touch()
    return found


def write_shards(folder: Path, count: int, side: int) -> None:
    """Writes JPEGs of smooth noise with captions, as webdataset shards of a thousand."""
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
    """Runs one step in a new process: images, images per second of CPU time, peak memory in MB."""
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
    """Curates the same shards in this process; the download is not timed."""
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
    """Assembles the figures of a step."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images": images, "rate": images / seconds, "peak_mb": peak}


if __name__ == "__main__":
    main()
