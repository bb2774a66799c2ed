"""Generates with an actor pool of Ray Data: one loaded model per actor, results in the order of the requests.

Adapts `mgpt.inference.engine`, which does not depend on Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray.data

from mgpt.config.evaluation import GenerationSettings
from mgpt.inference.types import CheckpointRequest, GenerationBackend, GenerationOutput, GenerationRequest, ModelSource

BLOCKS_PER_ACTOR = 4  # approximate; one slow block then delays the end by at most a quarter of an actor's work


def generate_on_ray(
    settings: GenerationSettings, report: Callable[[int, int], None] | None = None
) -> GenerationBackend:
    """Returns a generation backend on the connected Ray: `settings.workers` actors of one CPU each.

    `report(done, all)` is called as blocks are finished. The backend raises ray.exceptions.RayTaskError when an actor
    fails, with the actor's own error as its cause.
    """

    def generate(source: ModelSource, requests: Sequence[CheckpointRequest]) -> list[dict[str, GenerationOutput]]:
        outputs: dict[int, dict[str, GenerationOutput]] = {}
        for batch in _stream(source, requests, settings):
            for number, encoded in zip(batch["number"], batch["outputs"], strict=True):
                outputs[int(number)] = {
                    name: GenerationOutput(**fields) for name, fields in json.loads(encoded).items()
                }
            if report:
                report(len(outputs), len(requests))
        return [outputs.get(number, {}) for number in range(len(requests))]

    return generate


def _stream(
    source: ModelSource, requests: Sequence[CheckpointRequest], settings: GenerationSettings
) -> Iterable[dict[str, Any]]:
    blocks = _blocks(requests, settings)
    dataset = ray.data.from_arrow(blocks).map_batches(
        _Actor,
        fn_constructor_args=(source,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=min(settings.workers, len(blocks))),
        num_cpus=1,
        num_gpus=settings.gpus_per_worker,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    return dataset.iter_batches(batch_size=None, batch_format="numpy")


def _blocks(requests: Sequence[CheckpointRequest], settings: GenerationSettings) -> list[pa.Table]:
    """Returns the requests as blocks, longest first, each of one token limit and similar length to save padding."""
    order = sorted(
        range(len(requests)),
        key=lambda i: (-requests[i].max_new_tokens, len(str(requests[i].request.messages)), i),
    )
    size = max(settings.batch_size, -(-len(requests) // (settings.workers * BLOCKS_PER_ACTOR)))
    blocks = [order[start : start + size] for start in range(0, len(order), size)]
    return [pa.Table.from_pylist([_to_row(number, requests[number]) for number in block]) for block in blocks]


def _to_row(number: int, request: CheckpointRequest) -> dict[str, Any]:
    return {
        "number": number,
        "images": [image for image in request.request.images if isinstance(image, bytes)],
        "messages": json.dumps(request.request.messages),
        "checkpoints": list(request.checkpoints),
        "max_new_tokens": request.max_new_tokens,
        "continue_below": request.continue_below,
        "choices": list(request.choices),
    }


def _from_row(row: dict[str, Any]) -> CheckpointRequest:
    return CheckpointRequest(
        GenerationRequest(tuple(bytes(image) for image in row["images"]), tuple(json.loads(row["messages"]))),
        tuple(map(str, row["checkpoints"])),
        int(row["max_new_tokens"]),
        int(row["continue_below"]),
        tuple(row["choices"]),
    )


class _Actor:
    """Holds the loaded model; one thread, since it has one CPU."""

    def __init__(self, source: ModelSource) -> None:
        from mgpt.inference.engine import InferenceEngine  # the driver needs none of the model's code

        self.engine = InferenceEngine(source, threads=1)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        requests = [_from_row(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)]
        outputs = [{name: asdict(output) for name, output in found.items()} for found in self.engine(requests)]
        return {"number": batch["number"], "outputs": [json.dumps(found) for found in outputs]}
