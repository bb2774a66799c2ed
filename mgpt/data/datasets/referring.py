"""Readers of referring expressions: RefCOCO, RefCOCO+ and RefCOCOg, their evaluation lists, Visual Genome regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from mgpt.data.datasets.base import SPLIT_NAMES, Card, Part, Reader, RejectedRecord
from mgpt.data.datasets.coco_instances import read_instances
from mgpt.data.datasets.files import ImageFolder, RecordError, box_from_xywh, candidate_paths, text_field
from mgpt.data.datasets.streams import json_rows, plain_pickle
from mgpt.data.types import Sample, Turn

Direction = Literal["refer", "identify"]
BOX = Turn("assistant", "<box:0>")


def reference_turns(direction: Direction, expressions: tuple[str, ...]) -> tuple[Turn, Turn]:
    """Returns the turns from expression to box, or from box to expression; several expressions become alternatives.

    Raises:
        RecordError: all expressions are empty.
    """
    if not any(text.strip() for text in expressions):
        raise RecordError("missing answer", "the reference has no expression")
    alternatives = expressions if len(expressions) > 1 else ()
    if direction == "refer":
        return Turn("user", expressions[0], alternatives), BOX
    return Turn("user", "<box:0>"), Turn("assistant", expressions[0], alternatives)


class RefCoco(Reader):
    """RefCOCO's own release, `refs(NAME).p` and `instances.json`: one sample per reference.

    The expressions of a reference are alternatives, one of which is drawn in training. A release holds two divisions
    into splits. Only the one that results are reported on is read: the other, `refs(google).p`, trains on images that
    this one tests on. If several datasets are below one root, each reads its own folder. Source: original code,
    coco_dataset.py:33-122.
    """

    collection = "coco"

    def __init__(self, card: Card, direction: Direction, folder: str) -> None:
        super().__init__(card, ("refs(umd).p", "refs(und).p") if folder == "refcocog" else ("refs(unc).p",))
        self.direction: Direction = direction
        self.folder = folder

    def files(self, root: str, images: str | None = None) -> list[Part]:
        """Returns the division's file below `root`; see `Reader.files`."""
        found = super().files(root, images)
        return [part for part in found if PurePosixPath(part.path).parent.name == self.folder] or found

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        references = plain_pickle(part.folder.read(part.path))
        if not isinstance(references, list):
            raise ValueError(f"{part.path} holds a {type(references).__name__}; a list of references was expected")
        wanted = {row["ann_id"] for row in references if isinstance(row, dict) and "ann_id" in row}
        path = str(PurePosixPath(part.path).with_name("instances.json"))
        instances = read_instances(part.folder, path, wanted)
        for number, row in enumerate(references):
            yield str(row["ref_id"] if isinstance(row, dict) and "ref_id" in row else number), (row, instances)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        reference, instances = row
        if instances.boxes.get(reference["ann_id"]) is None:
            raise RecordError("missing box", f"annotation {reference['ann_id']} has no box in instances.json")
        box = box_from_xywh(instances.boxes[reference["ann_id"]])
        expressions = tuple(
            text_field(sentence, "raw" if "raw" in sentence else "sent") for sentence in reference["sentences"]
        )
        names = [
            f"COCO_train2014_{int(reference['image_id']):0>12}.jpg",
            instances.files.get(reference["image_id"]) or "",
        ]
        image = images.get(
            *(
                path
                for name in names
                if name
                for path in candidate_paths(name, "train2014", "images", "images/train2014")
            )
        )
        split = SPLIT_NAMES.get(reference["split"], reference["split"])
        extra = {"key": str(reference["ref_id"])} if split != "train" else None
        turns = reference_turns(self.direction, expressions)
        yield self._sample(part, key, self.direction, turns, image, split=split, boxes=(box,), extra=extra)


class RefCocoEvaluation(Reader):
    """The evaluation lists of the original (eval_scripts/eval_data), `[{"img_id", "sents", "bbox", "height",
    "width"}]`.

    `img_id` is `COCO_train2014_<12 digits>_<n>` and identifies a reference, which has several expressions; the key of
    an expression is `<img_id>/<number>`. With the image as key, references overwrite one another and a perfect model
    scores 40.5 % on RefCOCO val.
    """

    collection = "coco"

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        seen: Counter[str] = Counter()
        with part.folder.open(part.path) as file:
            for number, row in json_rows(file):
                sentences = row.get("sents") if isinstance(row, dict) else None
                for sentence in sentences if isinstance(sentences, list) else [sentences]:
                    reference = str(row.get("img_id", number)) if isinstance(row, dict) else number
                    yield f"{reference}/{seen[reference]}", (row, sentence)
                    seen[reference] += 1

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        record, sentence = row
        reference = text_field(record, "img_id")
        turns = reference_turns("refer", (text_field({"sents": sentence}, "sents"),))
        name = reference.rpartition("_")[0] + ".jpg"
        image = images.get(*candidate_paths(name, "train2014", "images", "images/train2014"))
        box = box_from_xywh(record["bbox"])
        yield self._sample(part, key, "refer", turns, image, boxes=(box,), extra={"key": key, "reference": reference})


class VisualGenomeRegions(Reader):
    """Visual Genome's `region_descriptions.json` and `image_data.json`: one sample per region below 16,384 square
    pixels.

    Half of the images are COCO's, as `coco_id` in `image_data.json` states. Source: original code, vg_dataset.py:31-88.
    """

    collection = "vg"
    patterns = ("region_descriptions.json",)
    MAX_AREA = 16_384

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(str(PurePosixPath(part.path).with_name("image_data.json"))) as file:
            files = {
                row.get("image_id", row.get("id")): (_path_of_url(str(row.get("url", ""))), row.get("coco_id"))
                for _, row in json_rows(file)
                if isinstance(row, dict)
            }
        with part.folder.open(part.path) as file:
            for key, image in json_rows(file):
                regions = image.get("regions") if isinstance(image, dict) else None
                if not isinstance(regions, list):  # one row, which is rejected
                    regions = [RecordError("missing field", f"'regions' is {regions!r:.80}; a list was expected")]
                for number, region in enumerate(regions):
                    known = isinstance(region, dict)
                    identifier = region.get("image_id", image.get("id")) if known else None
                    name = str(region.get("region_id", f"{key}/{number}")) if known else f"{key}/{number}"
                    yield name, region if isinstance(region, Exception) else (region, files.get(identifier), identifier)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        region, known, identifier = row
        area = region["width"] * region["height"]
        if area >= self.MAX_AREA:
            raise RecordError(
                "not used", f"the region has {area} square pixels; the original keeps those below {self.MAX_AREA}"
            )
        if known is None:
            raise RecordError("missing image", f"image_data.json does not list image {identifier}")
        path, coco_id = known
        box = box_from_xywh([region["x"], region["y"], region["width"], region["height"]])
        image = images.get(*candidate_paths(path, "images", "VG_100K", "VG_100K_2"))
        turns = reference_turns("refer", (text_field(region, "phrase"),))
        names = () if coco_id is None else (f"coco:{coco_id}",)
        yield self._sample(part, key, "refer", turns, image, boxes=(box,), names=names)


def _path_of_url(url: str) -> str:
    """Returns folder and file of an image's address, `VG_100K/2.jpg`."""
    return "/".join(url.split("/")[-2:])
