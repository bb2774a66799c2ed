"""What the three training stages share: from a stage's inputs to its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flows.inputs import backbones, model_settings
from mgpt.pipeline.runner import StageContext
from mgpt.storage import Manifest, write_atomic

if TYPE_CHECKING:
    from mgpt.data.mixture import Mixture
    from mgpt.execution.train import TrainRequest, TrainResult

FRESH = {"merge", "lora", "seed", "image_size"}  # settings of a model that make its trained part
LOADING = {
    "precision",
    "quantization",
    "attn_implementation",
    "checkpoint_vision",
    "checkpoint_language",
}  # that say how it is held


def train_stage(context: StageContext, model_name: str, manifest: Path, weights: Path | None) -> dict[str, object]:
    """Trains one model in this stage, on the curated data of `manifest`, from `weights` or from a fresh projection."""
    from mgpt.execution.train import TrainRequest, train

    model = model_settings(context, model_name)
    request = TrainRequest(
        settings=context.section,
        workers=context.settings.cluster.training,
        manifest=Manifest.load(manifest),
        backbones=backbones(context, model_name),
        run_uri=context.run_uri,
        out=context.out,
        weights=weights,
        fresh=model.model_dump(include=FRESH),
        loading=model.model_dump(include=LOADING),
        tracker=context.tracker,
        features=context.store.uri("features"),
    )
    with context.ray():
        result = train(request)
    if result.cached is not None:
        context.worked("features", result.cached.work_seconds)
    context.worked("train", step_seconds(result.curve, result.resumed_from))
    mix = mixture_shares(planned(request), result.steps)
    metrics = {"loss": result.curve[-1]["loss"], "steps": result.steps, "mixture": mix}
    write_atomic(context.out / "metrics.json", (json.dumps(metrics, indent=1) + "\n").encode())
    return {
        "steps": result.steps,
        "began at step": result.resumed_from,
        "weights sha256": result.sha256,
        **speed(result),
        "loss": f"{result.curve[0]['loss']:.3f} -> {result.curve[-1]['loss']:.3f}",
        "mixture": mixture_table(mix),
        "checkpoints": held_up(result.stalls),
    }


def planned(request: TrainRequest) -> Mixture:
    """The plan that the workers followed. Call it after `context.ray()`: its modules import Ray, which must first be told its token."""
    from mgpt.execution.data_feed import Feed
    from mgpt.models.loading import Start

    return Feed.of(request.settings, request.manifest, Start(request.backbones, None)).mixture()


def mixture_shares(mixture: Mixture, steps: int) -> dict[str, dict[str, float]]:
    """By dataset: its declared share, its share of what the first `steps` steps really saw, and how many samples these were."""
    realised, counts = mixture.realized_shares(steps), mixture.counts(steps)
    return {
        name: {"declared": round(share, 6), "realised": round(realised[name], 6), "samples": counts[name]}
        for name, share in mixture.shares.items()
    }


def mixture_table(mix: Mapping[str, Mapping[str, float]]) -> str:
    """Declared beside realised shares, a line each, for the summary."""
    width = max(map(len, mix))
    return "\n".join(
        f"{name:<{width}}  declared {one['declared']:6.2%}  realised {one['realised']:6.2%}  {one['samples']:>7} samples"
        for name, one in mix.items()
    )


def held_up(stalls: Sequence[float]) -> str:
    """How many checkpoints there were since the workers last started, and for how long they held up training."""
    if not stalls:
        return "none"
    mean, longest = sum(stalls) / len(stalls) * 1e3, max(stalls) * 1e3
    return f"{len(stalls)}, each held up training for {mean:.0f} ms (longest {longest:.0f} ms)"


def speed(result: TrainResult) -> dict[str, object]:
    """Rows of the summary: time of a step, waiting for data, and what the feature cache gave."""
    shown = [row for row in result.curve if row["step"] > result.resumed_from]
    if not shown:
        return {}
    each = step_seconds(result.curve, result.resumed_from) / (shown[-1]["step"] - result.resumed_from)
    waits = sum(row["data_wait"] * row["step_seconds"] for row in shown) / sum(row["step_seconds"] for row in shown)
    rows: dict[str, object] = {"step": f"{each:.3f} s", "data wait": f"{waits:.1%} of step time"}
    return rows if result.cached is None else rows | {"feature cache": result.cached.effect(each, result.steps)}


def step_seconds(curve: Sequence[Mapping[str, float]], resumed_from: int) -> float:
    """Seconds of this run that went into training steps: not those in which workers started, imported or waited for data."""
    worked, before = 0.0, float(resumed_from)
    for row in curve:
        if row["step"] > resumed_from:
            worked += (row["step"] - before) * row["step_seconds"] * (1 - row["data_wait"])
            before = row["step"]
    return worked
