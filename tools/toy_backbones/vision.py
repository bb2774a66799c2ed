"""Training of the toy vision tower, which stands for EVA-CLIP: a ViT in EVA's layout with dense supervision per patch.

Its final norm has no learned affine, as in MiniGPT-v2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import Blip2VisionConfig, Blip2VisionModel

from mgpt.data.synthetic.world import BACKGROUNDS, CANVAS, COLOURS, SHAPES, SIGN_WORDS, SIZES, Scene, draw, scenes
from tools.toy_backbones.targets import BINS, IGNORE, PATCH, Targets, patch_targets, spread

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
CLASSES = {
    "owner": 2,
    "covered": 2,
    "shape": len(SHAPES),
    "colour": len(COLOURS),
    "size": len(SIZES),
    "sign": 2,
    "word": len(SIGN_WORDS),
    "background": len(BACKGROUNDS),
}
WEIGHTS = {
    "owner": 3.0,
    "covered": 1.0,
    "shape": 1.5,
    "colour": 1.0,
    "size": 1.0,
    "sign": 1.0,
    "word": 1.0,
    "background": 0.3,
}


def build_tower() -> Blip2VisionModel:
    """Builds the tower: 0.4 M parameters, 64 px, patch 8, width 96, 4 blocks; final norm with eps 1e-5 as in the
    original.
    """
    config = Blip2VisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
    )
    tower = Blip2VisionModel(config)
    tower.post_layernorm.eps = 1e-5
    tower.post_layernorm.requires_grad_(False)
    return tower


class LinearReadout(nn.Module):
    """Linear heads that predict the targets from token features; discarded after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.ModuleDict({name: nn.Linear(width, count) for name, count in CLASSES.items()})
        self.box = nn.Linear(width, 4 * BINS)

    def loss(self, hidden_BLD: torch.Tensor, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sums the weighted cross-entropies; boxes count where a thing covers the position, and four times at its
        centre.
        """
        total = hidden_BLD.new_zeros(())
        for name, head in self.classes.items():
            total = total + WEIGHTS[name] * functional.cross_entropy(
                head(hidden_BLD).flatten(0, 1), targets[name].flatten(), ignore_index=IGNORE
            )
        log_p = self.box(hidden_BLD).unflatten(-1, (4, BINS)).log_softmax(-1)
        weight = targets["covered"] + 3.0 * targets["owner"]
        box_loss = -(targets["box"] * log_p).sum((-1, -2)) * weight
        return total + 1.5 * box_loss.sum() / weight.sum()

    @torch.no_grad()
    def report(self, hidden_BLD: torch.Tensor, targets: dict[str, torch.Tensor]) -> dict[str, float]:
        """Returns the accuracy of each head, and the mean box error in pixels at the centres of things."""
        found = {}
        for name, head in self.classes.items():
            known = targets[name] != IGNORE
            found[name] = (head(hidden_BLD).argmax(-1) == targets[name])[known].float().mean().item()
        owners = targets["owner"] == 1
        marks = torch.arange(BINS) * (CANVAS / (BINS - 1))
        predicted = (self.box(hidden_BLD).unflatten(-1, (4, BINS)).softmax(-1) @ marks)[owners]
        found["box_error_px"] = (predicted - targets["box"][owners] @ marks).abs().mean().item()
        found["owner_f1"] = _f1(self.classes["owner"](hidden_BLD).argmax(-1), targets["owner"])
        return found


def _f1(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    hits = ((predicted == 1) & (truth == 1)).sum().item()
    return 2 * hits / max((predicted == 1).sum().item() + (truth == 1).sum().item(), 1)


def as_tensors(targets: Targets) -> dict[str, torch.Tensor]:
    """Converts targets to tensors, the box as weights of bins (scenes, positions, 4, BINS)."""
    fields = {name: torch.from_numpy(getattr(targets, name)) for name in CLASSES}
    return {**fields, "box": torch.from_numpy(spread(targets.box))}


def pixels(images: np.ndarray) -> torch.Tensor:
    """Converts uint8 (B, H, W, 3) to float (B, 3, H, W), normalized by CLIP's mean and deviation as in the
    processors.
    """
    return torch.from_numpy((images.astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2).contiguous()


def load(split: str, count: int, seed: int) -> tuple[list[Scene], np.ndarray]:
    """Returns scenes of a split and their images (count, 64, 64, 3) uint8."""
    world = list(scenes(split, count, seed))  # type: ignore[arg-type]
    return world, np.stack([np.asarray(draw(scene)) for scene in world])


def train_tower(
    steps: tuple[int, ...], batch_size: int = 64, seed: int = 1, count: int = 20_000
) -> tuple[Blip2VisionModel, LinearReadout]:
    """Trains on `count` train scenes, in one warm-up-and-decay cycle per entry of `steps`."""
    torch.manual_seed(seed)
    tower, readout = build_tower(), LinearReadout(96)
    for cycle, length in enumerate(steps):
        train_cycle(tower, readout, length, batch_size, seed + 100 * cycle, count)
    return tower.eval().requires_grad_(False), readout


def train_cycle(
    tower: Blip2VisionModel,
    readout: LinearReadout,
    steps: int,
    batch_size: int,
    seed: int,
    count: int,
    log_every: int = 100,
) -> None:
    """Trains one cycle in place; prints held-out accuracies."""
    (world, images), (held_world, held_images) = load("train", count, seed), load("validation", 400, seed)
    held_targets = as_tensors(patch_targets(held_world))
    parameters = [p for p in [*tower.parameters(), *readout.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        rows = rng.integers(len(world), size=batch_size)
        hidden_BLD = tower(pixels(images[rows])).last_hidden_state[:, 1:]
        loss = readout.loss(hidden_BLD, as_tensors(patch_targets([world[r] for r in rows])))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        lr_scheduler.step()
        if (step + 1) % log_every == 0:
            with torch.no_grad():
                report = readout.report(tower(pixels(held_images)).last_hidden_state[:, 1:], held_targets)
            print(
                f"vision {step + 1}/{steps} loss {loss.item():.3f} "
                + " ".join(f"{k} {v:.3f}" for k, v in report.items()),
                flush=True,
            )
