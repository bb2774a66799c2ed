"""Images in and out: reading whatever a caller gives, and drawing boxes with their labels."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from mgpt.serving.predictor import LabelledBox

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
LEAST_SIDE = 512  # a smaller image is enlarged, so that a label can be read
MOST_PIXELS = 100_000_000
LONGEST_PATH = 4096


def read_image(value: Any) -> Image.Image:
    """An upright RGB image from a Pillow image, encoded bytes, base64 text (a data URL too), or a path.

    Raises:
        ValueError: it is none of these, cannot be decoded, or has more than 100 million pixels.
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return decode(bytes(value), "image bytes")
    if isinstance(value, Path):
        return _read_file(value)
    if isinstance(value, str):
        return _read_text(value)
    raise ValueError(f"image: {type(value).__name__} is no image; give encoded bytes, base64 text, or a path")


def decode(content: bytes, name: str) -> Image.Image:
    """An upright RGB image from an encoded file's bytes; ValueError names `name` where they are none."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(
                    f"{name}: {opened.width}x{opened.height} pixels are more than {MOST_PIXELS}; make the image smaller"
                )
            # Cameras store the turned sensor image and a note; without following it every box would be turned too.
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
    if len(value) < LONGEST_PATH and Path(value).is_file():
        return _read_file(Path(value))
    return decode(_from_base64(value), "image (base64)")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"image: {text[:60]!r} is neither an existing file nor base64 ({error})") from error


def draw_boxes(image: Image.Image, boxes: Sequence[LabelledBox]) -> Image.Image:
    """A copy of the image with each box outlined and its label above it, or inside where there is no room; enlarged when small."""
    factor = max(1, -(-LEAST_SIDE // max(1, min(image.size))))
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
    """An image that any model should have an answer to: a red circle and a blue square on light grey, 224 pixels wide."""
    image = Image.new("RGB", (224, 224), "#e6e6e6")
    pen = ImageDraw.Draw(image)
    pen.ellipse([30, 40, 100, 110], fill="#d62728")
    pen.rectangle([130, 120, 200, 190], fill="#1f77b4")
    return image
