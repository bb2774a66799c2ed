"""Image input and output: reads every form a caller may give, and draws labelled boxes."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

from mgpt.serving.types import LabelledBox

# The palette of Okabe and Ito, which colour-blind readers can distinguish too.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
MIN_DRAWN_SIDE = 512  # a smaller image is enlarged, so that labels are legible
MAX_PIXELS = 100_000_000
MAX_PATH_LENGTH = 4096


def read_image(value: Any) -> Image.Image:
    """Returns an upright RGB image from a Pillow image, encoded bytes, base64 text (or a data URL), or a path.

    Raises:
        ValueError: the value is none of these, cannot be decoded, or has more than 100 million pixels.
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return decode(bytes(value), "image bytes")
    if isinstance(value, Path):
        return _read_file(value)
    if isinstance(value, str):
        return _read_text(value)
    raise ValueError(f"image: {type(value).__name__} is not an image; give encoded bytes, base64 text, or a path")


def decode(content: bytes, name: str) -> Image.Image:
    """Decodes an encoded image file into an upright RGB image. Raises ValueError, with `name`, for anything else."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(
                    f"{name}: {opened.width}x{opened.height} pixels exceed the limit of {MAX_PIXELS}; make the image "
                    "smaller"
                )
            # Cameras store the rotated sensor image with an EXIF orientation; ignoring it would rotate every box.
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: not a readable image ({error}); give a PNG, JPEG or WebP") from error


def _read_file(path: Path) -> Image.Image:
    if not path.is_file():
        raise ValueError(f"{path}: no such image; give the path of a PNG, JPEG or WebP file")
    return decode(path.read_bytes(), str(path))


def _read_text(value: str) -> Image.Image:
    if value.startswith("data:"):
        return decode(_from_base64(value.partition(",")[2]), "image (data URL)")
    if len(value) < MAX_PATH_LENGTH and Path(value).is_file():
        return _read_file(Path(value))
    return decode(_from_base64(value), "image (base64)")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"image: {text[:60]!r} is neither an existing file nor base64 ({error})") from error


def draw_boxes(image: Image.Image, boxes: Sequence[LabelledBox]) -> Image.Image:
    """Returns a copy of the image with each box outlined, its label above it or, without room, inside; small images are
    enlarged."""
    factor = max(1, -(-MIN_DRAWN_SIDE // max(1, min(image.size))))
    canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    line = max(2, min(canvas.size) // 200)
    font = ImageFont.load_default(size=max(14, min(canvas.size) // 28))
    for number, box in enumerate(boxes):
        corners = [
            box.x1 * factor,
            box.y1 * factor,
            max(box.x1 * factor, box.x2 * factor - 1),
            max(box.y1 * factor, box.y2 * factor - 1),
        ]
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle(corners, outline=colour, width=line)
        _label(pen, canvas.size, corners, box.label, colour, font)
    return canvas


def _label(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], corners: list[float], text: str, colour: str, font: Any
) -> None:
    if not text:
        return
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    x = max(0, min(corners[0], size[0] - width))
    y = corners[1] - height if corners[1] >= height else corners[1]
    pen.rectangle([x, y, x + width, y + height], fill=colour)
    pen.text(
        (x + 3 - left, y + 3 - top), text, fill="white" if sum(ImageColor.getrgb(colour)) < 400 else "black", font=font
    )


def sample_image() -> Image.Image:
    """Returns an image any model should be able to describe: a red circle and a blue square on light grey, 224 x 224
    pixels."""
    image = Image.new("RGB", (224, 224), "#e6e6e6")
    pen = ImageDraw.Draw(image)
    pen.ellipse([30, 40, 100, 110], fill="#d62728")
    pen.rectangle([130, 120, 200, 190], fill="#1f77b4")
    return image
