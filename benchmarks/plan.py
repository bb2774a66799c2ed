"""Compares the memory and FLOPs that `mgpt plan` predicts for a training step with those of a real one.

Both models of the shapes world, on CPU, with steps as `mgpt.execution.train_worker` makes them: fused layers, padded
rows with SDPA or packed rows with a mask or `varlen`, pixels or cached features.

- Memory is bytes of torch's CPU tensors, without interpreter and libraries. Persistent ones (weights, buffers, the
  flat gradient buffer, AdamW's moments, the batch) are summed from their storages; the peak of a second step beyond
  them comes from the profiler's allocator events.
- MFU is counted FLOPs per second of CPU time (best of several steps), over the FLOP/s of a float32 matrix product on
  one thread, so other load on the machine matters little.

Full sizes on a GPU are measured by `gpu_step.py` and compared in `tests/unit/planning/test_gpu_memory.py`.

Run: python benchmarks/plan.py [--out FILE]. The last line is JSON: one row per case with `memory_ratio` (planned /
measured) and `mfu`.
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
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.planning.accelerators import measure_cpu
from mgpt.planning.flops import Lengths, training_flops
from mgpt.planning.memory import BatchShape, Dtypes, StepOptions, training_memory
from mgpt.planning.sizes import ModelSizes
from mgpt.planning.stages import model_sizes
from mgpt.training.batch import Batch
from mgpt.training.data_parallel import DataParallel
from mgpt.training.lr_scheduler import make_lr_scheduler
from mgpt.training.optimizer import make_optimizer
from mgpt.training.trainer import Trainer
from mgpt.training.types import TOTALS

ROOT = Path(__file__).parents[1]
# As published, except for the rank.
WITH_DROPOUT = LoraSettings(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=("q_proj", "v_proj"))


@dataclass(frozen=True)
class Case:
    """Samples of one image each, `length` positions long.

    Attributes:
        supervised: number of tokens at the end that are supervised.
        packed: all samples share one row.
        backbones: number format of the frozen weights.
        precision: of the training.
        recompute: the language model's activations are recomputed.
        lora: replaces the model's own.
        fused: the language model's layers are fused; otherwise they are transformers' own.
    """

    model_name: str
    rows: int
    length: int
    supervised: int
    attention: str = "sdpa"
    packed: bool = False
    cached: bool = False
    backbones: str = "fp32"
    precision: str = "fp32"
    recompute: bool = False
    lora: LoraSettings | None = None
    fused: bool = True


# The stages of params.yaml, the form of the a100 recipe, and other settings that can decide the peak.
CASES = [
    Case("minigpt4", 16, 48, 24),  # pretrain
    Case("minigpt4", 8, 120, 64, cached=True),  # instruct, its long descriptions
    Case("minigpt-v2", 8, 64, 8, cached=True),  # pretrain, multitask and instruct
    Case("minigpt-v2", 16, 160, 80),  # instruct, its long answers
    Case("minigpt-v2", 16, 64, 24, backbones="bf16", precision="bf16"),
    Case("minigpt-v2", 16, 64, 24, precision="bf16"),
    Case("minigpt4", 16, 64, 24, backbones="bf16", precision="bf16", recompute=True),
    Case("minigpt-v2", 16, 64, 24, recompute=True),
    Case("minigpt4", 16, 48, 24, "varlen", packed=True),
    Case("minigpt4", 8, 120, 64, "varlen", packed=True, cached=True, backbones="bf16", precision="bf16"),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, cached=True),
    Case("minigpt-v2", 16, 160, 80, "varlen", packed=True),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, backbones="bf16", precision="bf16", lora=WITH_DROPOUT),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, precision="bf16", lora=WITH_DROPOUT),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, lora=WITH_DROPOUT),
    Case("minigpt-v2", 16, 64, 24, "varlen", packed=True, recompute=True),
    Case(
        "minigpt4", 16, 64, 24, "varlen", packed=True, cached=True, backbones="bf16", precision="bf16", recompute=True
    ),
    Case("minigpt-v2", 8, 64, 24, packed=True),
    Case("minigpt-v2", 16, 64, 8, fused=False),
    Case("minigpt4", 16, 64, 24, backbones="bf16", precision="bf16", recompute=True, fused=False),
    Case("minigpt4", 16, 64, 24, "varlen", packed=True, backbones="bf16", precision="bf16", fused=False),
]
TIMED = 5  # steps, of which the fastest is reported
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_batch(model: MiniGPTForConditionalGeneration, case: Case) -> Batch:
    """Builds a batch. One row is a token shorter, so that padded rows have a mask."""
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
    """Sums the bytes of the tensors' storages, each once."""
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def peak(step: Callable[[], object]) -> int:
    """Measures the peak of bytes that a call holds in addition to those held before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held = most = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def settings_of(case: Case) -> Settings:
    """Loads params.yaml with the case's LoRA and backbone precision."""
    settings = load_settings(ROOT / "params.yaml", {})
    changed = {"precision": case.backbones} | ({"lora": case.lora} if case.lora else {})
    model = settings.models[case.model_name].model_copy(update=changed)
    return settings.model_copy(update={"models": {**settings.models, case.model_name: model}})


def make_loop(case: Case) -> Trainer:
    """Builds one worker's trainer for a model of params.yaml, on the shipped backbones."""
    settings = settings_of(case)
    chosen, training = (
        settings.models[case.model_name],
        settings.pretrain[case.model_name].model_copy(update={"precision": case.precision}),
    )
    backbones = {part: name for part, name in chosen.backbones.items() if name}
    folders = {part: ROOT / "mgpt" / "models" / "shapes" / name.split("/")[1] for part, name in backbones.items()}
    options = {"dtype": PRECISIONS[case.backbones], "attn_implementation": case.attention}
    model = MiniGPTForConditionalGeneration.from_backbones(**folders, merge=chosen.merge, lora=chosen.lora, **options)
    model.train().set_activation_checkpointing(language=case.recompute)
    if case.fused:
        fuse_llama_layers(model.language_model)
    parameters, schedule = model.trainable_parameters(), make_lr_scheduler(training)
    optimizer, parallel = make_optimizer(parameters, training), DataParallel(parameters, len(TOTALS))
    return Trainer(model, optimizer, schedule, parallel, training, torch.device("cpu"), attention=case.attention)


def planned(case: Case, sizes: ModelSizes) -> float:
    """Returns the planned bytes of tensors."""
    sizes = replace(sizes, language=replace(sizes.language, fused=case.fused))
    rows, length = (1, case.rows * case.length) if case.packed else (case.rows, case.length)
    batch = BatchShape(rows, length, case.rows, case.rows * case.supervised, case.rows)
    dtypes = Dtypes(case.backbones, None, "bf16" if case.precision == "bf16" else case.backbones)
    options = StepOptions(case.attention, case.recompute, "fp32" if case.cached else None, cuda=False)
    return training_memory(sizes, batch, dtypes, options).total


def measure(case: Case) -> dict[str, Any]:
    """Runs real steps and returns planned and measured bytes, their ratio, and MFU."""
    loop, sizes = make_loop(case), model_sizes(settings_of(case), case.model_name)
    loop.batches = [make_batch(loop.model, case)]
    loop._train_step()
    moments = [value for state in loop.optimizer.state.values() for value in state.values()]
    persistent = [
        *loop.model.parameters(),
        *loop.model.buffers(),
        loop.parallel._flat,
        *moments,
        *loop.batches[0].tensors.values(),
    ]
    measured, expected = stored(persistent) + peak(loop._train_step), planned(case, sizes)
    sample = Lengths(case.length - sizes.image_tokens, case.supervised, 1, case.length, case.supervised)
    flops = case.rows * training_flops(sizes, sample, recompute=case.recompute, cached=case.cached).counted
    mfu = flops / fastest(loop._train_step) / measure_cpu().flops["fp32"]
    row = asdict(case) | {"dropout": bool(case.lora)}
    del row["lora"]
    return {
        **row,
        "planned": round(expected),
        "measured": measured,
        "memory_ratio": round(expected / measured, 4),
        "mfu": round(mfu, 3),
    }


def fastest(step: Callable[[], object]) -> float:
    """Returns the CPU seconds of the fastest of several steps."""
    seconds = []
    for _ in range(TIMED):
        start = time.process_time()
        step()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="mgpt plan compared with real steps")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES:
        row = measure(case)
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    result = json.dumps(
        {"cases": rows, "torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    )
    if arguments.out:
        arguments.out.write_text(result + "\n")
    print(result)


if __name__ == "__main__":
    main()
