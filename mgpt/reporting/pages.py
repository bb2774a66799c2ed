"""HTML pages from jinja2 templates, self-contained: images are embedded, nothing is loaded from outside."""

from __future__ import annotations

import base64
import io
from functools import cache

import jinja2
from PIL import Image


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("mgpt.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )


def render_page(template: str, **values: object) -> str:
    """Renders a template of `mgpt/reporting/templates` with its values escaped."""
    return _environment().get_template(template).render(values)


def data_uri(image: Image.Image, image_format: str = "JPEG") -> str:
    """Encodes an image as a data URI; JPEG with quality 85."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **({"quality": 85} if image_format == "JPEG" else {}))
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
