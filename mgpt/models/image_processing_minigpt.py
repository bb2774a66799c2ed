"""Image preprocessing, equal to the original's: a bicubic resize to a square, then CLIP's normalisation.

The aspect ratio is not kept (blip_processors.py:96-140). The resize is Pillow's; tensor resizes differ by up to 0.045.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

# blip_processors.py:18-27, the CLIP statistics.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class MiniGPTImageProcessor(BaseImageProcessor):
    """`processor(images).pixel_values` is float32 (images, 3, image_size, image_size)."""

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        image_size: int = 224,
        image_mean: tuple[float, ...] = IMAGE_MEAN,
        image_std: tuple[float, ...] = IMAGE_STD,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size = image_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def __call__(self, images: Any, *_: Any, **__: Any) -> BatchFeature:
        """Converts one image or a list; each is a PIL image, a path, encoded bytes or an (H, W, 3) uint8 array.

        Raises ValueError, with the position in the list, for something that is not an image or has no pixels.
        """
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        pixels = [self.pixels(image, f"images[{number}]") for number, image in enumerate(images)]
        size = (0, 3, self.image_size, self.image_size)
        return BatchFeature({"pixel_values": torch.stack(pixels) if pixels else torch.empty(size)})

    preprocess = __call__

    def pixels(self, image: Any, name: str = "image") -> torch.Tensor:
        """Returns one image as float32 (3, image_size, image_size); such a float tensor is returned as it is."""
        if isinstance(image, torch.Tensor) and image.is_floating_point():
            if tuple(image.shape) != (3, self.image_size, self.image_size):
                raise ValueError(
                    f"{name}: pixels of shape {tuple(image.shape)}, expected (3, {self.image_size}, {self.image_size})"
                )
            if not torch.isfinite(image).all():
                raise ValueError(f"{name}: pixels that are not finite (NaN or infinite); give the image itself")
            return image
        decoded = as_rgb(image, name).resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        # Bit-identical to ToTensor and Normalize: the same float32 operations in the same order.
        unit_CHW = torch.from_numpy(np.array(decoded)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, std = torch.tensor(self.image_mean).view(3, 1, 1), torch.tensor(self.image_std).view(3, 1, 1)
        return unit_CHW.sub_(mean).div_(std)


def as_rgb(image: Any, name: str = "image") -> Image.Image:
    """Decodes a PIL image, a path, encoded bytes or an (H, W, 3) uint8 array to RGB.

    Raises ValueError for anything else.
    """
    if isinstance(image, (Image.Image, str, Path, bytes, bytearray)):
        decoded, size = _decode(image, name)
    else:
        array = _checked_array(image, name)
        decoded, size = None if 0 in array.shape else Image.fromarray(array), (array.shape[1], array.shape[0])
    if decoded is None:
        raise ValueError(f"{name}: the image is {size[0]} x {size[1]} pixels; every side must be at least 1")
    return decoded


def _decode(image: Any, name: str) -> tuple[Image.Image | None, tuple[int, int]]:
    """Returns the image in RGB, or None if it has no pixels, and its size (width, height)."""
    try:
        decoded = (
            image
            if isinstance(image, Image.Image)
            else Image.open(BytesIO(image) if isinstance(image, (bytes, bytearray)) else image)
        )
        return (None if 0 in decoded.size else decoded.convert("RGB")), decoded.size
    except Exception as error:  # each of Pillow's decoders raises its own, and an oversized image another
        raise ValueError(f"{name}: cannot be read as an image ({error}); check that the file is complete") from error


def _checked_array(image: Any, name: str) -> np.ndarray:
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"{name}: expected a PIL image, a path, encoded bytes or an (H, W, 3) uint8 array; "
            f"got {type(image).__name__} of shape {array.shape} and type {array.dtype}"
        )
    return array
