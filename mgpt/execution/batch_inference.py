"""Answers from an actor pool of Ray Data: one loaded model an actor, results in the order of the asks.

The adapter around `mgpt.inference.engine`, which knows nothing of Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import ray.data

from mgpt.config.evaluation import GenerationSettings
from mgpt.data.tasks import Message
from mgpt.inference.types import CheckpointRequest, GenerationBackend, GenerationOutput, GenerationRequest, ModelSource

BATCHES_AN_ACTOR = 4  # blocks are cut so that each actor gets about this many: a slow one then holds the others up for a quarter at most


def answer_on_ray(settings: GenerationSettings, report: Callable[[int, int], None] | None = None) -> GenerationBackend:
    """Who answers on the running Ray: `settings.workers` actors of one CPU each. `report(done, all)` is called as blocks come back.

    The result raises ray.exceptions.RayTaskError when an actor fails, with the actor's own error as its cause.
    """

    def answer_all(source: ModelSource, asks: Sequence[CheckpointRequest]) -> list[dict[str, GenerationOutput]]:
        found: dict[int, dict[str, GenerationOutput]] = {}
        for batch in _stream(source, asks, settings):
            for number, answers in zip(batch["number"], batch["answers"], strict=True):
                found[int(number)] = {name: GenerationOutput(**given) for name, given in json.loads(answers).items()}
            if report:
                report(len(found), len(asks))
        return [found.get(i, {}) for i in range(len(asks))]

    return answer_all


def _stream(source: ModelSource, asks: Sequence[CheckpointRequest], settings: GenerationSettings) -> Any:
    blocks = _blocks(asks, settings)
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


def _blocks(asks: Sequence[CheckpointRequest], settings: GenerationSettings) -> list[pa.Table]:
    """Asks of one token limit and of like length together, so that batches waste little; cut into blocks, longest work first."""
    order = sorted(range(len(asks)), key=lambda i: (-asks[i].max_new_tokens, len(str(asks[i].request.messages)), i))
    size = max(settings.batch_size, -(-len(asks) // (settings.workers * BATCHES_AN_ACTOR)))
    return [_table([(i, asks[i]) for i in order[start : start + size]]) for start in range(0, len(order), size)]


def _table(numbered: Sequence[tuple[int, CheckpointRequest]]) -> pa.Table:
    rows = [
        {
            "number": number,
            "images": [image for image in ask.request.images if isinstance(image, bytes)],
            "messages": json.dumps(ask.request.messages),
            "checkpoints": list(ask.checkpoints),
            "max_new_tokens": ask.max_new_tokens,
            "continue_below": ask.continue_below,
            "choices": list(ask.choices),
        }
        for number, ask in numbered
    ]
    return pa.Table.from_pylist(rows)


class _Actor:
    """Holds the loaded model; one thread, since it has one CPU."""

    def __init__(self, source: ModelSource) -> None:
        import torch  # here alone: who asks needs none of the model's code

        from mgpt.inference.engine import InferenceEngine

        torch.set_num_threads(1)
        self.answerer = InferenceEngine(source)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        asks = [_ask(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)]
        answers = [
            {
                name: {"text": given.text, "finished": given.finished, "tokens": given.tokens}
                for name, given in found.items()
            }
            for found in self.answerer(asks)
        ]
        return {"number": batch["number"], "answers": [json.dumps(found) for found in answers]}


def _ask(row: dict[str, Any]) -> CheckpointRequest:
    messages: tuple[Message, ...] = tuple(json.loads(row["messages"]))
    request = GenerationRequest(tuple(bytes(image) for image in row["images"]), messages)
    return CheckpointRequest(
        request,
        tuple(map(str, row["checkpoints"])),
        int(row["max_new_tokens"]),
        int(row["continue_below"]),
        tuple(row["choices"]),
    )
