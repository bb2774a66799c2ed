"""Checks of the model's input tensors."""

from __future__ import annotations

from typing import Any

import torch

from mgpt.models.compat import assert_on_device
from mgpt.models.configuration_minigpt import MiniGPTConfig


def check_images(
    input_ids: torch.Tensor,
    is_image: torch.Tensor,
    features: torch.Tensor | None,
    config: MiniGPTConfig,
    vocabulary: int,
    wait: bool,
) -> None:
    """Raises ValueError unless the placeholders match the image features, and the other ids are in the vocabulary.

    wait: whether to read values back from a device. If not, a wrong number of placeholders fails later, on the device.
    """
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise ValueError(
            f"input_ids: expected integers of shape (batch, length), got {tuple(input_ids.shape)} of {input_ids.dtype}"
        )
    tokens, width = config.num_image_tokens, config.projection_inputs
    if features is not None and features.shape[-1] != width:
        raise ValueError(f"image_features: width {features.shape[-1]}, expected {width}, as encode_images gives")
    if features is not None and (features.ndim != 3 or features.shape[1] != tokens):
        raise ValueError(
            f"image_features: shape {tuple(features.shape)}, expected (images, {tokens}, {width}), "
            "as encode_images gives"
        )
    images = 0 if features is None else features.shape[0]
    if not wait and is_image.device.type != "cpu":
        assert_on_device(is_image.sum() == images * tokens)
        return
    found = is_image.sum(1).tolist()
    if sum(found) != images * tokens:
        raise ValueError(
            f"input_ids hold {sum(found)} image placeholders, but {images} images need {images * tokens} "
            f"({images} x {tokens}); give as many images as there are <ImageHere> marks"
        )
    if any(count % tokens for count in found):
        raise ValueError(
            f"input_ids hold {found} image placeholders, row by row: not {tokens} for each image; "
            "use the processor's rows"
        )
    foreign = input_ids[~is_image & ((input_ids < 0) | (input_ids >= vocabulary))]
    if foreign.numel():
        raise ValueError(
            f"input_ids: {foreign[0].item()} is not in the vocabulary, 0 to {vocabulary - 1}; "
            "use this model's tokenizer"
        )


def check_shapes(embeds_BLD: torch.Tensor, mask: Any, labels_BL: torch.Tensor | None, cached: bool = False) -> None:
    """Raises ValueError for a mask or labels of another shape. cached: the mask covers past positions too."""
    rows = tuple(embeds_BLD.shape[:2])
    if isinstance(mask, torch.Tensor) and mask.ndim == 2 and not cached and tuple(mask.shape) != rows:
        raise ValueError(f"attention_mask: shape {tuple(mask.shape)}, expected {rows}, one flag per token")
    if labels_BL is not None and tuple(labels_BL.shape) != rows:
        raise ValueError(f"labels: shape {tuple(labels_BL.shape)}, expected {rows}, one label per token")
