"""Images from strangers: refused for a named reason, or mended in a documented way.

Mended: EXIF orientation is applied (boxes turn with it), CMYK becomes RGB, 16-bit grey is scaled to 8 bits, transparency is laid on
white. A mended image is encoded anew, as JPEG (quality 95, no chroma subsampling) where it was one, else as PNG. An image that needs
no mending keeps its bytes. A wrong file extension does not matter: the content decides.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from mgpt.config.sources import CurateSettings
from mgpt.data.boxes import Box

# Importing a plugin registers its format; Pillow's other decoders are not offered to strangers' files.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # JPEG opens MPO too
THUMBNAIL = 32  # side of the image's fingerprint, see mgpt.curation.near_duplicates
LOOK = 64  # fewest pixels of a side that a fingerprint is made of, where there are as many
ORIENTATION = 0x0112  # EXIF tag


class BadImage(ValueError):
    """The image cannot be used; `reason` names the row of the quarantine table."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Checked:
    """A usable image: its bytes, the sha256 of them, size in pixels, its RGB thumbnail [32, 32, 3] as bytes, what was mended, and the
    EXIF orientation (1 to 8) with the stored size that boxes have to follow."""

    data: bytes
    sha256: str
    width: int
    height: int
    thumbnail: bytes
    mended: tuple[str, ...]
    orientation: int
    stored_size: tuple[int, int]


def check_image(data: bytes, settings: CurateSettings) -> Checked:
    """Reads an image as strictly as a training run needs it.

    Raises:
        BadImage: empty file, too many bytes, not an image, too many pixels, animated image, damaged image, too small, extreme aspect.
    """
    if not data:
        raise BadImage("empty file", "0 bytes")
    if len(data) > settings.maximum_bytes:
        raise BadImage("too many bytes", f"{len(data)} > {settings.maximum_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the pixel limit below is the project's own
        return _decode(data, settings)


def _decode(data: bytes, settings: CurateSettings) -> Checked:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, settings)
            stored, orientation = image.size, _orientation(image)
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and orientation == 1:
                # It keeps its bytes, so a small look is enough: every code of the file is read, only fewer points are made of them.
                image.draft(None, (LOOK, LOOK))
            image.load()
            _check_end(data, image.format)
            return _mend(data, image, orientation, stored)
    except Image.DecompressionBombError as error:
        raise BadImage("too many pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadImage("not an image", f"starts with {data[:12]!r}") from error
    except BadImage:
        raise
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        MemoryError,
        OverflowError,
        TypeError,
        IndexError,
    ) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise BadImage("damaged image", f"{type(error).__name__}: {error}"[:200]) from error


def _check_header(image: Image.Image, settings: CurateSettings) -> None:
    width, height = image.size
    if width * height > settings.maximum_pixels:
        raise BadImage("too many pixels", f"{width}x{height} > {settings.maximum_pixels}")
    if min(width, height) < settings.minimum_side:
        raise BadImage("too small", f"{width}x{height}, the shorter side must have {settings.minimum_side} pixels")
    if max(width, height) > settings.maximum_aspect * min(width, height):
        raise BadImage("extreme aspect", f"{width}x{height}, at most {settings.maximum_aspect:g} to 1")
    if (
        image.format != "MPO" and getattr(image, "n_frames", 1) > 1
    ):  # an MPO is a photograph with a preview or a second eye
        raise BadImage("animated image", f"{image.format} with {getattr(image, 'n_frames', 1)} frames")


def _check_end(data: bytes, kind: str | None) -> None:
    # Pillow fills a JPEG whose last rows are missing with grey when only the end marker is gone: ask for the marker.
    if kind == "JPEG" and data.rfind(b"\xff\xd9") < len(data) // 2:
        raise BadImage("damaged image", "JPEG without end marker")


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ORIENTATION, 1) if image.format in ("JPEG", "MPO", "PNG", "WEBP", "TIFF") else 1
    return found if found in range(1, 9) else 1


def _mend(data: bytes, image: Image.Image, orientation: int, stored: tuple[int, int]) -> Checked:
    rgb, mended = _to_rgb(image)
    if orientation != 1:
        rgb, mended = ImageOps.exif_transpose(_with_orientation(rgb, orientation)), [*mended, "orientation"]
    if mended:
        data = _encode(rgb, image.format)
    thumbnail = rgb.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=1.5).tobytes()
    width, height = rgb.size if mended else stored
    return Checked(data, hashlib.sha256(data).hexdigest(), width, height, thumbnail, tuple(mended), orientation, stored)


def _with_orientation(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ORIENTATION] = orientation
    return image


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    if image.mode == "RGB":
        return image, []
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        return Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8)).convert("RGB"), ["16-bit"]
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB"), ["transparency"]
    # Grey, bilevel and palette images have one meaning in RGB, so their bytes stay; CMYK and Lab need a converter.
    return image.convert("RGB"), ["colour space"] if image.mode not in ("L", "1", "P") else []


def _encode(image: Image.Image, kind: str | None) -> bytes:
    buffer = io.BytesIO()
    if kind in ("JPEG", "MPO"):
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def turn_box(box: Box, orientation: int, stored_size: tuple[int, int]) -> Box:
    """A box given on the stored pixels, on the image as EXIF `orientation` shows it.

    Annotations of the supported datasets are on stored pixels: the original code, and the tools that made them, read files without EXIF.
    """
    width, height = stored_size
    x1, y1, x2, y2 = box
    turned = {
        1: (x1, y1, x2, y2),
        2: (width - x2, y1, width - x1, y2),
        3: (width - x2, height - y2, width - x1, height - y1),
        4: (x1, height - y2, x2, height - y1),
        5: (y1, x1, y2, x2),
        6: (height - y2, x1, height - y1, x2),
        7: (height - y2, width - x2, height - y1, width - x1),
        8: (y1, width - x2, y2, width - x1),
    }
    return Box(*turned[orientation])
