"""From pixels to image features: position embeddings of another size, patch tokens, and the token merge.

Letters in names: B images, C channels, H and W patches, L tokens of the tower, P patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Blip2VisionModel

# base_model.py:155,237: the original's LayerNorm after the tower has torch's default epsilon, not the tower's 1e-6.
LN_VISION_EPS = 1e-5


def set_ln_vision_eps(tower: Any) -> None:
    """Gives Blip2VisionModel's post_layernorm the original's epsilon; transformers builds it with the tower's."""
    if isinstance(tower, Blip2VisionModel):
        tower.post_layernorm.eps = LN_VISION_EPS


def resize_position_embeddings(positions: torch.Tensor, patches: int) -> torch.Tensor:
    """Interpolates position embeddings (1, 1 + n², width) to a square of `patches` patches (eva_vit.py:373-394).

    Bicubic without antialiasing; CLS is kept. Returned as they are when the size is the same, else in float32, as in
    the original, whose file is half precision.
    """
    if positions.shape[1] == patches + 1:
        return positions
    cls, grid = positions[:, :1].float(), positions[:, 1:].float()
    old, new, width = round(grid.shape[1] ** 0.5), round(patches**0.5), positions.shape[2]
    grid_BCHW = grid.reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid_BCHW = functional.interpolate(grid_BCHW, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid_BCHW.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def resize_vision_tower(tower: Any, image_size: int) -> None:
    """Fits a Blip2VisionModel to another image size (pixels), in place.

    Raises ValueError for any other architecture.
    """
    if tower.config.image_size == image_size:
        return
    if not isinstance(tower, Blip2VisionModel):
        raise ValueError(
            f"image_size: {image_size} differs from the tower's {tower.config.image_size}, and only Blip2VisionModel "
            f"can be resized, not {type(tower).__name__}; leave image_size out"
        )
    config: Any = tower.config
    patches = (image_size // config.patch_size) ** 2
    embeddings: Any = tower.embeddings
    positions = embeddings.position_embedding.data
    embeddings.position_embedding = nn.Parameter(resize_position_embeddings(positions, patches).to(positions.dtype))
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
    """Encodes (images, 3, side, side) to (images, image tokens, projection inputs), without the trained projection.

    The tower's tokens go through the Q-Former if there is one, else through the token merge.
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
    keys_BLD = hidden_BLD.to(query_tokens.dtype)
    with _autocast_unless_half(qformer, pixel_values.device.type):
        features: torch.Tensor = qformer(query_embeds=queries_BLD, encoder_hidden_states=keys_BLD).last_hidden_state
    return features


def _autocast_unless_half(part: nn.Module, device: str) -> torch.autocast:
    """Keeps autocast as it is, but turns it off for a part in half precision.

    There it would only convert norms to float32 and back, which took a tenth of a step on an H100.
    """
    enabled = torch.is_autocast_enabled(device) and any(
        parameter.dtype == torch.float32 for parameter in part.parameters()
    )
    return torch.autocast(device, torch.get_autocast_dtype(device), enabled=enabled)


def merge_tokens(hidden_BLD: torch.Tensor, patches: int, merge: int) -> torch.Tensor:
    """Drops leading CLS and register tokens, and concatenates every `merge` consecutive patches in raster order.

    A strip of 1 x merge patches, not a square: the released weights were trained so (minigpt_v2.py:83-85).
    (images, tokens, width) → (images, patches / merge, width * merge).
    """
    patches_BPD = hidden_BLD[:, hidden_BLD.shape[1] - patches :]
    return patches_BPD.reshape(patches_BPD.shape[0], patches // merge, -1)
