"""What `mgpt plan` foretells of a training step, beside what a real one takes: both models of the shapes world, on CPU, as production
makes steps (`mgpt.execution.train_worker`): lean layers, padded rows with SDPA or packed ones with a mask or `varlen`, pixels or cached features.

Memory: bytes of torch's CPU tensors. Those that stay (weights and buffers, the flat gradient buffer, AdamW's moments, the batch) are added
up from their storages; what a second step holds beyond them at its fullest is the peak of the allocator's own events, as the profiler
records them. The interpreter and libraries are not in it. MFU: counted FLOPs over the process's own seconds, the best of some steps, over
the FLOPs of a matrix product of float32 on one thread, so other work on the machine counts little. Full sizes on a GPU are measured by
`gpu_step.py`; `tests/unit/planning/test_gpu_memory.py` sets the plan beside them.

Run: python benchmarks/plan.py [--out FILE]. The last line is JSON: a row for each case, with `memory_ratio` (planned / measured) and `mfu`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgpt.config import Settings, load_settings
from mgpt.config.models import LoraSettings
from mgpt.data.packing import pack_rows
from mgpt.models import MiniGPTForConditionalGeneration
from mgpt.models.fused_llama import make_lean
from mgpt.planning.accelerators import measured_cpu
from mgpt.planning.memory import Kinds, Rows, Way, training_memory
from mgpt.planning.sizes import Sizes
from mgpt.planning.stages import sizes_for
from mgpt.planning.work import Lengths, training_flops
from mgpt.training.batch import Batch
from mgpt.training.data_parallel import Replicated
from mgpt.training.lr_scheduler import make_schedule
from mgpt.training.optimizer import make_optimiser
from mgpt.training.trainer import Loop
from mgpt.training.types import TOTALS

ROOT = Path(__file__).parents[1]
DROPPED = LoraSettings(
    r=16, lora_alpha=32, lora_dropout=0.05, target_modules=("q_proj", "v_proj")
)  # as published, but for the rank


@dataclass(frozen=True)
class Case:
    """Rows of one image each whose last `supervised` tokens are; `packed` makes one row of them. `precision` is the training's, `backbones` the
    frozen weights'. `lora` in place of the model's own. Without `lean`, the language model is as any but LLaMA would be."""

    model_name: str
    rows: int
    length: int
    supervised: int
    attention: str = "sdpa"
    packed: bool = False
    cached: bool = False
    backbones: str = "fp32"
    precision: str = "fp32"
    recomputed: bool = False
    lora: LoraSettings | None = None
    lean: bool = True


# The stages of params.yaml, the a100 recipe's form, and what else may decide the peak.
CASES = [
    Case("minigpt4", 16, 48, 24),  # pretrain
    Case("minigpt4", 8, 120, 64, cached=True),  # instruct, its long descriptions
    Case("minigpt-v2", 8, 64, 8, cached=True),  # pretrain, multitask and instruct
    Case("minigpt-v2", 16, 160, 80),  # instruct, its long answers
    Case("minigpt-v2", 16, 64, 24, backbones="bf16", precision="bf16"),
    Case("minigpt-v2", 16, 64, 24, precision="bf16"),
    Case("minigpt4", 16, 64, 24, backbones="bf16", precision="bf16", recomputed=True),
    Case("minigpt-v2", 16, 64, 24, recomputed=True),
    Case("minigpt4", 16, 48, 24, "varlen", packed=True),
    Case("minigpt4", 8, 120, 64, "varlen", packed=True, cached=True, backbones="bf16", precision="bf16"),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, cached=True),
    Case("minigpt-v2", 16, 160, 80, "varlen", packed=True),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, backbones="bf16", precision="bf16", lora=DROPPED),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, precision="bf16", lora=DROPPED),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, lora=DROPPED),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, recomputed=True),
    Case(
        "minigpt4", 16, 64, 24, "varlen", packed=True, cached=True, backbones="bf16", precision="bf16", recomputed=True
    ),
    Case("minigpt-v2", 8, 64, 24, packed=True),
    Case("minigpt-v2", 16, 64, 8, lean=False),
    Case("minigpt4", 16, 64, 24, backbones="bf16", precision="bf16", recomputed=True, lean=False),
    Case("minigpt4", 16, 64, 24, "varlen", packed=True, backbones="bf16", precision="bf16", lean=False),
]
TIMED = 5  # steps, of which the fastest counts
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_batch(model: MiniGPTForConditionalGeneration, case: Case) -> Batch:
    """One row is a token shorter, so that there is a mask where rows are padded."""
    tokens, side, rows = model.config.num_image_tokens, model.config.image_size, case.rows
    ids = torch.randint(5, 400, (rows, case.length), generator=torch.Generator().manual_seed(0))
    ids[:, 3 : 3 + tokens] = model.config.image_token_id
    labels = torch.full_like(ids, -100)
    labels[:, case.length - case.supervised :] = ids[:, case.length - case.supervised :]
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    images = {"pixel_values": torch.rand(rows, 3, side, side)}
    if case.cached:
        images = {"image_features": torch.rand(rows, tokens, model.config.projection_inputs)}
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels, **images}
    if case.packed:
        tensors = pack_rows(tensors, [1] * rows, [range(rows)])
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


def settings_of(case: Case) -> Settings:
    """params.yaml with the case's LoRA."""
    settings = load_settings(ROOT / "params.yaml", {})
    changed = {"precision": case.backbones} | ({"lora": case.lora} if case.lora else {})
    model = settings.models[case.model_name].model_copy(update=changed)
    return settings.model_copy(update={"models": {**settings.models, case.model_name: model}})


def make_loop(case: Case) -> Loop:
    """One worker's training of a model of params.yaml, on the shipped backbones."""
    settings = settings_of(case)
    chosen, training = (
        settings.models[case.model_name],
        settings.pretrain[case.model_name].model_copy(update={"precision": case.precision}),
    )
    backbones = {part: name for part, name in chosen.backbones.items() if name}
    folders = {part: ROOT / "mgpt" / "models" / "shapes" / name.split("/")[1] for part, name in backbones.items()}
    held = {"dtype": PRECISIONS[case.backbones], "attn_implementation": case.attention}
    model = MiniGPTForConditionalGeneration.from_backbones(**folders, merge=chosen.merge, lora=chosen.lora, **held)
    model.train().set_activation_checkpointing(language=case.recomputed)
    if case.lean:
        make_lean(model.language_model)
    parameters, schedule = model.trainable_parameters(), make_schedule(training)
    optimiser, parallel = make_optimiser(parameters, training), Replicated(parameters, len(TOTALS))
    return Loop(model, optimiser, schedule, parallel, training, torch.device("cpu"), attention=case.attention)


def planned(case: Case, sizes: Sizes) -> float:
    """Bytes of tensors by the plan."""
    sizes = replace(sizes, language=replace(sizes.language, lean=case.lean))
    every = case.rows * case.length
    rows = Rows(
        *((1, every) if case.packed else (case.rows, case.length)), case.rows, case.rows * case.supervised, case.rows
    )
    kinds = Kinds(case.backbones, None, "bf16" if case.precision == "bf16" else case.backbones)
    return training_memory(
        sizes, rows, kinds, Way(case.attention, case.recomputed, "fp32" if case.cached else None, cuda=False)
    ).total


def measure(case: Case) -> dict[str, Any]:
    """A real step beside its plan: bytes, and the share of the peak where it computes in float32."""
    loop, sizes = make_loop(case), sizes_for(settings_of(case), case.model_name)
    loop.batches = [make_batch(loop.model, case)]
    loop._train_step()
    moments = [value for state in loop.optimiser.state.values() for value in state.values()]
    staying = [
        *loop.model.parameters(),
        *loop.model.buffers(),
        loop.parallel._flat,
        *moments,
        *loop.batches[0].tensors.values(),
    ]
    found, foretold = stored(staying) + peak(loop._train_step), planned(case, sizes)
    sample = Lengths(case.length - sizes.image_tokens, case.supervised, 1, case.length, case.supervised)
    flops = case.rows * training_flops(sizes, sample, recomputed=case.recomputed, cached=case.cached).counted
    mfu = flops / fastest(loop._train_step) / measured_cpu().flops["fp32"]
    row = asdict(case) | {"dropout": bool(case.lora)}
    del row["lora"]
    return {
        **row,
        "planned": round(foretold),
        "measured": found,
        "memory_ratio": round(foretold / found, 4),
        "mfu": round(mfu, 3),
    }


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
        row = measure(case)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    result = json.dumps(
        {"cases": rows, "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    )
    if asked.out:
        asked.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
