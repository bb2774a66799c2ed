"""The grounding datasets of the shapes world: RefCOCO, Flickr30k's grounded sets and Entities, Visual Genome, GRIT."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from mgpt.data.boxes import Box, format_box
from mgpt.data.synthetic import language
from mgpt.data.synthetic.world import CANVAS, PixelBox, Split, Thing
from mgpt.data.synthetic.write_captions import FLAW_INTERVAL, annotation_id, instances
from mgpt.data.synthetic.writer import SceneImage, WorldWriter, xywh
from mgpt.data.tasks import write_boxes

REFERENCES = (("refcoco", "unc", "refcoco"), ("refcoco+", "unc", "refcocop"), ("refcocog", "umd", "refcocog"))


def write_refcoco(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes RefCOCO, RefCOCO+ and RefCOCOg: pickled references, instances, and evaluation lists keyed by reference.

    RefCOCO uses all training images, the other two a third each. One training box in `FLAW_INTERVAL` lies outside its
    image.
    """
    third = len(images["train"]) // 3
    for number, (name, author, short) in enumerate(REFERENCES):
        train = images["train"] if number == 0 else images["train"][(number - 1) * third : number * third]
        chosen = [*train, *images["validation"], *images["test"]]
        boxes = instances(chosen, "COCO_train2014_{}.jpg")
        _misplace_boxes(boxes, {image.number for image in train})
        rows = [row for image in chosen for row in _references(image, name)]
        world.write_json(f"refcoco/{name}/instances.json", boxes)
        world.write_pickle(f"refcoco/{name}/refs({author}).p", rows)
        for split in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
            questions = [question for row in rows if row["split"] == split for question in _evaluation_rows(row, boxes)]
            world.write_json(f"refcoco/evaluation/{short}_{split}.json", questions)


def _misplace_boxes(boxes: dict[str, Any], train: set[int]) -> None:
    for row in [row for row in boxes["annotations"] if row["image_id"] in train][::FLAW_INTERVAL]:
        row["bbox"] = [row["bbox"][0] + 2 * CANVAS, *row["bbox"][1:]]


def _references(image: SceneImage, name: str) -> Iterator[dict[str, Any]]:
    split = _refcoco_split(image, name)
    for number, thing in enumerate(image.scene.things):
        found = language.expressions(image.scene, thing)
        texts = [*found, *(f"the {text}" for text in found)] if name == "refcocog" else found
        if texts:
            identifier = annotation_id(image, number)
            sentences = [
                {"raw": text, "sent": text, "sent_id": identifier * 10 + index, "tokens": text.split()}
                for index, text in enumerate(texts)
            ]
            yield {
                "ref_id": identifier,
                "ann_id": identifier,
                "image_id": image.number,
                "category_id": 1,
                "split": split,
                "file_name": f"COCO_train2014_{image.coco_name}_{identifier}.jpg",
                "sent_ids": [s["sent_id"] for s in sentences],
                "sentences": sentences,
            }


def _refcoco_split(image: SceneImage, name: str) -> str:
    if image.scene.split != "test":
        return "val" if image.scene.split == "validation" else "train"
    return "test" if name == "refcocog" else "testA" if image.number % 2 else "testB"


def _evaluation_rows(row: Mapping[str, Any], boxes: Mapping[str, Any]) -> list[dict[str, Any]]:
    box = next(other["bbox"] for other in boxes["annotations"] if other["id"] == row["ann_id"])
    name = f"COCO_train2014_{row['image_id']:012d}_{row['ref_id'] % 10}"
    return [
        {"img_id": name, "sents": s["raw"], "bbox": box, "height": CANVAS, "width": CANVAS} for s in row["sentences"]
    ]


def _with_grid_boxes(text: str, boxes: Sequence[PixelBox]) -> str:
    return write_boxes(text, [Box(*box) for box in boxes], [(CANVAS, CANVAS)] * len(boxes))


def _box_tokens(first: int, boxes: Sequence[PixelBox]) -> str:
    return "".join(f"<box:{first + number}>" for number in range(len(boxes)))


def write_flickr(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes MiniGPT-v2's three files on Flickr30k, with boxes as text, in one folder per split."""
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        chosen = images["train" if split == "train" else "validation" if split == "validation" else "test"]
        world.write_images("flickr30k/images", chosen)
        grounded = [
            {"image_id": p.coco_name, "grounded_caption": _with_grid_boxes(*language.grounded_caption(p.scene))}
            for p in chosen
        ]
        world.write_json(f"flickr30k/{folder}/groundedcaption.json", grounded)
        world.write_json(f"flickr30k/{folder}/captiontobbox.json", [_caption_to_boxes(image) for image in chosen])
        world.write_json(
            f"flickr30k/{folder}/phrasetobbox.json", [row for image in chosen for row in _phrase_to_boxes(image)]
        )


def _caption_to_boxes(image: SceneImage) -> dict[str, str]:
    things = image.scene.things
    caption = language.enumeration([language.article(thing.kind) for thing in things])
    output = " ".join(f"<p>{thing.kind}</p> {format_box(Box(*thing.box), CANVAS, CANVAS)}" for thing in things)
    return {"image_id": image.coco_name, "caption": caption, "output": output}


def _phrase_to_boxes(image: SceneImage) -> list[dict[str, str]]:
    rows = []
    for phrase, boxes in language.phrases(image.scene).items():
        rows.append(
            {"image_id": image.coco_name, "phrase": phrase, "bbox": _with_grid_boxes(_box_tokens(0, boxes), boxes)}
        )
    return rows


def write_entities(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes Flickr30k Entities for every fourth image: marked sentences, VOC-style boxes by chain, lists of the
    splits.
    """
    for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        chosen = images["train" if split == "train" else "validation" if split == "validation" else "test"][::4]
        for image in chosen:
            world.write(f"flickr30k_entities/Sentences/{image.coco_name}.txt", _marked_sentences(image).encode())
            world.write(f"flickr30k_entities/Annotations/{image.coco_name}.xml", _voc(image).encode())
        world.write(f"flickr30k_entities/{name}.txt", "".join(f"{image.coco_name}\n" for image in chosen).encode())


def _marked_sentences(image: SceneImage) -> str:
    marked = [
        f"[/EN#{100 + number}/other {language.article(thing.kind)}]" for number, thing in enumerate(image.scene.things)
    ]
    lines = [language.enumeration(marked), f"The picture shows {language.enumeration(marked)} ."]
    return "".join(f"{line}\n" for line in lines)


def _voc(image: SceneImage) -> str:
    objects = [_voc_object(100 + number, thing) for number, thing in enumerate(image.scene.things)]
    size = f"<size><width>{CANVAS}</width><height>{CANVAS}</height><depth>3</depth></size>"
    return f"<annotation><filename>{image.coco_name}.jpg</filename>{size}{''.join(objects)}</annotation>\n"


def _voc_object(chain: int, thing: Thing) -> str:
    corners = "".join(
        f"<{name}>{int(value)}</{name}>"
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=True)
    )
    return f"<object><name>{chain}</name><bndbox>{corners}</bndbox></object>"


def write_visual_genome(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes Visual Genome: a region for each thing that a simple phrase identifies, and the addresses of images."""
    regions, data = [], []
    for image in images["train"]:
        world.write(f"visual_genome/VG_100K/{image.number}.jpg", image.jpeg)
        url = f"https://shapes.example/rak248/VG_100K/{image.number}.jpg"
        data.append(
            {
                "image_id": image.number,
                "url": url,
                "width": CANVAS,
                "height": CANVAS,
                "coco_id": None,
                "flickr_id": None,
            }
        )
        regions.append({"id": image.number, "regions": list(_regions(image))})
    world.write_json("visual_genome/image_data.json", data)
    world.write_json("visual_genome/region_descriptions.json", regions)


def _regions(image: SceneImage) -> Iterator[dict[str, Any]]:
    for number, thing in enumerate(image.scene.things):
        for phrase in language.expressions(image.scene, thing):
            x, y, width, height = map(int, xywh(thing.box))
            identifier = annotation_id(image, number)
            yield {
                "region_id": identifier,
                "image_id": image.number,
                "phrase": phrase,
                "x": x,
                "y": y,
                "width": width,
                "height": height,
            }


def write_grit(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes GRIT: one Parquet file of captions, with boxes for their phrases in shares of the image."""
    world.write_images("grit/images", images["train"])
    file = io.BytesIO()
    parquet.write_table(
        pa.Table.from_pylist([_grit_row(image) for image in images["train"]], schema=_GRIT),
        file,
        compression="zstd",
    )
    world.write("grit/00000.parquet", file.getvalue())


_ELEMENTS = pa.list_(pa.list_(pa.float64()))
_GRIT = pa.schema(
    [
        ("key", pa.string()),
        ("clip_similarity_vitb32", pa.float64()),
        ("clip_similarity_vitl14", pa.float64()),
        ("id", pa.int64()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("noun_chunks", _ELEMENTS),
        ("ref_exps", _ELEMENTS),
    ]
)


def _grit_row(image: SceneImage) -> dict[str, Any]:
    things = image.scene.things
    caption = language.enumeration([language.article(thing.kind) for thing in things])
    spans = [match.span(1) for match in re.finditer(r"an? (\w+ \w+)", caption)]
    chunks = [
        [*map(float, span), *(value / CANVAS for value in thing.box), 0.9]
        for span, thing in zip(spans, things, strict=True)
    ]
    single = [
        chunk
        for chunk, thing in zip(chunks, things, strict=True)
        if language.expressions(image.scene, thing) == [thing.kind]
    ]
    return {
        "key": image.coco_name,
        "clip_similarity_vitb32": 0.3,
        "clip_similarity_vitl14": 0.3,
        "id": image.number,
        "url": f"https://shapes.example/{image.coco_name}.jpg",
        "caption": caption,
        "width": CANVAS,
        "height": CANVAS,
        "noun_chunks": chunks,
        "ref_exps": single,
    }
