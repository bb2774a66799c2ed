"""Checks of untrusted images: each is rejected for a named reason, or kept, after a documented repair where needed.

Repairs: EXIF orientation is applied (to boxes too), CMYK becomes RGB, 16-bit grey is scaled to 8 bits, transparency is
blended on white. A repaired image is re-encoded, as JPEG (quality 95, no chroma subsampling) if it was one, else as
PNG. Other images keep their bytes. The content determines the format; file extensions are ignored.
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

# Importing a plugin registers its format; Pillow's other decoders stay closed to untrusted files.
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # JPEG includes MPO
THUMBNAIL = 32  # side of the thumbnails that mgpt.curation.near_duplicates compares
DRAFT_SIDE = 64  # JPEGs may be decoded at reduced size, to no fewer pixels than this a side
ORIENTATION = 0x0112  # EXIF tag


class InvalidImage(ValueError):
    """The image cannot be used; `reason` is its reject reason in the quarantine table."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """A usable image.

    data, sha256: the encoded bytes and their hash. width, height: in pixels. thumbnail: RGB [32, 32, 3] as bytes.
    repairs: names of the repairs made. orientation, stored_size: EXIF orientation (1 to 8) and size before it was
    applied, as boxes refer to it.
    """

    data: bytes
    sha256: str
    width: int
    height: int
    thumbnail: bytes
    repairs: tuple[str, ...]
    orientation: int
    stored_size: tuple[int, int]


def check_image(data: bytes, settings: CurateSettings) -> CheckedImage:
    """Decodes and checks an image as strictly as training requires.

    Raises:
        InvalidImage: empty file, too many bytes, not an image, too many pixels, animated image, damaged image, too
            small, extreme aspect.
    """
    if not data:
        raise InvalidImage("empty file", "0 bytes")
    if len(data) > settings.maximum_bytes:
        raise InvalidImage("too many bytes", f"{len(data)} > {settings.maximum_bytes}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # replaced by the pixel limit below
        return _decode(data, settings)


def _decode(data: bytes, settings: CurateSettings) -> CheckedImage:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_header(image, settings)
            stored, orientation = image.size, _orientation(image)
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L") and orientation == 1:
                # It keeps its bytes, so a draft is enough: the whole file is decoded, to fewer pixels.
                image.draft(None, (DRAFT_SIDE, DRAFT_SIDE))
            image.load()
            _check_end(data, image.format)
            return _repair(data, image, orientation, stored)
    except Image.DecompressionBombError as error:
        raise InvalidImage("too many pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise InvalidImage("not an image", f"starts with {data[:12]!r}") from error
    except InvalidImage:
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
        raise InvalidImage("damaged image", f"{type(error).__name__}: {error}"[:200]) from error


def _check_header(image: Image.Image, settings: CurateSettings) -> None:
    width, height = image.size
    if width * height > settings.maximum_pixels:
        raise InvalidImage("too many pixels", f"{width}x{height} > {settings.maximum_pixels}")
    if min(width, height) < settings.minimum_side:
        raise InvalidImage("too small", f"{width}x{height}, the shorter side must have {settings.minimum_side} pixels")
    if max(width, height) > settings.maximum_aspect * min(width, height):
        raise InvalidImage("extreme aspect", f"{width}x{height}, at most {settings.maximum_aspect:g} to 1")
    # An MPO is a photograph with a preview or a stereo pair.
    if image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise InvalidImage("animated image", f"{image.format} with {frames} frames")


def _check_end(data: bytes, kind: str | None) -> None:
    # Pillow silently fills missing last rows of a JPEG with grey when only the end marker is absent: require the
    # marker.
    if kind == "JPEG" and data.rfind(b"\xff\xd9") < len(data) // 2:
        raise InvalidImage("damaged image", "JPEG without end marker")


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ORIENTATION, 1) if image.format in ("JPEG", "MPO", "PNG", "WEBP", "TIFF") else 1
    return found if found in range(1, 9) else 1


def _repair(data: bytes, image: Image.Image, orientation: int, stored: tuple[int, int]) -> CheckedImage:
    rgb, repairs = _to_rgb(image)
    if orientation != 1:
        rgb, repairs = ImageOps.exif_transpose(_with_orientation(rgb, orientation)), [*repairs, "orientation"]
    if repairs:
        data = _encode(rgb, image.format)
    thumbnail = rgb.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=1.5).tobytes()
    width, height = rgb.size if repairs else stored
    return CheckedImage(
        data, hashlib.sha256(data).hexdigest(), width, height, thumbnail, tuple(repairs), orientation, stored
    )


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
    # Grey, bilevel and palette images are unambiguous in RGB, so their bytes stay; CMYK and Lab need a conversion.
    return image.convert("RGB"), ["colour space"] if image.mode not in ("L", "1", "P") else []


def _encode(image: Image.Image, kind: str | None) -> bytes:
    buffer = io.BytesIO()
    if kind in ("JPEG", "MPO"):
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    else:
        image.save(buffer, "PNG")
    return buffer.getvalue()


def orient_box(box: Box, orientation: int, stored_size: tuple[int, int]) -> Box:
    """Maps a box from stored pixels to the image after EXIF `orientation` is applied.

    Annotations of the supported datasets refer to stored pixels: the original code and the annotation tools ignore
    EXIF.
    """
    width, height = stored_size
    x1, y1, x2, y2 = box
    oriented = {
        1: (x1, y1, x2, y2),
        2: (width - x2, y1, width - x1, y2),
        3: (width - x2, height - y2, width - x1, height - y1),
        4: (x1, height - y2, x2, height - y1),
        5: (y1, x1, y2, x2),
        6: (height - y2, x1, height - y1, x2),
        7: (height - y2, width - x2, height - y1, width - x1),
        8: (y1, width - x2, y2, width - x1),
    }
    return Box(*oriented[orientation])
