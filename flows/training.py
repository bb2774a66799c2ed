"""The body of the three training stages: from a stage's inputs to its weights."""

from __future__ import annotations

import json

from flows.inputs import backbones
from mgpt.data.mixture import Mixture
from mgpt.pipeline.runner import StageContext
from mgpt.reporting.training_summary import step_seconds, summary_rows
from mgpt.storage import write_atomic
from mgpt.storage.names import FEATURES, METRICS_FILE

# Settings of a model that make its trained part, and those that say how it is held in memory.
INITIALISATION = {"merge", "lora", "seed", "image_size"}
LOADING = {"precision", "quantization", "attn_implementation", "checkpoint_vision", "checkpoint_language"}


def train_stage(context: StageContext) -> dict[str, object]:
    """Trains a model on the datasets of the mixture, from the weights of the training stage before or newly
    initialised.
    """
    from mgpt.execution.types import TrainRequest

    model = context.settings.models[context.model_name]
    request = TrainRequest(
        settings=context.section,
        workers=context.settings.cluster.training,
        manifest=context.manifest("curate", "describe"),
        backbones=backbones(context, context.model_name),
        store_root=context.store.root,
        run_uri=context.run_uri,
        out=context.out,
        weights=next(iter(context.weights().values()), None),
        init=model.model_dump(include=INITIALISATION),
        loading=model.model_dump(include=LOADING),
        tracker=context.tracker,
        features=context.store.uri(FEATURES),
    )
    with context.ray():
        # Imported here: it imports Ray, which reads the token of the stage's own local Ray when it is imported.
        from mgpt.execution.data_feed import DataPlan
        from mgpt.execution.train import train
        from mgpt.models.loading import ModelSpec

        result = train(request)
        mixture = DataPlan.from_settings(
            request.settings, request.manifest, ModelSpec(request.backbones, None)
        ).mixture()
    if result.cached is not None:
        context.worked("features", result.cached.work_seconds)
    context.worked("train", step_seconds(result.curve, result.resumed_from))
    shares = mixture_shares(mixture, result.steps)
    metrics = {"loss": result.curve[-1]["loss"], "steps": result.steps, "mixture": shares}
    write_atomic(context.out / METRICS_FILE, (json.dumps(metrics, indent=1) + "\n").encode())
    return summary_rows(result, shares)


def mixture_shares(mixture: Mixture, steps: int) -> dict[str, dict[str, float]]:
    """Returns for each dataset its declared share, its share of the samples of the first `steps` steps, and their
    number.
    """
    realised, counts = mixture.realized_shares(steps), mixture.counts(steps)
    return {
        name: {"declared": round(share, 6), "realised": round(realised[name], 6), "samples": counts[name]}
        for name, share in mixture.shares.items()
    }
