"""Measures how many samples a second Ray Data feeds, and how long training waits for data at the model's own speed.

Captioned scenes of the shapes world go through the real path: Parquet shards, decoding, rendering, tokenising and
collating in Ray Data's tasks, and Ray's object store. Three measurements, on a local Ray of `--cpus`:
1. `process`: one process that builds batches, without Ray: the rate of one core;
2. `feed`: a reader that does nothing but unpack: the rate of Ray Data;
3. `train`: the shapes world's minigpt-v2 trains on the stream: the curve's data wait, after the first rows.

Run: python benchmarks/ingest.py [--samples 512] [--steps 40] [--batch 32] [--cpus 2] [--out FILE]. The last line is
JSON: samples a second of each, `data_wait_percent` and `headroom` (fed / trained samples a second).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from train_step import machine

from mgpt.config.training import TrainingSettings
from mgpt.data.shards import write_shard
from mgpt.data.synthetic import language
from mgpt.data.synthetic.world import draw, scenes
from mgpt.data.types import Sample, SampleImage, Turn
from mgpt.execution.data_feed import BatchBuilder, DataPlan, stream, worker_dataset
from mgpt.models.loading import ModelSpec
from mgpt.storage import Manifest, Store
from mgpt.training.callbacks.metrics_logger import MetricsLogger
from mgpt.training.data_parallel import DataParallel
from mgpt.training.lr_scheduler import make_lr_scheduler
from mgpt.training.optimizer import make_optimizer
from mgpt.training.prefetch import prefetch
from mgpt.training.trainer import Trainer
from mgpt.training.types import TOTALS

BACKBONES = Path(__file__).parents[1] / "mgpt" / "models" / "shapes"
ROWS = 4  # of the curve; the first two, in which queues fill, are excluded


def write_samples(store: Store, count: int) -> Manifest:
    """Writes captioned scenes as one shard of curated samples."""
    samples = []
    for scene in scenes("train", count, 3):
        image = io.BytesIO()
        drawn = draw(scene)
        drawn.save(image, "PNG")
        turns = (Turn("user", ""), Turn("assistant", language.caption(scene, np.random.default_rng(scene.index))))
        about: dict[str, Any] = {
            "split": "train",
            "task": "caption",
            "licence": "",
            "source": f"scene#{scene.index}",
            "turns": turns,
        }
        images = (SampleImage(image.getvalue(), drawn.width, drawn.height),)
        samples.append(Sample.create(dataset="scenes", images=images, **about))
    uri = store.uri("data", "scenes", "train", "0.lance")
    write_shard(store, uri, samples)
    return Manifest([store.entry("scenes/train/0.lance", uri, dataset="scenes", split="train", rows=count)])


def process_rate(plan: DataPlan, steps: int) -> float:
    """Returns the samples a second that one process builds into batches."""
    builder = BatchBuilder(plan)
    list(builder.batches([0], 0, 1))
    began = time.perf_counter()
    for batches in builder.batches(range(1, steps), 0, 1):
        for batch in batches:
            batch.to_bytes()
    return (steps - 1) * plan.global_batch_size / (time.perf_counter() - began)


def feed_rate(plan: DataPlan) -> float:
    """Returns the samples a second that Ray Data feeds with processes that have started and are warm."""
    for _ in range(2):  # the first pass starts them
        began = time.perf_counter()
        number = sum(1 for _ in stream(worker_dataset(plan, 0, 0, 1, 1).iterator()))
    return number * plan.global_batch_size / (time.perf_counter() - began)


def train_rate(plan: DataPlan, settings: TrainingSettings) -> dict[str, float]:
    """Returns the averages of the last rows of the curve."""
    model = plan.model.load_model().train()
    parameters = model.trainable_parameters()
    curve = MetricsLogger(settings.log_every)
    parallel, device = DataParallel(parameters, len(TOTALS)), torch.device("cpu")
    loop = Trainer(
        model, make_optimizer(parameters, settings), make_lr_scheduler(settings), parallel, settings, device, [curve]
    )
    loop.run(prefetch(lambda: stream(worker_dataset(plan, 0, 0, 1, 1).iterator()), 2))
    rows = curve.rows[2:]
    return {
        name: sum(row[name] for row in rows) / len(rows)
        for name in ("samples_per_second", "data_wait", "step_seconds", "padding")
    }


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Returns all three measurements, on the same samples."""
    start = ModelSpec(
        {"vision": str(BACKBONES / "vision"), "language": str(BACKBONES / "language")},
        None,
        {"merge": 4, "lora": {"r": 16, "lora_alpha": 32}},
    )
    numbers = {
        "steps": arguments.steps,
        "global_batch_size": arguments.batch,
        "micro_batch_size": min(16, arguments.batch),
        "log_every": arguments.steps // ROWS,
    }
    settings = TrainingSettings(format="minigpt-v2", mixture={"scenes": 1.0}, learning_rate=2e-3, **numbers)
    plan = DataPlan.from_settings(settings, write_samples(Store(str(folder)), arguments.samples), start)
    found = {"process_samples_per_second": process_rate(plan, max(2, arguments.steps // 4))}
    ray.init(address="local", num_cpus=arguments.cpus, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        found["feed_samples_per_second"] = feed_rate(plan)
        trained = train_rate(plan, settings)
    finally:
        ray.shutdown()
    found |= {f"train_{name}": value for name, value in trained.items()}
    found["data_wait_percent"] = 100 * found.pop("train_data_wait")
    found["headroom"] = found["feed_samples_per_second"] / found["train_samples_per_second"]
    return found


def main() -> None:
    """Measures, prints the results, and ends with a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {**measure(Path(folder), arguments), **vars(arguments), **machine(), "ray": ray.__version__}
    del result["out"]
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in result.items():
        print(f"{name}: {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
