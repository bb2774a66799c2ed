"""Training steps of the published models at full size on one GPU, with random weights: samples/s, MFU and memory.

Weights and token ids are random, so nothing is downloaded and neither Ray nor MLflow is needed. The steps run in the
project's trainer, and the figures are the last row of its metrics; `mgpt.training.flops` defines MFU. Samples per GPU
are the published global batch over the published number of GPUs; text lengths are our choice, uniform in a range, the
second half supervised.

Variants:
- `port` pads to the longest row and computes logits at every position;
- `supervised` computes the head at supervised positions only;
- `packed` also packs a step into one row without padding (`varlen` attention);
- `fused` also has the layers of `mgpt.models.fused_llama`, with Liger's kernels where they are installed;
- `cached` is `fused` with cached outputs of the tower;
- `checkpointed` is `fused` with activation checkpointing of the language model;
- `fused_head` is `fused` with Liger's kernel for head and loss, whatever their size;
- `deterministic` is `fused` with deterministic algorithms.
Variants of one model run on the same weights, one after the other. `ceiling_teraflops` is the product of two large
matrices on that device, an upper bound for any step.

Run: python benchmarks/gpu_step.py [--stages NAME ...] [--variants NAME ...] [--steps 10] [--out FILE]. The last line
is JSON. `--tiny` runs models of a few thousand parameters, on a CPU without a GPU; it tests the script and measures
nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from train_step import machine

from mgpt.config.training import TrainingSettings
from mgpt.models import MiniGPTConfig, MiniGPTForConditionalGeneration, language
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.models.presets import architecture_config, preset
from mgpt.training.batch import IGNORE, Batch, cut_packed
from mgpt.training.callbacks.memory import MemoryUsage
from mgpt.training.callbacks.metrics_logger import MetricsLogger
from mgpt.training.callbacks.mfu import ModelFlops
from mgpt.training.data_parallel import DataParallel
from mgpt.training.determinism import set_determinism
from mgpt.training.flops import StepFlops
from mgpt.training.lr_scheduler import make_lr_scheduler
from mgpt.training.optimizer import make_optimizer
from mgpt.training.trainer import Trainer
from mgpt.training.types import TOTALS, StepBatches

DISTINCT = 4  # batches that the steps go through
DEFAULT_MAX_LOGITS = language.MAX_LOGITS_BYTES
SHOWN = ("samples_per_second", "tokens_per_second", "teraflops", "mfu", "memory_gib", "step_seconds", "padding")


@dataclass(frozen=True)
class Stage:
    """samples: per GPU and step. text: range of a sample's text tokens."""

    model: str
    samples: int
    text: tuple[int, int]


STAGES = {
    "minigpt4-pretrain": Stage("minigpt4-vicuna-7b", 64, (15, 60)),
    "minigpt4-instruct": Stage("minigpt4-vicuna-7b", 12, (60, 200)),
    "minigpt-v2-pretrain": Stage("minigpt-v2", 96 // 8, (30, 120)),
    "minigpt-v2-multitask": Stage("minigpt-v2", 64 // 4, (30, 120)),
    "minigpt-v2-instruct": Stage("minigpt-v2", 24 // 4, (60, 600)),
}


@dataclass(frozen=True)
class Variant:
    """The techniques of a step."""

    all_logits: bool = False
    packed: bool = False
    fused: bool = False
    cached: bool = False
    checkpointed: bool = False
    deterministic: bool = False
    fused_head: bool = False


VARIANTS = {
    "port": Variant(all_logits=True),
    "supervised": Variant(),
    "packed": Variant(packed=True),
    # Fused from here on: fusing a model cannot be undone.
    "fused": Variant(packed=True, fused=True),
    "cached": Variant(packed=True, fused=True, cached=True),
    "checkpointed": Variant(packed=True, fused=True, checkpointed=True),
    "fused_head": Variant(packed=True, fused=True, fused_head=True),
    "deterministic": Variant(packed=True, fused=True, deterministic=True),
}


class AllLogits:
    """A model whose loss is computed from logits at every position, as in a plain port."""

    def __init__(self, model: MiniGPTForConditionalGeneration) -> None:
        self._model = model
        self.trainable_parameters, self.load_trainable = model.trainable_parameters, model.load_trainable

    def loss_sum(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        rest = {name: value for name, value in batch.items() if name != "labels"}
        targets = batch["labels"][:, 1:].to(self._model.device)
        logits = self._model(**rest).logits[:, :-1].float()
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
        return loss, targets.ne(IGNORE).sum()


def tiny(name: str) -> MiniGPTConfig:
    """Returns the architecture of a published model with a few thousand parameters."""
    text = {"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 2048}
    qformer = {"vocab": 8, "hidden": 24, "layers": 2, "heads": 2, "inter": 32, "nq": 8}
    sizes = {
        "vit": {"width": 32, "depth": 2, "heads": 2, "patch": 8},
        "img": 32,
        "qformer": qformer,
        "lora": {"r": 4, "alpha": 8},
    }
    return architecture_config("minigpt4" if name.startswith("minigpt4") else "minigpt-v2", text, sizes)


def build(config: MiniGPTConfig, device: torch.device) -> MiniGPTForConditionalGeneration:
    """Builds a model with random weights on the device, frozen ones in bf16 and trained ones in float32."""
    torch.manual_seed(0)
    with device:
        model = MiniGPTForConditionalGeneration(config)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model.train()


@contextmanager
def deterministic(device: torch.device, enabled: bool) -> Iterator[None]:
    """Runs the block with deterministic algorithms, as a worker with `deterministic` does."""
    if enabled:
        set_determinism(device, True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def batches(config: MiniGPTConfig, stage: Stage, variant: Variant) -> list[list[Batch]]:
    """Returns the batches of `DISTINCT` steps: each sample has an image and text of random ids."""
    # Separate generators, so that all variants have the same texts.
    made, drawn = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    steps = []
    for _ in range(DISTINCT):
        lengths = torch.randint(stage.text[0], stage.text[1] + 1, (stage.samples,), generator=made)
        positions = torch.arange(config.num_image_tokens + int(lengths.max()))
        rows = lengths[:, None] + config.num_image_tokens
        ids = torch.randint(3, config.text_config.vocab_size, (stage.samples, len(positions)), generator=made)
        ids[:, : config.num_image_tokens] = config.image_token_id
        supervised = (positions >= rows - lengths[:, None] // 2) & (positions < rows)
        tensors = {
            "input_ids": ids,
            "attention_mask": (positions < rows).long(),
            "labels": ids.masked_fill(~supervised, IGNORE),
        }
        name, shape = "pixel_values", (stage.samples, 3, config.image_size, config.image_size)
        images = torch.randn(shape, generator=drawn)
        if variant.cached:
            name, images = (
                "image_features",
                torch.randn(stage.samples, config.num_image_tokens, config.projection_inputs, generator=drawn),
            )
        steps.append(_batches_of_step(tensors, images, name, variant.packed))
    return steps


def _batches_of_step(tensors: dict[str, Tensor], images: Tensor, name: str, packed: bool) -> list[Batch]:
    ids = [str(row) for row in range(len(images))]
    if not packed:
        return [Batch(tensors | {name: images}, tuple(ids))]
    total = int(tensors["attention_mask"].sum())
    cut = cut_packed(tensors | {"pixel_values": images}, ids, [1] * len(ids), len(ids), total)
    return [
        Batch({name if key == "pixel_values" else key: value for key, value in one.tensors.items()}, one.ids)
        for one in cut
    ]


def measure(
    stage: Stage, variant: Variant, model: MiniGPTForConditionalGeneration, device: torch.device, steps: int
) -> dict[str, float]:
    """Returns the metrics of `steps` steps after as many warm-up steps; `{"out_of_memory": 1}` on a small GPU."""
    try:
        with deterministic(device, variant.deterministic):
            return _measured(stage, variant, model, device, steps)
    except torch.OutOfMemoryError:
        return {"out_of_memory": 1.0}


def _measured(
    stage: Stage, variant: Variant, model: MiniGPTForConditionalGeneration, device: torch.device, steps: int
) -> dict[str, float]:
    config = model.config
    model.set_activation_checkpointing(language=variant.checkpointed)
    if variant.fused:
        fuse_llama_layers(model.language_model)
    language.MAX_LOGITS_BYTES = 0 if variant.fused_head else DEFAULT_MAX_LOGITS
    attention = "varlen" if variant.packed else "sdpa"
    model.language_model.set_attn_implementation(attention)
    common = {"format": config.prompt_format, "mixture": {"random": 1.0}, "learning_rate": 1e-4, "precision": "bf16"}
    settings = TrainingSettings(
        **common, steps=2 * steps, global_batch_size=stage.samples, micro_batch_size=stage.samples
    )
    curve = MetricsLogger(steps, metrics=(ModelFlops(StepFlops.of(model)), MemoryUsage()))
    parameters = model.trainable_parameters()
    trained: Any = AllLogits(model) if variant.all_logits else model
    parallel = DataParallel(parameters, len(TOTALS))
    trainer = Trainer(
        trained,
        make_optimizer(parameters, settings),
        make_lr_scheduler(settings),
        parallel,
        settings,
        device,
        [curve],
        attention,
    )
    steps_of_batches = batches(config, stage, variant)
    if device.type == "cuda":
        steps_of_batches = [[batch.pinned() for batch in step] for step in steps_of_batches]
    trainer.run(_endless(steps_of_batches))
    return {name: curve.rows[-1][name] for name in SHOWN if name in curve.rows[-1]}


def ceiling_teraflops(device: torch.device, side: int = 8192, products: int = 20) -> float:
    """Measures bf16 matrix products of random numbers, in TFLOP/s."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(products + 5):
        if number == 5:
            first.record()
        torch.mm(left, right)
    last.record()
    torch.cuda.synchronize()
    return 2 * side**3 * products / (first.elapsed_time(last) / 1e3) / 1e12


def _endless(steps: list[list[Batch]]) -> Iterator[StepBatches]:
    number = 0
    while True:
        yield number, steps[number % len(steps)]
        number += 1


Figures = dict[str, dict[str, dict[str, float]]]


def measure_all(stages: list[str], variants: list[str], small: bool, device: torch.device, steps: int) -> Figures:
    """Returns the figures by stage and variant. A model is built once for all its stages and variants."""
    found: Figures = {name: {} for name in stages}
    for model_name in dict.fromkeys(STAGES[name].model for name in stages):
        model = build(tiny(model_name) if small else preset(model_name), device)
        own = [name for name in stages if STAGES[name].model == model_name]
        for variant, name in product(variants, own):
            figures = found[name][variant] = measure(STAGES[name], VARIANTS[variant], model, device, steps)
            print(
                f"{name:21s} {variant:13s} " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()),
                flush=True,
            )
        del model
        torch.cuda.empty_cache()
    return found


def main() -> None:
    """Measures, prints a line per measurement, and prints one line of JSON last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.tiny:
        parser.error("no GPU is visible; the full sizes need one of 80 GB. --tiny runs small models anywhere")
    found = measure_all(
        arguments.stages,
        [name for name in VARIANTS if name in arguments.variants],
        arguments.tiny,
        device,
        arguments.steps,
    )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    liger = metadata.version("liger-kernel") if importlib.util.find_spec("liger_kernel") else None
    ceiling = ceiling_teraflops(device) if device.type == "cuda" else None
    known = {"tiny": arguments.tiny, "gpu": gpu, "liger": liger, "ceiling_teraflops": ceiling, "steps": arguments.steps}
    result = {**known, **machine(), "stages": found}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
