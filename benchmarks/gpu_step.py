"""Training steps of the published models' full sizes on one GPU, with random weights: samples/s, MFU and memory by technique.

Weights are drawn on the device and token ids at random, so nothing is downloaded and neither Ray nor MLflow is needed. The steps run in
the project's own trainer, and the figures are the last row of its curve; the rule of MFU is in `mgpt.training.flops`. Samples a GPU are the
published global batch over the published GPUs; lengths of texts are our choice, drawn evenly from a range, the second half supervised.

ways: `port` pads to the longest and computes logits at every position; `supervised` computes the head where a token is supervised;
`packed` has one row without padding as well (`varlen` attention); `lean` has the layers of `mgpt.models.fused_llama` as well, with Liger's kernels
where they are installed; `cached` is `lean` that takes the tower's output as given; `checkpointed` is `lean` with the language model's
activations recomputed; `fused_head` is `lean` whose head and loss are one kernel of Liger's, however small; `deterministic` is `lean` with
deterministic algorithms. Ways of one model run on the same weights, one after the other. `ceiling_teraflops` is a plain product of two
large matrices on that device: what no step can reach.

Run: python benchmarks/gpu_step.py [--stages NAME ...] [--ways NAME ...] [--steps 10] [--out FILE]. The last line is JSON. `--tiny` runs
models of a few thousand parameters, on a CPU where there is no GPU: it shows that the script works and says nothing about speed.
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
WHOLE = language.MAX_LOGITS_BYTES
SHOWN = ("samples_per_second", "tokens_per_second", "teraflops", "mfu", "memory_gib", "step_seconds", "padding")


@dataclass(frozen=True)
class Stage:
    """`samples` a GPU and step; `text` is the range of a sample's text tokens."""

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
class Way:
    """How a step is made."""

    all_logits: bool = False
    packed: bool = False
    lean: bool = False
    cached: bool = False
    checkpointed: bool = False
    deterministic: bool = False
    fused_head: bool = False


WAYS = {
    "port": Way(all_logits=True),
    "supervised": Way(),
    "packed": Way(packed=True),
    # From here on lean: a model does not become its old self again.
    "lean": Way(packed=True, lean=True),
    "cached": Way(packed=True, lean=True, cached=True),
    "checkpointed": Way(packed=True, lean=True, checkpointed=True),
    "fused_head": Way(packed=True, lean=True, fused_head=True),
    "deterministic": Way(packed=True, lean=True, deterministic=True),
}


class AllLogits:
    """A model whose loss is computed from logits at every position, as a plain port does."""

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
    """The architecture of a published model in a few thousand parameters."""
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
    """Random weights on the device: frozen ones in bf16, trained ones in float32, ready to train."""
    torch.manual_seed(0)
    with device:
        model = MiniGPTForConditionalGeneration(config)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model.train()


@contextmanager
def deterministic(device: torch.device, wanted: bool) -> Iterator[None]:
    """As a worker with `deterministic` has it, within."""
    if wanted:
        set_determinism(device, True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def batches(config: MiniGPTConfig, stage: Stage, way: Way) -> list[list[Batch]]:
    """The batches of `DISTINCT` steps: an image a sample, then text of random ids."""
    made, drawn = (
        torch.Generator().manual_seed(1),
        torch.Generator().manual_seed(2),
    )  # apart: all ways see the same texts
    steps = []
    for _ in range(DISTINCT):
        lengths = torch.randint(stage.text[0], stage.text[1] + 1, (stage.samples,), generator=made)
        places = torch.arange(config.num_image_tokens + int(lengths.max()))
        rows = lengths[:, None] + config.num_image_tokens
        ids = torch.randint(3, config.text_config.vocab_size, (stage.samples, len(places)), generator=made)
        ids[:, : config.num_image_tokens] = config.image_token_id
        supervised = (places >= rows - lengths[:, None] // 2) & (places < rows)
        tensors = {
            "input_ids": ids,
            "attention_mask": (places < rows).long(),
            "labels": ids.masked_fill(~supervised, IGNORE),
        }
        name, shape = "pixel_values", (stage.samples, 3, config.image_size, config.image_size)
        images = torch.randn(shape, generator=drawn)
        if way.cached:
            name, images = (
                "image_features",
                torch.randn(stage.samples, config.num_image_tokens, config.projection_inputs, generator=drawn),
            )
        steps.append(_batches_of_step(tensors, images, name, way.packed))
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
    stage: Stage, way: Way, model: MiniGPTForConditionalGeneration, device: torch.device, steps: int
) -> dict[str, float]:
    """The curve's last row, over `steps` steps after as many that warm up. `{"out_of_memory": 1}` where the GPU is too small."""
    try:
        with deterministic(device, way.deterministic):
            return _measured(stage, way, model, device, steps)
    except torch.OutOfMemoryError:
        return {"out_of_memory": 1.0}


def _measured(
    stage: Stage, way: Way, model: MiniGPTForConditionalGeneration, device: torch.device, steps: int
) -> dict[str, float]:
    config = model.config
    model.set_activation_checkpointing(language=way.checkpointed)
    if way.lean:
        fuse_llama_layers(model.language_model)
    language.MAX_LOGITS_BYTES = 0 if way.fused_head else WHOLE
    attention = "varlen" if way.packed else "sdpa"
    model.language_model.set_attn_implementation(attention)
    common = {"format": config.prompt_format, "mixture": {"random": 1.0}, "learning_rate": 1e-4, "precision": "bf16"}
    settings = TrainingSettings(
        **common, steps=2 * steps, global_batch_size=stage.samples, micro_batch_size=stage.samples
    )
    curve = MetricsLogger(steps, metrics=(ModelFlops(StepFlops.of(model)), MemoryUsage()))
    parameters = model.trainable_parameters()
    trained: Any = AllLogits(model) if way.all_logits else model
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
    steps_of_batches = batches(config, stage, way)
    if device.type == "cuda":
        steps_of_batches = [[batch.pinned() for batch in step] for step in steps_of_batches]
    trainer.run(_endless(steps_of_batches))
    return {name: curve.rows[-1][name] for name in SHOWN if name in curve.rows[-1]}


def ceiling_teraflops(device: torch.device, side: int = 8192, products: int = 20) -> float:
    """bf16 matrix products a second, of random numbers."""
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


Found = dict[str, dict[str, dict[str, float]]]


def measure_all(stages: list[str], ways: list[str], small: bool, device: torch.device, steps: int) -> Found:
    """Stage → way → figures. A model is built once for all stages that train it, and its ways are gone through one after the other."""
    found: Found = {name: {} for name in stages}
    for model_name in dict.fromkeys(STAGES[name].model for name in stages):
        model = build(tiny(model_name) if small else preset(model_name), device)
        mine = [name for name in stages if STAGES[name].model == model_name]
        for way, name in product(ways, mine):
            figures = found[name][way] = measure(STAGES[name], WAYS[way], model, device, steps)
            print(
                f"{name:21s} {way:13s} " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True
            )
        del model
        torch.cuda.empty_cache()
    return found


def main() -> None:
    """Measure, print a line per measurement, and end with the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not asked.tiny:
        parser.error("no GPU is visible; the full sizes need one of 80 GB. --tiny runs small models anywhere")
    found = measure_all(asked.stages, [name for name in WAYS if name in asked.ways], asked.tiny, device, asked.steps)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    liger = metadata.version("liger-kernel") if importlib.util.find_spec("liger_kernel") else None
    ceiling = ceiling_teraflops(device) if device.type == "cuda" else None
    known = {"tiny": asked.tiny, "gpu": gpu, "liger": liger, "ceiling_teraflops": ceiling, "steps": asked.steps}
    result = {**known, **machine(), "stages": found}
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
