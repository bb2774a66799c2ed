"""Reading and drawing images."""

import base64
import io

import pytest
from PIL import Image

from mgpt.serving.images import draw_boxes, read_image, sample_image
from mgpt.serving.types import LabelledBox


def encoded(image, form="PNG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def test_every_input_form_reads_the_same(tmp_path):
    content = encoded(sample_image())
    (tmp_path / "a.png").write_bytes(content)
    text = base64.b64encode(content).decode()
    wrapped = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    texts = [str(tmp_path / "a.png"), text, wrapped, f"data:image/png;base64,{text}"]
    forms = [content, bytearray(content), tmp_path / "a.png", sample_image(), *texts]
    assert {read_image(form).tobytes() for form in forms} == {sample_image().tobytes()}


def test_other_modes_become_rgb():
    for mode in ("L", "RGBA", "P", "1"):
        assert read_image(encoded(sample_image().convert(mode))).mode == "RGB"


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image = Image.new("RGB", (40, 20), "white")
    assert read_image(encoded(image, "JPEG", exif=exif)).size == (20, 40)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "image bytes: not a readable image"),
        (encoded(sample_image())[:200], "not a readable image"),
        ("/no/such/file.png", "neither an existing file nor base64"),
        ("aGVsbG8=", "not a readable image"),
        ("data:image/png;base64,!", "neither an existing file nor base64"),
        (17, "int is not an image"),
        (None, "NoneType is not an image"),
    ],
)
def test_other_inputs_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        read_image(value)


def test_boxes_are_drawn_and_small_images_enlarged():
    image = Image.new("RGB", (64, 64), "white")
    drawn = draw_boxes(image, [LabelledBox("", 16, 16, 48, 48)])
    assert drawn.size == (512, 512)
    assert drawn.getpixel((128, 250)) == drawn.getpixel((383, 250)) == (0xD5, 0x5E, 0x00)
    assert drawn.getpixel((256, 256)) == drawn.getpixel((100, 250)) == (255, 255, 255)
    assert image.tobytes() == Image.new("RGB", (64, 64), "white").tobytes()


def test_labels_stay_inside_the_image():
    white = Image.new("RGB", (600, 600), "white")
    plain = draw_boxes(white, [LabelledBox("", 590, 0, 600, 10)])
    labelled = draw_boxes(white, [LabelledBox("a very long label for a small box", 590, 0, 600, 10)])
    assert labelled.size == (600, 600)
    assert plain.tobytes() != labelled.tobytes()


def test_no_boxes_and_empty_boxes():
    image = Image.new("RGB", (600, 700), "white")
    assert draw_boxes(image, []).tobytes() == image.tobytes()
    assert draw_boxes(image, [LabelledBox("point", 5, 5, 5, 5)]).size == (600, 700)
