"""What the three training stages share: from a stage's inputs to its weights."""

from __future__ import annotations

import json
from pathlib import Path

from flows.inputs import bases, model_settings
from mgpt.stage import StageContext
from mgpt.storage import Manifest, write_atomic


def train_stage(context: StageContext, system: str, manifest: Path, weights: Path | None) -> dict[str, object]:
    """Trains one system in this stage, on the curated data of `manifest`, from `weights` or from a fresh projection."""
    from mgpt.cluster.trainer import TrainRequest, train

    model = model_settings(context, system)
    request = TrainRequest(
        settings=context.section,
        workers=context.settings.cluster.training,
        manifest=Manifest.load(manifest),
        bases=bases(context, system),
        run_uri=context.run_uri,
        out=context.out,
        weights=weights,
        fresh=model.model_dump(include={"merge", "lora", "seed", "image_size", "quantization", "attn_implementation"}),
        tracker=context.tracker,
    )
    with context.ray(), context.work("train"):
        result = train(request)
    metrics = {"loss": result.curve[-1]["loss"], "steps": result.steps}
    write_atomic(context.out / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    rows = {"steps": result.steps, "began at step": result.resumed_from, "weights sha256": result.sha256}
    return {**rows, "loss": f"{result.curve[0]['loss']:.3f} -> {result.curve[-1]['loss']:.3f}"}
