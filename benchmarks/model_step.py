"""One training step of the model compared with a straightforward transformers port: time and peak memory.

Both train the same weights on the same batches: the projection and LoRA of a small MiniGPT-v2 on a frozen tower. The
port pads each row to the batch's longest and computes logits and loss at every position, like
`LlamaForCausalLM(inputs_embeds, labels)`. Ours cuts the batch into micro-batches of similar length (the loss is a sum
over supervised tokens, so this changes nothing) and computes the head at supervised positions only. Steps alternate
in one process and their order reverses each time, so that a busy machine slows both.

Run: python benchmarks/model_step.py [--steps 20] [--out FILE]. The last line is JSON: time_ratio and memory_ratio are
medians of ours / port.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM

from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.models.backbones import save_backbone
from mgpt.models.tokenizer import build_tokenizer
from mgpt.training.batch import IGNORE, cut_by_length

DATA = Path(__file__).parent / "data" / "model_step"
MICRO_BATCH = 4
TOLERANCE = 1e-3  # relative difference of the two losses before the first update
Step = Callable[[dict[str, torch.Tensor]], float]


def build(config: dict[str, Any], folder: Path) -> tuple[MiniGPTForConditionalGeneration, MiniGPTProcessor]:
    """Builds the model of the configured sizes on random backbones, and its processor."""
    torch.manual_seed(config["seed"])
    vit, llama, lora = config["vit"], config["llama"], config["lora"]
    vision = Blip2VisionConfig(
        hidden_size=vit["width"],
        intermediate_size=int(vit["width"] * vit["mlp_ratio"]),
        num_hidden_layers=vit["depth"],
        num_attention_heads=vit["heads"],
        patch_size=vit["patch"],
        image_size=config["img"],
        initializer_range=0.02,
    )
    language = LlamaConfig(
        vocab_size=llama["vocab"],
        hidden_size=llama["hidden"],
        intermediate_size=llama["inter"],
        rms_norm_eps=llama["eps"],
        num_hidden_layers=llama["layers"],
        num_attention_heads=llama["heads"],
        max_position_embeddings=llama["max_pos"],
    )
    save_backbone(folder / "vision", Blip2VisionModel(vision))
    save_backbone(folder / "language", LlamaForCausalLM(language), tokenizer=build_tokenizer(DATA / "tokenizer.model"))
    adapters = {
        "r": lora["r"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora["dropout"],
        "target_modules": lora["targets"],
    }
    model = MiniGPTForConditionalGeneration.from_backbones(
        folder / "vision", folder / "language", merge=4, lora=adapters
    )
    processor = MiniGPTProcessor.from_config(model.config, folder / "language")
    processor.max_answer_tokens = config["max_txt_len"]
    return model.train(), processor


def batches(config: dict[str, Any], processor: MiniGPTProcessor) -> list[dict[str, torch.Tensor]]:
    """Returns batches of the texts, right-padded to the longest, each row with an image of noise."""
    texts, size = json.loads((DATA / "texts.json").read_text()), config["batch_size"]
    generator = torch.Generator().manual_seed(config["seed"])
    made = []
    for start in range(0, config["n_batches"] * size, size):
        chosen = [texts[number % len(texts)] for number in range(start, start + size)]
        conversations = [
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            for question, answer in chosen
        ]
        pixels = torch.randn(size, 3, config["img"], config["img"], generator=generator)
        made.append(dict(processor(pixels, conversations, format="minigpt-v2")))
    return made


def port_loss(model: MiniGPTForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Computes the port's loss and gradients: padded rows, logits at every position, transformers' own loss."""
    hidden = model.vision_tower(batch["pixel_values"]).last_hidden_state[:, 1:]
    images = model.projection(hidden.reshape(hidden.shape[0], hidden.shape[1] // 4, -1))
    is_image = batch["input_ids"] == model.config.image_token_id
    embeds = model.get_input_embeddings()(batch["input_ids"].masked_fill(is_image, 0)).masked_scatter(
        is_image[:, :, None], images
    )
    loss = model.language_model(
        inputs_embeds=embeds, attention_mask=batch["attention_mask"], labels=batch["labels"], use_cache=False
    ).loss
    loss.backward()
    return loss.detach()


def our_loss(model: MiniGPTForConditionalGeneration, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Computes our loss and gradients: micro-batches of similar length, the head at supervised positions only."""
    supervised = (batch["labels"] != IGNORE).sum()
    rows = len(batch["labels"])
    loss = torch.zeros(())
    for micro in cut_by_length(batch, [str(row) for row in range(rows)], [1] * rows, MICRO_BATCH):
        total, _ = model.loss_sum(micro.tensors)
        part = total / supervised
        part.backward()
        loss += part.detach()
    return loss


def stepper(
    model: MiniGPTForConditionalGeneration, config: dict[str, Any], loss_of: Callable[..., torch.Tensor]
) -> Step:
    """Returns a function that runs one optimizer step on a batch and returns the loss."""
    options = config["optimizer"]
    optimizer = torch.optim.AdamW(
        model.trainable_parameters().values(),
        lr=options["lr"],
        weight_decay=options["weight_decay"],
        betas=tuple(options["betas"]),
    )

    def step(batch: dict[str, torch.Tensor]) -> float:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        optimizer.step()
        return loss.item()

    return step


def peak_bytes(step: Step, batch: dict[str, torch.Tensor]) -> int:
    """Returns the peak memory of one step beyond what was allocated before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(batch)
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure(config: dict[str, Any], steps: int) -> dict[str, Any]:
    """Measures times and peaks of both, alternating. Raises ValueError when their first losses differ."""
    with tempfile.TemporaryDirectory() as scratch:
        model, processor = build(config, Path(scratch) / "ours")
        twin, _ = build(config, Path(scratch) / "port")
    both = {"ours": stepper(model, config, our_loss), "port": stepper(twin, config, port_loss)}
    work = batches(config, processor)
    first = {name: step(work[0]) for name, step in both.items()}
    if abs(first["ours"] - first["port"]) > TOLERANCE * first["port"]:
        raise ValueError(f"the two do not compute the same loss: {first}")
    times: dict[str, list[float]] = {name: [] for name in both}
    for number in range(config["warmup"] + steps):
        for name in sorted(both, reverse=bool(number % 2)):
            start = time.perf_counter()
            both[name](work[number % len(work)])
            if number >= config["warmup"]:
                times[name].append(time.perf_counter() - start)
    peaks = {name: [peak_bytes(step, batch) for batch in work[:5]] for name, step in both.items()}
    return {
        "first_loss": first,
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "peak_bytes": {name: statistics.median(values) for name, values in peaks.items()},
        "time_ratio": statistics.median(a / b for a, b in zip(times["ours"], times["port"], strict=True)),
        "memory_ratio": statistics.median(a / b for a, b in zip(peaks["ours"], peaks["port"], strict=True)),
    }


def main() -> None:
    """Measures, prints the figures, and prints one line of JSON last."""
    config = json.loads((DATA / "config.json").read_text())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=config["measured"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(config, arguments.steps)
    result |= {
        "steps": arguments.steps,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    for name in ("ours", "port"):
        seconds, peak, loss = (result[key][name] for key in ("seconds", "peak_bytes", "first_loss"))
        print(f"{name}: {seconds:.3f} s a step, peak {peak / 2**20:.1f} MiB, first loss {loss:.5f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
