"""`Sample`, the record of all curated data: images (or none), a conversation about them, and boxes in pixels."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pyarrow as pa

from mgpt.data.boxes import Box

Role = Literal["user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)
NOT_TEXT = "\uffff"  # a reader writes this noncharacter for bytes that are not Unicode text
BOX_TOKEN = re.compile(r"<box:(\d{1,9})>")

# The column of encoded images stands apart, so that everything else about a row can be read without them.
IMAGE_BYTES = "image_bytes"
IMAGE_TYPE = pa.struct([("width", pa.int32()), ("height", pa.int32()), ("sha256", pa.string())])
TURN_TYPE = pa.struct([("role", pa.string()), ("text", pa.string()), ("alternatives", pa.list_(pa.string()))])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("images", pa.list_(IMAGE_TYPE)),
        (IMAGE_BYTES, pa.list_(pa.binary())),
        ("turns", pa.list_(TURN_TYPE)),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("box_images", pa.list_(pa.int32())),
        ("licence", pa.string()),
        ("source", pa.string()),
        ("extra", pa.string()),
    ]
)
METADATA = [name for name in SCHEMA.names if name != IMAGE_BYTES]  # columns that are read without images


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An encoded image.

    Attributes:
        data: encoded bytes.
        width, height: pixels of the decoded image; 0 if its header could not be read (curation decides about such
            images).
        sha256: of the encoded bytes, in hexadecimal; computed where it is not given.
    """

    data: bytes
    width: int
    height: int
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: user or assistant.
        text: may hold `<box:N>` tokens, which refer to the sample's boxes.
        alternatives: equivalent texts of this turn (the ten answers of a VQA record, the expressions of one object), or
            empty. Training draws one of them uniformly, so a repeated text is drawn more often; evaluation scores
            against all.
    """

    role: Role
    text: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A training or evaluation record.

    Attributes:
        id: content hash, see `content_hash`; set by `Sample.create`.
        dataset: name of the dataset.
        split: the dataset's own name: train, validation, test, testA, testdev, ...
        task: name of a task in `tasks.yaml`.
        images: in the order in which the text speaks of them; none for text only.
        turns: alternating user and assistant; the user's turn holds the content only (a question, a phrase, or
            nothing).
        boxes: absolute pixels.
        box_images: number of the image of each box, counted from 0; empty where all are on the first.
        licence: of the record, as stated by the source.
        source: `path#key` of the record inside the source's folder.
        extra: JSON values that only evaluation needs: `key` (id of the prediction), `objects` (name of every object
            instance in the image), `choices` (candidate answers).
        names: ids of the image across datasets (`coco:139`, `vg:2315405`), for curation; neither stored nor hashed.

    Raises:
        ValueError: there is no turn, a role is unknown, a text is not valid Unicode, a box token has no box, or a box
            names an image that is not there.
    """

    id: str
    dataset: str
    split: str
    task: str
    images: tuple[SampleImage, ...]
    turns: tuple[Turn, ...]
    boxes: tuple[Box, ...] = ()
    box_images: tuple[int, ...] = ()
    licence: str = ""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        where = f"{self.dataset} {self.source}".strip()
        if not self.turns:
            raise ValueError(f"{where}: the record has no turns; give at least one")
        for turn in self.turns:
            if turn.role not in ROLES:
                raise ValueError(f"{where}: role {turn.role!r} is unknown; use one of {', '.join(ROLES)}")
            self._check_text(turn, where)
        numbers = self.box_images or (0,) * len(self.boxes)
        if len(numbers) != len(self.boxes) or not all(0 <= number < len(self.images) for number in numbers):
            raise ValueError(
                f"{where}: {len(self.boxes)} boxes on images {list(numbers)}, counted from 0; the record has "
                f"{len(self.images)}. Name the image of each box"
            )

    def _check_text(self, turn: Turn, where: str) -> None:
        for text in (turn.text, *turn.alternatives):
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" or letter == NOT_TEXT for letter in text):
                raise ValueError(
                    f"{where}: the text holds bytes that are not UTF-8 or half of a UTF-16 pair; save it as UTF-8"
                )
            for token in BOX_TOKEN.finditer(text):
                if int(token.group(1)) >= len(self.boxes):
                    raise ValueError(
                        f"{where}: {token.group()} has no box; the record has {len(self.boxes)}, counted from 0"
                    )

    @classmethod
    def create(cls, **fields: Any) -> "Sample":
        """Builds a sample and computes its id; takes all fields but `id`.

        Raises:
            ValueError: see the class.
        """
        sample = cls(id="", **fields)
        return dataclasses.replace(sample, id=sample.content_hash())

    def revise(self, **changes: Any) -> "Sample":
        """Returns a copy with changed fields and a new id.

        Raises:
            ValueError: see the class.
        """
        changed = dataclasses.replace(self, **changes)
        return dataclasses.replace(changed, id=changed.content_hash())

    def content_hash(self) -> str:
        """Hashes dataset, task, images, turns, boxes and extra to 32 hexadecimal digits.

        Split, licence and source are excluded, so that a record found twice has one id.
        """
        turns = [[turn.role, turn.text, list(turn.alternatives)] for turn in self.turns]
        boxes = [[repr(float(value)) for value in box] for box in self.boxes]
        images = [image.sha256 for image in self.images]
        # One image, or none, is what nearly all records have: their ids do not depend on there being more.
        content: list[Any] = [
            self.dataset,
            self.task,
            images[0] if images else None,
            turns,
            boxes,
            _canonical_json(self.extra),
        ]
        if len(images) > 1:
            content.append([images[1:], list(self.box_images)])
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:32]

    @property
    def references(self) -> tuple[str, ...]:
        """All acceptable texts of the last assistant turn, repeats included; empty if there is no such turn."""
        last = next((turn for turn in reversed(self.turns) if turn.role == "assistant"), None)
        return () if last is None else last.alternatives or (last.text,)

    @property
    def box_sizes(self) -> list[tuple[int, int]]:
        """Width and height of the image that each box lies on."""
        numbers = self.box_images or (0,) * len(self.boxes)
        return [(self.images[number].width, self.images[number].height) for number in numbers]

    def to_row(self) -> dict[str, Any]:
        """Returns the row of `SCHEMA`."""
        row = {name: getattr(self, name) for name in METADATA}
        row["images"] = [{"width": one.width, "height": one.height, "sha256": one.sha256} for one in self.images]
        row[IMAGE_BYTES] = [one.data for one in self.images]
        row["turns"] = [
            {"role": turn.role, "text": turn.text, "alternatives": list(turn.alternatives)} for turn in self.turns
        ]
        row["boxes"] = [list(box) for box in self.boxes]
        row["extra"] = _canonical_json(self.extra)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Sample":
        """Builds the sample of a row of `SCHEMA`; the inverse of `to_row`. NumPy arrays may stand for lists.

        Raises:
            ValueError: see the class.
            KeyError: a column of `SCHEMA` is missing.
        """
        fields = {name: row[name] for name in METADATA}
        fields["images"] = tuple(
            SampleImage(data, int(one["width"]), int(one["height"]), one["sha256"])
            for one, data in zip(row["images"], row[IMAGE_BYTES], strict=True)
        )
        fields["box_images"] = tuple(map(int, row["box_images"]))
        fields["turns"] = tuple(Turn(turn["role"], turn["text"], tuple(turn["alternatives"])) for turn in row["turns"])
        fields["boxes"] = tuple(Box(*map(float, box)) for box in row["boxes"])
        fields["extra"] = json.loads(row["extra"])
        return cls(**fields)


def _canonical_json(extra: Mapping[str, Any]) -> str:
    return json.dumps(extra, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
