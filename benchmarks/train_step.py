"""Training steps of a small MiniGPT-v2 compared with a straightforward transformers port of the same model.

Measures time, peak memory and loss of each technique, alone and together. The port tokenises one conversation at a
time, pads to the longest, runs the tower in every step, computes logits at every position, uses torch's unfused AdamW
and reads the loss after each step. A technique alone is the port with that one change. `fused_layers` are those of
`mgpt.models.fused_llama`; their last layer is pruned only with packed rows, so alone they show the part without it.
`ours` is all techniques in float32, `ours_bf16` all of them with bf16 frozen weights under bf16 autocast;
`*_uncached` leave out the feature cache.

Each variant has its own copy of the same weights and sees the same batches, tokenisation included. Steps alternate in
one process and their order reverses each time, so that a busy machine slows all variants equally. Port, `ours` and
`ours_bf16` alternate on
their own first: after steps of other models the CPU caches are cold, which costs short steps more than long ones and
does not happen in training.

The feature cache is not free: an image is encoded once and shown `shows` times, so a cached step is charged the
encoding of its images divided by `shows`. The shapes pipeline shows an image of minigpt-v2's training 19 times ((240
+ 500 + 240) steps of 32 samples of 1,600 images), which the headline ratio charges; `shows` in the result holds other
numbers, 1 included.

Run: OMP_WAIT_POLICY=passive python benchmarks/train_step.py [--steps 20] [--processes 2] [--threads 1] [--out FILE].
Processes measure in parallel, with one thread each by default, like workers of a training (`cluster.training`). The
last line is JSON. Ratios are port / ours of a step's CPU time over all threads, the median over the steps of all
processes: a busy machine changes wall time from step to step. Passive waiting keeps idle threads from counting.
`wall_ratio` is the same of wall time, and `load_average` tells how busy the machine was.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from model_step import DATA, build, peak_bytes
from torch import Tensor
from torch.nn import functional

from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.models.fused_llama import fuse_llama_layers
from mgpt.training.batch import IGNORE, cut_packed

PACK_TOKENS = 1500  # all samples of a step in one row
HEADLINE = ("port", "ours", "ours_bf16", "encode", "encode_bf16")
SHOWS, HEADLINE_SHOWS = (1, 2, 4, 19, 50), 19
MEMORY_STEPS = 1
Raw = tuple[list[list[dict[str, str]]], Tensor]  # conversations and pixels of one step


@dataclass(frozen=True)
class Variant:
    """The techniques of a step; without any it is the port."""

    packed: bool = False
    supervised_only: bool = False  # the head, and the last layer's feed-forward
    cached: bool = False
    batched_tokenising: bool = False
    fused_optimizer: bool = False
    no_reads: bool = False
    fused_layers: bool = False
    bf16: bool = False


TECHNIQUES = tuple(asdict(Variant()))
ALL = Variant(
    packed=True,
    supervised_only=True,
    cached=True,
    batched_tokenising=True,
    fused_optimizer=True,
    no_reads=True,
    fused_layers=True,
)
VARIANTS = {
    "port": Variant(),
    **{name: Variant(**{name: True}) for name in TECHNIQUES},
    "ours": ALL,
    "ours_uncached": replace(ALL, cached=False),
    "ours_bf16": replace(ALL, bf16=True),
    "ours_bf16_uncached": replace(ALL, cached=False, bf16=True),
    "port_again": Variant(),
}
OTHERS = tuple(name for name in VARIANTS if name not in HEADLINE)


def raw_steps(config: dict[str, Any]) -> list[Raw]:
    """Returns batches of conversations from the texts, with an image of noise for each."""
    texts, size = json.loads((DATA / "texts.json").read_text()), config["batch_size"]
    generator = torch.Generator().manual_seed(config["seed"])
    made = []
    for start in range(0, config["n_batches"] * size, size):
        chosen = [texts[number % len(texts)] for number in range(start, start + size)]
        conversations = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in chosen
        ]
        made.append((conversations, torch.randn(size, 3, config["img"], config["img"], generator=generator)))
    return made


class Runner:
    """Steps of one variant, on its own model."""

    def __init__(
        self,
        variant: Variant,
        model: MiniGPTForConditionalGeneration,
        processor: MiniGPTProcessor,
        options: dict[str, Any],
    ) -> None:
        self.variant, self.model, self.processor = variant, copy.deepcopy(model), processor
        trained = list(self.model.trainable_parameters().values())
        if variant.bf16:
            for parameter in self.model.parameters():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.bfloat16()
        if variant.packed:
            self.model.language_model.set_attn_implementation("varlen")
        if variant.fused_layers:
            fuse_llama_layers(self.model.language_model)
        betas = tuple(options["betas"])
        self.optimizer = torch.optim.AdamW(
            trained, lr=options["lr"], weight_decay=options["weight_decay"], betas=betas, fused=variant.fused_optimizer
        )
        self.losses: list[Tensor | float] = []

    def step(self, raw: Raw) -> None:
        """Runs one optimizer step. The images are pixels, or features if the variant has a cache."""
        conversations, images = raw
        self.optimizer.zero_grad()
        tensors = self._tokens(conversations)
        supervised = (tensors["labels"][:, 1:] != IGNORE).sum()
        total = torch.zeros(())
        for inputs in self._cut(tensors, images):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.variant.bf16):
                loss = self._loss(inputs, supervised)
            loss.backward()
            total += loss.detach()
        self.optimizer.step()
        self.losses.append(total if self.variant.no_reads else total.item())

    def _tokens(self, conversations: list[list[dict[str, str]]]) -> dict[str, Tensor]:
        if self.variant.batched_tokenising:
            return dict(self.processor(None, conversations, format="minigpt-v2"))
        singles = [self.processor(None, [conversation], format="minigpt-v2") for conversation in conversations]
        longest = max(single["input_ids"].shape[1] for single in singles)
        fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
        return {
            name: torch.cat(
                [functional.pad(single[name], (0, longest - single[name].shape[1]), value=value) for single in singles]
            )
            for name, value in fill.items()
        }

    def _cut(self, tensors: dict[str, Tensor], images: Tensor) -> list[dict[str, Any]]:
        name = "image_features" if self.variant.cached else "pixel_values"
        if not self.variant.packed:
            return [tensors | {name: images}]
        ids, ones = [str(row) for row in range(len(images))], [1] * len(images)
        batches = cut_packed(tensors | {"pixel_values": images}, ids, ones, 1, PACK_TOKENS)
        inputs = [batch.inputs("varlen") for batch in batches]
        return [{name if key == "pixel_values" else key: value for key, value in some.items()} for some in inputs]

    def _loss(self, inputs: dict[str, Any], supervised: Tensor) -> Tensor:
        if self.variant.supervised_only:
            return self.model.loss_sum(inputs)[0] / supervised
        rest = {
            name: value for name, value in inputs.items() if name not in ("input_ids", "pixel_values", "image_features")
        }
        embeds = self.model.embed(inputs["input_ids"], inputs.get("pixel_values"), inputs.get("image_features"))
        loss: Tensor = self.model.language_model(
            inputs_embeds=embeds, use_cache=False, num_items_in_batch=supervised, **rest
        ).loss
        return loss


class Encoder:
    """Measures the filling of a feature cache: the frozen part, in the precision of the cached variant."""

    def __init__(self, runner: Runner) -> None:
        self._model, self._dtype = runner.model, next(runner.model.vision_tower.parameters()).dtype

    @torch.no_grad()
    def step(self, raw: Raw) -> None:
        """Encodes a step's images."""
        _, images = raw
        self._model.encode_images(images.to(self._dtype))


@dataclass
class Times:
    """Seconds of each measured step."""

    wall: list[float]
    cpu: list[float]


@dataclass
class Measured:
    """Times, losses and peak bytes of each variant in one process."""

    times: dict[str, Times]
    losses: dict[str, list[float]]
    peaks: dict[str, float]


def measure(config: dict[str, Any], steps: int, alone_steps: int, threads: int) -> Measured:
    """Measures all variants on the same steps, alternating: the headline's, then the others with the port again."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        model, processor = build(config, Path(scratch))
    runners = {name: Runner(variant, model, processor, config["optimizer"]) for name, variant in VARIANTS.items()}
    everyone: dict[str, Any] = runners | {
        "encode": Encoder(runners["ours"]),
        "encode_bf16": Encoder(runners["ours_bf16"]),
    }
    work = raw_steps(config)
    with torch.no_grad():
        features = [model.encode_images(pixels) for _, pixels in work]

    def batch(name: str, number: int) -> Raw:
        conversations, pixels = work[number % len(work)]
        return conversations, features[number % len(work)] if name in VARIANTS and VARIANTS[name].cached else pixels

    def alternate(names: Sequence[str], steps: int) -> dict[str, Times]:
        times = {name: Times([], []) for name in names}
        for number in range(config["warmup"] + steps):
            for name in sorted(names, reverse=bool(number % 2)):
                raw = batch(name, number)
                wall, cpu = time.perf_counter(), time.process_time()
                everyone[name].step(raw)
                if number >= config["warmup"]:
                    times[name].wall.append(time.perf_counter() - wall)
                    times[name].cpu.append(time.process_time() - cpu)
        return times

    times = alternate(HEADLINE, steps) | alternate(OTHERS, alone_steps)
    losses = {name: [float(loss) for loss in runner.losses] for name, runner in runners.items()}
    peaks = {
        name: [peak_bytes(runner.step, batch(name, number)) for number in range(MEMORY_STEPS)]
        for name, runner in runners.items()
    }
    return Measured(times, losses, {name: statistics.median(values) for name, values in peaks.items()})


def measure_together(processes: int, *arguments: Any) -> Measured:
    """Merges the measurements of parallel processes. They run the same steps, so losses and peaks are those of any."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        measured = [one.result() for one in [pool.submit(measure, *arguments) for _ in range(processes)]]
    times = {}
    for name in measured[0].times:  # step by step, so that values of one step stay together
        both = [zip(*(getattr(one.times[name], clock) for one in measured), strict=True) for clock in ("wall", "cpu")]
        times[name] = Times(*([value for step in steps for value in step] for steps in both))
    return replace(measured[0], times=times)


def summary(measured: Measured) -> dict[str, Any]:
    """Returns the reported figures."""
    times, losses, peaks = measured.times, measured.losses, measured.peaks

    def ratio(name: str, shows: int = HEADLINE_SHOWS, clock: str = "cpu") -> float:
        encoder = "encode_bf16" if VARIANTS[name].bf16 else "encode"
        steps = zip(
            *(getattr(times[one], clock) for one in ("port" if name in HEADLINE else "port_again", name, encoder)),
            strict=False,
        )
        return statistics.median(
            port / (own + (encoding / shows if VARIANTS[name].cached else 0.0)) for port, own, encoding in steps
        )

    def difference(name: str) -> float:
        return max(abs(a - b) / b for a, b in zip(losses[name], losses["port"], strict=False))

    exact = [name for name, variant in VARIANTS.items() if not variant.bf16]
    return {
        "seconds": {name: statistics.median(some.wall) for name, some in times.items()},
        "cpu_seconds": {name: statistics.median(some.cpu) for name, some in times.items()},
        "peak_mib": {name: peak / 2**20 for name, peak in peaks.items()},
        "shows": {name: {str(shows): ratio(name, shows) for shows in SHOWS} for name in ("ours", "ours_bf16")},
        "uncached": {name: ratio(f"{name}_uncached") for name in ("ours", "ours_bf16")},
        "wall_ratio": {
            name: ratio(name, clock="wall") for name in ("ours", "ours_bf16", "ours_uncached", "ours_bf16_uncached")
        },
        "bf16_loss_difference": difference("ours_bf16"),
        "alone": {name: ratio(name) for name in TECHNIQUES},
        "alone_memory": {name: peaks[name] / peaks["port"] for name in TECHNIQUES},
        "ratio_fp32": ratio("ours"),
        "ratio_bf16": ratio("ours_bf16"),
        "memory_ratio": peaks["ours"] / peaks["port"],
        "memory_ratio_bf16": peaks["ours_bf16"] / peaks["port"],
        "max_loss_difference": max(difference(name) for name in exact),
    }


def machine() -> dict[str, Any]:
    """Describes the machine and the library versions."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {
        "machine": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    """Measures, prints the figures, and prints one line of JSON last."""
    config = json.loads((DATA / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=config["measured"])
    parser.add_argument(
        "--alone-steps", type=int, default=config["measured"], help="measured steps of each technique alone"
    )
    parser.add_argument("--warmup", type=int, default=config["warmup"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    before = machine()
    config["warmup"] = arguments.warmup
    counts = {name: getattr(arguments, name) for name in ("steps", "alone_steps", "warmup", "processes", "threads")}
    measured = measure_together(arguments.processes, config, arguments.steps, arguments.alone_steps, arguments.threads)
    result = summary(measured) | {**counts, **before, "load_average_after": os.getloadavg()[0]}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for name, seconds in result["seconds"].items():
        peak = f"  peak {result['peak_mib'][name]:6.1f} MiB" if name in VARIANTS else ""
        print(f"{name:20s} {seconds:.3f} s a step  {result['seconds']['port'] / seconds:.2f}x{peak}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
