"""Readers of captioned images: webdataset shards, COCO captions, TextCaps, cc_sbu_align."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mgpt.data.datasets.base import Part, Reader, RejectedRecord
from mgpt.data.datasets.coco_instances import object_names
from mgpt.data.datasets.files import ImageFolder, RecordError, SourceImage, candidate_paths, text_field, text_list_field
from mgpt.data.datasets.streams import json_rows, tar_rows
from mgpt.data.types import Sample, Turn

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


def caption_turns(texts: tuple[str, ...]) -> tuple[Turn, ...]:
    """Returns an empty user turn and the caption; several texts become alternatives.

    Raises:
        RecordError: all texts are empty.
    """
    if not any(text.strip() for text in texts):
        raise RecordError("missing answer", "the caption is empty")
    return Turn("user", ""), Turn("assistant", texts[0], texts if len(texts) > 1 else ())


def image_member(row: Mapping[str, bytes]) -> SourceImage:
    """Returns the image among the members of a shard's sample.

    Raises:
        RecordError: there is none.
    """
    found = next((row[extension] for extension in IMAGES if extension in row), None)
    if found is None:
        raise RecordError("missing image", f"the shard has {', '.join(sorted(row))} for this key, but no image")
    return SourceImage.from_bytes(found)


class WebDatasetCaptions(Reader):
    """img2dataset shards: `NNNNNNNNN.jpg`, `.json` with a `caption`, `.txt` (original code, laion_dataset.py:12-30,
    cc_sbu_dataset.py:8-26)."""

    patterns = ("*.tar",)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from tar_rows(file)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        image = image_member(row)
        if "json" in row:
            text = text_field(json.loads(row["json"]), "caption")
        elif "txt" in row:
            text = row["txt"].decode()
        else:
            raise RecordError("missing answer", "the shard has neither .json nor .txt for this key")
        yield self._sample(part, key, "caption", caption_turns((text,)), image)


class CocoCaptions(Reader):
    """Karpathy's COCO captions, a JSON list: one record per caption in training, one per image in the other splits.

    The original trains only on images of train2014 (caption_datasets.py:76-127). If `instances_*2014.json` are in the
    same folder, `extra` holds the names of an image's objects for the hallucination metric.
    """

    collection = "coco"
    patterns = ("coco_karpathy_*.json",)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        objects = object_names(part) if part.split != "train" else {}
        with part.folder.open(part.path) as file:
            for key, row in json_rows(file):
                yield key, (row, objects)

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        record, objects = row
        path = text_field(record, "image")
        if part.split == "train" and "train" not in path:
            raise RecordError("not used", f"{path} is an image of val2014, which the original excludes from training")
        captions = (
            (record["caption"],) if isinstance(record.get("caption"), str) else text_list_field(record, "caption")
        )
        extra: dict[str, Any] = {"key": str(record.get("image_id", path))}
        if names := objects.get(image_number(path)):
            extra["objects"] = names
        image = images.get(*candidate_paths(path, "images"))
        yield self._sample(
            part, key, "caption", caption_turns(captions), image, extra=None if part.split == "train" else extra
        )


def image_number(path: str) -> int:
    """Returns the number at the end of a COCO file name (`COCO_val2014_000000000042.jpg`), -1 if there is none."""
    digits = path.rsplit(".", 1)[0].rsplit("_", 1)[-1]
    return int(digits) if digits.isdecimal() else -1


class TextCaps(Reader):
    """TextCaps' official JSON, `{"data": [{"image_id", "caption_str", "reference_strs"}]}`.

    Source: original code, text_caps.py:57-77.
    """

    patterns = ("TextCaps_*.json",)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from json_rows(file, "data")

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        name = text_field(row, "image_id")
        references = text_list_field(row, "reference_strs") if part.split != "train" and "reference_strs" in row else ()
        text = text_field(row, "caption_str")
        image = images.get(*candidate_paths(f"{name}.jpg", "images", "train_images"))
        turns = caption_turns((text, *(other for other in references if other != text)))
        yield self._sample(part, key, "caption", turns, image, extra=None if part.split == "train" else {"key": name})


class CcSbuAlign(Reader):
    """The data of MiniGPT-4's second stage: `filter_cap.json`, images `image/N.jpg`. Captions are not normalized.

    Source: original code, cc_sbu_dataset.py:29-47.
    """

    patterns = ("filter_cap.json",)

    def _rows(self, part: Part) -> Iterator[tuple[str, Any]]:
        with part.folder.open(part.path) as file:
            yield from json_rows(file, "annotations")

    def _convert(self, part: Part, key: str, row: Any, images: ImageFolder) -> Iterator[Sample | RejectedRecord]:
        name = str(row["image_id"])
        image = images.get(*candidate_paths(f"{name}.jpg", "image"))
        yield self._sample(part, key, "describe", caption_turns((text_field(row, "caption"),)), image)
