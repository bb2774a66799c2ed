"""What `mgpt plan` foretells of a training step, beside what a real one takes: both systems of the shapes world, on CPU.

Memory: bytes of torch's CPU tensors. Those that stay (weights and buffers, the flat gradient buffer, AdamW's moments, the batch) are added
up from their storages; what a second step holds beyond them at its fullest is the peak of the allocator's own events, as the profiler
records them. The interpreter and libraries are not in it. MFU: counted FLOPs over the process's own seconds, the best of some steps, over
the FLOPs of a matrix product of float32 on one thread, so other work on the machine counts little.

Run: python benchmarks/plan.py [--out FILE]. The last line is JSON: a row for each case, with `memory_ratio` (planned / measured) and `mfu`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgpt.model import MiniGPTForConditionalGeneration
from mgpt.plan.accelerators import measured_cpu
from mgpt.plan.memory import Kinds, Rows, training_memory
from mgpt.plan.stages import sizes_for
from mgpt.plan.work import Lengths, training_flops
from mgpt.settings import load
from mgpt.train.batch import Batch
from mgpt.train.contracts import TOTALS
from mgpt.train.loop import Loop
from mgpt.train.optimiser import make_optimiser
from mgpt.train.parallel import Replicated
from mgpt.train.schedule import make_schedule

ROOT = Path(__file__).parents[1]
# (system, rows, length, supervised tokens a row, precision, recomputed): the stages of params.yaml, and what else may decide the peak.
CASES = [
    ("minigpt4", 16, 48, 24, "fp32", False),  # pretrain
    ("minigpt4", 8, 120, 64, "fp32", False),  # instruct, its long descriptions
    ("minigpt-v2", 16, 64, 8, "fp32", False),  # pretrain, multitask and instruct
    ("minigpt-v2", 16, 160, 80, "fp32", False),  # instruct, its long answers
    ("minigpt-v2", 16, 64, 24, "bf16", False),
    ("minigpt4", 16, 64, 24, "bf16", True),
    ("minigpt-v2", 16, 64, 24, "fp32", True),
]
TIMED = 5  # steps, of which the fastest counts
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


def make_loop(system: str, precision: str, recomputed: bool) -> Loop:
    """One worker's training of a system of params.yaml, on the shipped bases."""
    settings = load(ROOT / "params.yaml", {})
    chosen, training = settings.models[system], settings.pretrain[system].model_copy(update={"precision": precision})
    bases = {part: name for part in ("vision", "language", "qformer") if (name := getattr(chosen, part))}
    folders = {part: ROOT / "mgpt" / "backbones" / "shapes" / name.split("/")[1] for part, name in bases.items()}
    model = MiniGPTForConditionalGeneration.from_bases(**folders, merge=chosen.merge, lora=chosen.lora, dtype=PRECISIONS[precision])
    model.train().set_activation_checkpointing(language=recomputed)
    parameters = model.trainable_parameters()
    optimiser, parallel = make_optimiser(parameters, training), Replicated(parameters, len(TOTALS))
    return Loop(model, optimiser, make_schedule(training), parallel, training, torch.device("cpu"))


def measure(system: str, rows: int, length: int, supervised: int, precision: str, recomputed: bool) -> dict[str, Any]:
    """A real step beside its plan: bytes, and the share of the peak where it computes in float32."""
    loop = make_loop(system, precision, recomputed)
    loop.batches = [make_batch(loop.model, rows, length, supervised)]
    loop._train_step()
    moments = [value for state in loop.optimiser.state.values() for value in state.values()]
    staying = [*loop.model.parameters(), *loop.model.buffers(), loop.parallel._flat, *moments, *loop.batches[0].tensors.values()]
    found = stored(staying) + peak(loop._train_step)
    sizes, kinds = sizes_for(load(ROOT / "params.yaml", {}), system), Kinds(precision, None, precision)
    planned = training_memory(sizes, Rows(rows, length, rows * supervised, rows), kinds, recomputed=recomputed).total
    sample = Lengths(length - sizes.image_tokens, supervised, 1, length, supervised)
    flops = rows * training_flops(sizes, sample, recomputed=recomputed).counted
    mfu = flops / fastest(loop._train_step) / measured_cpu().flops["fp32"]
    case = {"system": system, "rows": rows, "length": length, "precision": precision, "recomputed": recomputed}
    return {**case, "planned": round(planned), "measured": found, "memory_ratio": round(planned / found, 4), "mfu": round(mfu, 3)}


def fastest(step: Callable[[], object]) -> float:
    """Seconds of this process that the fastest of some steps took."""
    seconds = []
    for _ in range(TIMED):
        begun = time.process_time()
        step()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="mgpt plan beside real steps")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        row = measure(*case)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    result = json.dumps({"cases": rows, "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()})
    if asked.out:
        asked.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
