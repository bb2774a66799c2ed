"""Reading of COCO's `instances*.json`: boxes by annotation and object names by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mgpt.data.datasets.base import Part, split_name
from mgpt.data.datasets.files import Folder
from mgpt.data.datasets.streams import json_rows


@dataclass(frozen=True)
class Instances:
    """The parts of an instances file that referring expressions need.

    Attributes:
        boxes: annotation id -> `[x, y, width, height]` in pixels, as in the file.
        files: image id -> file name.
    """

    boxes: dict[int, Any]
    files: dict[int, str]


def read_instances(folder: Folder, path: str, wanted: Collection[int]) -> Instances:
    """Reads the boxes of the wanted annotations and the file names of all images.

    Raises:
        ValueError: the file is not an instances file.
        FileNotFoundError: the file does not exist.
    """
    with folder.open(path) as file:
        boxes = {row["id"]: row.get("bbox") for _, row in json_rows(file, "annotations") if row.get("id") in wanted}
    with folder.open(path) as file:
        files = {row.get("id"): str(row.get("file_name", "")) for _, row in json_rows(file, "images")}
    return Instances(boxes, files)


def object_names(part: Part) -> dict[int, list[str]]:
    """Returns image id -> category name of every object.

    Reads the `instances_*.json` of the part's split and of val2014, which holds the images of the test split too; empty
    if there is none.
    """
    names: dict[int, list[str]] = defaultdict(list)
    for path in part.folder.names():
        name = PurePosixPath(path).name
        if name.startswith("instances_") and name.endswith(".json") and split_name(name) in (part.split, "validation"):
            _add_names(part.folder, path, names)
    return dict(names)


def _add_names(folder: Folder, path: str, names: dict[int, list[str]]) -> None:
    with folder.open(path) as file:
        categories = {row["id"]: str(row["name"]) for _, row in json_rows(file, "categories")}
    with folder.open(path) as file:
        for _, row in json_rows(file, "annotations"):
            names[row["image_id"]].append(categories.get(row["category_id"], str(row["category_id"])))
