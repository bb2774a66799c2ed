"""Measures real training steps of the shapes world's systems on CPU: `python measured.py CASES`, a JSON list of `measure`'s arguments.
Prints the list of results as JSON.

What is measured: bytes of torch's CPU tensors. Those that stay (weights and buffers, the flat gradient buffer, AdamW's moments, the batch)
are added up from their storages; what a second step holds beyond them at its fullest is the peak of the allocator's own events, as the
profiler records them. The interpreter and libraries are not in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from mgpt.model import MiniGPTForConditionalGeneration
from mgpt.settings import load
from mgpt.train.batch import Batch
from mgpt.train.contracts import TOTALS
from mgpt.train.loop import Loop
from mgpt.train.optimiser import make_optimiser
from mgpt.train.parallel import Replicated
from mgpt.train.schedule import make_schedule

ROOT = Path(__file__).parents[2]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_batch(model: MiniGPTForConditionalGeneration, rows: int, length: int, supervised: int) -> Batch:
    """Rows of one image each, the last `supervised` tokens supervised; one row is a token shorter, so that there is a mask."""
    tokens, side = model.config.num_image_tokens, model.config.image_size
    ids = torch.randint(5, 400, (rows, length), generator=torch.Generator().manual_seed(0))
    ids[:, 3 : 3 + tokens] = model.config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, length - supervised :] = ids[:, length - supervised :]
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": torch.rand(rows, 3, side, side)}
    return Batch(tensors, tuple(map(str, range(rows))))


def stored(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each once."""
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def peak(step: Callable[[], object]) -> int:
    """The most bytes that a call holds beyond what was there before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = most = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(system: str, rows: int, length: int, supervised: int, precision: str, recomputed: bool) -> int:
    """Bytes of a training worker at its fullest."""
    settings = load(ROOT / "params.yaml", {})
    chosen, training = settings.models[system], settings.pretrain[system].model_copy(update={"precision": precision})
    bases = {part: name for part in ("vision", "language", "qformer") if (name := getattr(chosen, part))}
    folders = {part: ROOT / "mgpt" / "backbones" / "shapes" / name.split("/")[1] for part, name in bases.items()}
    model = MiniGPTForConditionalGeneration.from_bases(**folders, merge=chosen.merge, lora=chosen.lora, dtype=PRECISIONS[precision])
    model.train().set_activation_checkpointing(language=recomputed)
    parameters = model.trainable_parameters()
    optimiser, parallel = make_optimiser(parameters, training), Replicated(parameters, len(TOTALS))
    loop = Loop(model, optimiser, make_schedule(training), parallel, training, torch.device("cpu"))
    loop.batches = [make_batch(model, rows, length, supervised)]
    loop._train_step()
    moments = [value for state in optimiser.state.values() for value in state.values()]
    staying = [*model.parameters(), *model.buffers(), parallel._flat, *moments, *loop.batches[0].tensors.values()]
    return stored(staying) + peak(loop._train_step)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([measure(*case) for case in json.loads(sys.argv[1])]))
