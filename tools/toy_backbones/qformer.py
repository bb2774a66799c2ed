"""Training of the toy Q-Former, which stands for BLIP-2's: query i of 16 encodes cell i of a 4 x 4 grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionModel

from mgpt.data.synthetic.world import GRID
from tools.toy_backbones.targets import cell_targets
from tools.toy_backbones.vision import LinearReadout, as_tensors, load, pixels

WIDTH = 96
QUERIES = GRID * GRID


def build_qformer(tower_width: int) -> tuple[Blip2QFormerModel, nn.Parameter]:
    """Builds two layers with cross-attention, and the queries (1, 16, 96)."""
    config = Blip2QFormerConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        encoder_hidden_size=tower_width,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        vocab_size=1,
        max_position_embeddings=1,
    )
    return Blip2QFormerModel(config), nn.Parameter(torch.randn(1, QUERIES, WIDTH) * 0.5)


def train_qformer(
    tower: Blip2VisionModel,
    steps: int = 1500,
    batch_size: int = 64,
    seed: int = 3,
    count: int = 12_000,
    log_every: int = 100,
) -> tuple[Blip2QFormerModel, nn.Parameter, LinearReadout]:
    """Trains on the frozen tower's tokens, CLS included as in BLIP-2; prints held-out accuracies."""
    torch.manual_seed(seed)
    (qformer, queries), readout = build_qformer(tower.config.hidden_size), LinearReadout(WIDTH)
    (world, images), (held_world, held_images) = load("train", count, seed), load("validation", 400, seed)
    held_targets = as_tensors(cell_targets(held_world))
    parameters = [*qformer.parameters(), queries, *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98))
    lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        rows = rng.integers(len(world), size=batch_size)
        with torch.no_grad():
            seen = tower(pixels(images[rows])).last_hidden_state
        hidden_BLD = qformer(
            query_embeds=queries.expand(batch_size, -1, -1), encoder_hidden_states=seen
        ).last_hidden_state
        loss = readout.loss(hidden_BLD, as_tensors(cell_targets([world[r] for r in rows])))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        lr_scheduler.step()
        if (step + 1) % log_every == 0:
            with torch.no_grad():
                seen = tower(pixels(held_images)).last_hidden_state
                hidden_BLD = qformer(
                    query_embeds=queries.expand(len(seen), -1, -1), encoder_hidden_states=seen
                ).last_hidden_state
                report = readout.report(hidden_BLD, held_targets)
            print(
                f"qformer {step + 1}/{steps} loss {loss.item():.3f} "
                + " ".join(f"{k} {v:.3f}" for k, v in report.items()),
                flush=True,
            )
    qformer.eval().requires_grad_(False)
    queries.requires_grad_(False)
    return qformer, queries, readout
