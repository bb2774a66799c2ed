"""Datasets of the shapes world whose texts are captions: webdataset shards, COCO caption, TextCaps, cc_sbu_align."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from mgpt.data.synthetic import language
from mgpt.data.synthetic.output import Picture, World, xywh
from mgpt.data.synthetic.world import CANVAS, COLOURS, SHAPES, Split

PAIRS_A_SHARD = 1_000
# One pair in so many has each flaw. Curation finds all of them: junk caption and truncated picture are quarantined as such, a repeated
# pair as a duplicate, and a picture of a test scene as contamination.
FLAWED_ONE_IN = 100
JUNK = ("IMG_2041.JPG", "http://example.com/a.jpg", "!!!", "a a a a a a a a a a a a a a a a a a a a")
KINDS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def write_pairs(world: World, name: str, pictures: Sequence[Picture], tests: Sequence[Picture]) -> None:
    """img2dataset shards of pictures and captions, with flaws: junk captions, cut files, repeated pairs and, where given, pictures of
    test scenes."""
    pairs = [(picture.jpeg, language.caption(picture.scene, picture.rng(name))) for picture in pictures]
    for flaw in range(len(pictures) // FLAWED_ONE_IN):
        first = flaw * FLAWED_ONE_IN
        pairs[first + 11] = (pairs[first + 11][0], JUNK[flaw % len(JUNK)])
        pairs[first + 22] = (pairs[first + 22][0][: len(pairs[first + 22][0]) // 2], pairs[first + 22][1])
        pairs[first + 33] = pairs[first + 32]
        if flaw < len(tests):
            pairs[first + 44] = (tests[flaw].jpeg, language.caption(tests[flaw].scene, tests[flaw].rng(name)))
    for shard in range(0, len(pairs), PAIRS_A_SHARD):
        members = [
            member
            for number in range(shard, min(shard + PAIRS_A_SHARD, len(pairs)))
            for member in _members(number, *pairs[number])
        ]
        world.write_tar(f"{name}/{shard // PAIRS_A_SHARD:05d}.tar", members)


def _members(number: int, jpeg: bytes, caption: str) -> list[tuple[str, bytes]]:
    key = f"{number // PAIRS_A_SHARD:05d}{number % PAIRS_A_SHARD:04d}"
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


def write_coco(world: World, pictures: Mapping[Split, list[Picture]]) -> None:
    """COCO: pictures under the names of train2014 and val2014, Karpathy's captions, and instances of val2014 for the hallucination metric.

    Validation and test scenes lie under both names: RefCOCO takes all its pictures from train2014, question sets take theirs from val2014.
    """
    held_out = [*pictures["validation"], *pictures["test"]]
    world.write_pictures("coco/train2014", [*pictures["train"], *held_out], "COCO_train2014_{}.jpg")
    world.write_pictures("coco/val2014", held_out, "COCO_val2014_{}.jpg")
    world.write_json(
        "coco/annotations/coco_karpathy_train.json",
        [row for picture in pictures["train"] for row in _caption_rows(picture)],
    )
    for split, name in (("validation", "val"), ("test", "test")):
        rows = [
            {
                "image": f"val2014/COCO_val2014_{picture.coco_name}.jpg",
                "caption": _captions(picture, 5),
                "image_id": f"coco_{picture.number}",
            }
            for picture in pictures["validation" if split == "validation" else "test"]
        ]
        world.write_json(f"coco/annotations/coco_karpathy_{name}.json", rows)
    world.write_json("coco/annotations/instances_val2014.json", instances(held_out))


def _caption_rows(picture: Picture) -> list[dict[str, str]]:
    name = f"train2014/COCO_train2014_{picture.coco_name}.jpg"
    return [
        {"image": name, "caption": caption, "image_id": f"coco_{picture.number}"} for caption in _captions(picture, 2)
    ]


def _captions(picture: Picture, count: int) -> list[str]:
    rng = picture.rng("coco")
    return [language.caption(picture.scene, rng) for _ in range(count)]


def instances(pictures: Sequence[Picture], file: str = "COCO_val2014_{}.jpg") -> dict[str, object]:
    """COCO's instances file: pictures, one annotation for each thing, and kinds of things as categories. Annotation ids are
    `annotation_id`."""
    images = [
        {"id": p.number, "file_name": file.format(p.coco_name), "width": CANVAS, "height": CANVAS} for p in pictures
    ]
    annotations = [
        {
            "id": annotation_id(picture, number),
            "image_id": picture.number,
            "category_id": KINDS.index(thing.kind) + 1,
            "bbox": xywh(thing.box),
            "area": xywh(thing.box)[2] * xywh(thing.box)[3],
            "iscrowd": 0,
        }
        for picture in pictures
        for number, thing in enumerate(picture.scene.things)
    ]
    categories = [
        {"id": number, "name": kind, "supercategory": kind.split()[1]} for number, kind in enumerate(KINDS, 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def annotation_id(picture: Picture, thing: int) -> int:
    """The id of a thing's annotation."""
    return picture.number * 10 + thing


def write_textcaps(world: World, pictures: Mapping[Split, list[Picture]]) -> None:
    """TextCaps: captions of the pictures with a sign that say what is written there."""
    for split, name in (("train", "train"), ("validation", "val")):
        signed = [picture for picture in pictures["train" if split == "train" else "validation"] if picture.scene.sign]
        world.write_pictures("textcaps/train_images", signed)
        rows = []
        for picture in signed:
            assert picture.scene.sign is not None
            texts = [
                f"A sign that says {picture.scene.sign.word}.",
                f"The word {picture.scene.sign.word} is written on a sign.",
            ]
            rows += [{"image_id": picture.coco_name, "caption_str": text, "reference_strs": texts} for text in texts]
        world.write_json(
            f"textcaps/TextCaps_0.1_{name}.json", {"dataset_type": name, "dataset_name": "textcaps", "data": rows}
        )


def write_align(world: World, pictures: Mapping[Split, list[Picture]]) -> None:
    """cc_sbu_align: detailed descriptions."""
    world.write_pictures("cc_sbu_align/image", pictures["train"])
    rows = [
        {"image_id": picture.coco_name, "caption": language.description(picture.scene)} for picture in pictures["train"]
    ]
    world.write_json("cc_sbu_align/filter_cap.json", {"annotations": rows})
