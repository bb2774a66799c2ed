"""The caption datasets of the shapes world: webdataset shards, COCO captions, TextCaps, cc_sbu_align."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from mgpt.data.synthetic import language
from mgpt.data.synthetic.world import CANVAS, COLOURS, SHAPES, Split
from mgpt.data.synthetic.writer import SceneImage, WorldWriter, xywh

PAIRS_PER_SHARD = 1_000
# One pair in this many has each flaw. Curation quarantines all of them: junk captions and truncated images as such,
# repeated pairs as duplicates, and images of test scenes as contamination.
FLAW_INTERVAL = 100
JUNK_CAPTIONS = ("IMG_2041.JPG", "http://example.com/a.jpg", "!!!", "a a a a a a a a a a a a a a a a a a a a")
KINDS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def write_pairs(world: WorldWriter, name: str, images: Sequence[SceneImage], tests: Sequence[SceneImage]) -> None:
    """Writes img2dataset shards of images and captions.

    Their flaws are junk captions, truncated images, repeated pairs and, if given, images of test scenes.
    """
    pairs = [(image.jpeg, language.caption(image.scene, image.rng(name))) for image in images]
    for flaw in range(len(images) // FLAW_INTERVAL):
        first = flaw * FLAW_INTERVAL
        pairs[first + 11] = (pairs[first + 11][0], JUNK_CAPTIONS[flaw % len(JUNK_CAPTIONS)])
        pairs[first + 22] = (pairs[first + 22][0][: len(pairs[first + 22][0]) // 2], pairs[first + 22][1])
        pairs[first + 33] = pairs[first + 32]
        if flaw < len(tests):
            pairs[first + 44] = (tests[flaw].jpeg, language.caption(tests[flaw].scene, tests[flaw].rng(name)))
    for shard in range(0, len(pairs), PAIRS_PER_SHARD):
        members = [
            member
            for number in range(shard, min(shard + PAIRS_PER_SHARD, len(pairs)))
            for member in _members(number, *pairs[number])
        ]
        world.write_tar(f"{name}/{shard // PAIRS_PER_SHARD:05d}.tar", members)


def _members(number: int, jpeg: bytes, caption: str) -> list[tuple[str, bytes]]:
    key = f"{number // PAIRS_PER_SHARD:05d}{number % PAIRS_PER_SHARD:04d}"
    facts = {
        "url": f"https://shapes.example/{key}.jpg",
        "caption": caption,
        "key": key,
        "status": "success",
        "error_message": None,
        "width": CANVAS,
        "height": CANVAS,
        "original_width": CANVAS,
        "original_height": CANVAS,
        "exif": "{}",
        "sha256": hashlib.sha256(jpeg).hexdigest(),
    }
    return [(f"{key}.jpg", jpeg), (f"{key}.json", json.dumps(facts).encode()), (f"{key}.txt", caption.encode())]


def write_coco(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes COCO: images of train2014 and val2014, Karpathy's captions, and the instances of val2014.

    Validation and test scenes have both names: RefCOCO uses images of train2014 only, question sets those of val2014.
    """
    held_out = [*images["validation"], *images["test"]]
    world.write_images("coco/train2014", [*images["train"], *held_out], "COCO_train2014_{}.jpg")
    world.write_images("coco/val2014", held_out, "COCO_val2014_{}.jpg")
    world.write_json(
        "coco/annotations/coco_karpathy_train.json",
        [row for image in images["train"] for row in _caption_rows(image)],
    )
    for split, name in (("validation", "val"), ("test", "test")):
        rows = [
            {
                "image": f"val2014/COCO_val2014_{image.coco_name}.jpg",
                "caption": _captions(image, 5),
                "image_id": f"coco_{image.number}",
            }
            for image in images["validation" if split == "validation" else "test"]
        ]
        world.write_json(f"coco/annotations/coco_karpathy_{name}.json", rows)
    world.write_json("coco/annotations/instances_val2014.json", instances(held_out))


def _caption_rows(image: SceneImage) -> list[dict[str, str]]:
    name = f"train2014/COCO_train2014_{image.coco_name}.jpg"
    return [{"image": name, "caption": caption, "image_id": f"coco_{image.number}"} for caption in _captions(image, 2)]


def _captions(image: SceneImage, count: int) -> list[str]:
    rng = image.rng("coco")
    return [language.caption(image.scene, rng) for _ in range(count)]


def instances(images: Sequence[SceneImage], file: str = "COCO_val2014_{}.jpg") -> dict[str, object]:
    """Returns the content of COCO's instances file: an annotation per thing, and the kinds of things as categories."""
    files = [
        {"id": image.number, "file_name": file.format(image.coco_name), "width": CANVAS, "height": CANVAS}
        for image in images
    ]
    annotations = [
        {
            "id": annotation_id(image, number),
            "image_id": image.number,
            "category_id": KINDS.index(thing.kind) + 1,
            "bbox": xywh(thing.box),
            "area": xywh(thing.box)[2] * xywh(thing.box)[3],
            "iscrowd": 0,
        }
        for image in images
        for number, thing in enumerate(image.scene.things)
    ]
    categories = [
        {"id": number, "name": kind, "supercategory": kind.split()[1]} for number, kind in enumerate(KINDS, 1)
    ]
    return {"images": files, "annotations": annotations, "categories": categories}


def annotation_id(image: SceneImage, thing: int) -> int:
    """Returns the id of a thing's annotation."""
    return image.number * 10 + thing


def write_textcaps(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes TextCaps: captions with the word on the sign, for images that have one."""
    for split, name in (("train", "train"), ("validation", "val")):
        signed = [image for image in images["train" if split == "train" else "validation"] if image.scene.sign]
        world.write_images("textcaps/train_images", signed)
        rows = []
        for image in signed:
            assert image.scene.sign is not None
            texts = [
                f"A sign that says {image.scene.sign.word}.",
                f"The word {image.scene.sign.word} is written on a sign.",
            ]
            rows += [{"image_id": image.coco_name, "caption_str": text, "reference_strs": texts} for text in texts]
        world.write_json(
            f"textcaps/TextCaps_0.1_{name}.json", {"dataset_type": name, "dataset_name": "textcaps", "data": rows}
        )


def write_align(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes cc_sbu_align: detailed descriptions."""
    world.write_images("cc_sbu_align/image", images["train"])
    rows = [{"image_id": image.coco_name, "caption": language.description(image.scene)} for image in images["train"]]
    world.write_json("cc_sbu_align/filter_cap.json", {"annotations": rows})
