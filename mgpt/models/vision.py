"""From pixels to image features: position embeddings of another size, the tokens that count, and the token merge."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

# base_model.py:155,237: the original's separate LayerNorm after the tower has torch's default epsilon, unlike the tower's own 1e-6.
LN_VISION_EPS = 1e-5


def fix_norm(tower: Any) -> None:
    """Give Blip2VisionModel's post_layernorm the original's epsilon; transformers builds it with the tower's."""
    if type(tower).__name__ == "Blip2VisionModel":
        tower.post_layernorm.eps = LN_VISION_EPS


def resize_positions(positions: torch.Tensor, patches: int) -> torch.Tensor:
    """Position embeddings (1, 1 + n², width) for a square of `patches` patches: bicubic, without antialias, CLS kept apart
    (eva_vit.py:373-394). Unchanged when the size is the same; else float32, as in the original, whose file is half precision.
    """
    if positions.shape[1] == patches + 1:
        return positions
    first, grid = positions[:, :1].float(), positions[:, 1:].float()
    old, new, width = round(grid.shape[1] ** 0.5), round(patches**0.5), positions.shape[2]
    grid_CHW = grid.reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid_CHW = functional.interpolate(grid_CHW, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([first, grid_CHW.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def resize_tower(tower: Any, image_size: int) -> None:
    """Fit a Blip2VisionModel to another image size (pixels); ValueError for another architecture, which must be loaded at its own size."""
    if tower.config.image_size == image_size:
        return
    if type(tower).__name__ != "Blip2VisionModel":
        raise ValueError(
            f"image_size: {image_size} differs from the tower's {tower.config.image_size}, and only Blip2VisionModel can be "
            f"resized, not {type(tower).__name__}; leave image_size out"
        )
    patches = (image_size // tower.config.patch_size) ** 2
    embeddings = tower.embeddings
    positions = embeddings.position_embedding.data
    embeddings.position_embedding = nn.Parameter(resize_positions(positions, patches).to(positions.dtype))
    embeddings.image_size, embeddings.num_patches, embeddings.num_positions = image_size, patches, patches + 1
    tower.config.image_size = image_size


def encode_frozen(
    tower: Any,
    pixel_values: torch.Tensor,
    patches: int,
    merge: int,
    qformer: Any = None,
    query_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """The frozen part of a model: (images, 3, side, side) → (images, image tokens, projection inputs), by the Q-Former where there is one,
    else by the token merge.
    """
    frozen = not any(parameter.requires_grad for parameter in tower.parameters())
    with (
        torch.set_grad_enabled(torch.is_grad_enabled() and not frozen),
        _autocast_unless_half(tower, pixel_values.device.type),
    ):
        hidden_BLD = tower(pixel_values.to(tower.dtype)).last_hidden_state
    if qformer is None or query_tokens is None:
        return merge_tokens(hidden_BLD, patches, merge)
    queries_BLD = query_tokens.expand(hidden_BLD.shape[0], -1, -1)
    seen_BLD = hidden_BLD.to(query_tokens.dtype)
    with _autocast_unless_half(qformer, pixel_values.device.type):
        features: torch.Tensor = qformer(query_embeds=queries_BLD, encoder_hidden_states=seen_BLD).last_hidden_state
    return features


def _autocast_unless_half(part: Any, device: str) -> torch.autocast:
    """Autocast goes on as it is, but ends for a part that is held in half precision: all it would do there is to take norms to float32 and
    back, which took a tenth of a step on an H100."""
    wanted = torch.is_autocast_enabled(device) and any(
        parameter.dtype == torch.float32 for parameter in part.parameters()
    )
    return torch.autocast(device, torch.get_autocast_dtype(device), enabled=wanted)


def merge_tokens(hidden_BLD: torch.Tensor, patches: int, merge: int) -> torch.Tensor:
    """Drop what is no patch (CLS, registers: always in front) and concatenate each `merge` tokens that follow one another in raster order.

    A strip of 1 x merge patches, not a square: the released weights were trained so (minigpt_v2.py:83-85).
    (images, tokens, width) → (images, patches / merge, width * merge).
    """
    patches_BPD = hidden_BLD[:, hidden_BLD.shape[1] - patches :]
    return patches_BPD.reshape(patches_BPD.shape[0], patches // merge, -1)
