"""Readers of referring expressions: RefCOCO, RefCOCO+, RefCOCOg (both directions), their evaluation lists, Visual Genome regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
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
    """Phrase to box, or box to phrase; several expressions are alternatives.

    Raises:
        Refused: there is no expression.
    """
    if not any(text.strip() for text in expressions):
        raise RecordError("missing answer", "the reference has no expression")
    alternatives = expressions if len(expressions) > 1 else ()
    if direction == "refer":
        return Turn("user", expressions[0], alternatives), BOX
    return Turn("user", "<box:0>"), Turn("assistant", expressions[0], alternatives)


class RefCoco(Reader):
    """`refs(NAME).p` and `instances.json` of RefCOCO's own release (original code, coco_dataset.py:33-122): one sample a reference.

    The split stands in the reference. A reference has several expressions, one of which is drawn whenever it is rendered; in evaluation
    each is a question. A release holds two divisions, `refs(google).p` beside the one that everybody reports on; the other's training is
    on images that this one tests on, so it is never read. Of several datasets below one root, each takes its own folder.
    """

    collection = "coco"

    def __init__(self, card: Card, direction: Direction, folder: str) -> None:
        super().__init__(card, ("refs(umd).p", "refs(und).p") if folder == "refcocog" else ("refs(unc).p",))
        self.direction: Direction = direction
        self.folder = folder

    def files(self, root: str, images: str | None = None) -> list[Part]:
        """The division's file below `root`; see `Reader.files`."""
        found = super().files(root, images)
        return [part for part in found if PurePosixPath(part.path).parent.name == self.folder] or found

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        references = plain_pickle(part.folder.read(part.path))
        if not isinstance(references, list):
            raise ValueError(f"{part.path} holds a {type(references).__name__}; a list of references was expected")
        wanted = {row["ann_id"] for row in references if isinstance(row, dict) and "ann_id" in row}
        beside = str(PurePosixPath(part.path).with_name("instances.json"))
        instances = read_instances(part.folder, beside, wanted)
        for number, row in enumerate(references):
            yield str(row["ref_id"] if isinstance(row, dict) and "ref_id" in row else number), (row, instances)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        reference, instances = row
        if instances.boxes.get(reference["ann_id"]) is None:
            raise RecordError("missing box", f"annotation {reference['ann_id']} has no box in instances.json")
        box = box_from_xywh(instances.boxes[reference["ann_id"]])
        expressions = tuple(_expression(sentence) for sentence in reference["sentences"])
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


def _expression(sentence: Mapping[str, Any]) -> str:
    return text_field(sentence, "raw" if "raw" in sentence else "sent")


class RefCocoEvaluation(Reader):
    """The evaluation lists that the original ships (eval_scripts/eval_data): `[{"img_id", "sents", "bbox", "height", "width"}]`.

    `img_id` is `COCO_train2014_<12 digits>_<n>`, one for each reference, and a reference has several expressions; so each expression
    gets the key `<img_id>/<n-th expression>`. Keyed by image, truths overwrite one another and a perfect predictor scores 40.5 % on
    RefCOCO val.
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
    """`region_descriptions.json` and `image_data.json` (original code, vg_dataset.py:31-88): one sample a region smaller than 16,384
    square pixels. The file's `coco_id` says which of COCO's images half of them are."""

    collection = "vg"
    patterns = ("region_descriptions.json",)
    LARGEST = 16_384

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        beside = str(PurePosixPath(part.path).with_name("image_data.json"))
        with part.folder.open(beside) as file:
            files = {
                row.get("image_id", row.get("id")): (_last_two(str(row.get("url", ""))), row.get("coco_id"))
                for _, row in json_rows(file)
                if isinstance(row, dict)
            }
        with part.folder.open(part.path) as file:
            for key, image in json_rows(file):
                regions = image.get("regions") if isinstance(image, dict) else None
                if not isinstance(regions, list):  # one row, which becomes a problem
                    regions = [RecordError("missing field", f"'regions' is {regions!r:.80}; a list was expected")]
                for number, region in enumerate(regions):
                    known = isinstance(region, dict)
                    identifier = region.get("image_id", image.get("id")) if known else None
                    name = str(region.get("region_id", f"{key}/{number}")) if known else f"{key}/{number}"
                    yield name, region if isinstance(region, Exception) else (region, files.get(identifier), identifier)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        region, known, identifier = row
        area = region["width"] * region["height"]
        if area >= self.LARGEST:
            raise RecordError(
                "not used", f"the region has {area} square pixels; the original keeps those below {self.LARGEST}"
            )
        if known is None:
            raise RecordError("missing image", f"image_data.json does not list image {identifier}")
        path, coco_id = known
        box = box_from_xywh([region["x"], region["y"], region["width"], region["height"]])
        image = images.get(*candidate_paths(path, "images", "VG_100K", "VG_100K_2"))
        turns = reference_turns("refer", (text_field(region, "phrase"),))
        names = () if coco_id is None else (f"coco:{coco_id}",)
        yield self._sample(part, key, "refer", turns, image, boxes=(box,), names=names)


def _last_two(url: str) -> str:
    return "/".join(url.split("/")[-2:])
