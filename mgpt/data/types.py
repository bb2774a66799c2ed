"""The one record of the project: an image (or none), a conversation about it, and boxes in pixels."""

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

TURN_TYPE = pa.struct([("role", pa.string()), ("text", pa.string()), ("alternatives", pa.list_(pa.string()))])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("image", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("turns", pa.list_(TURN_TYPE)),
        ("boxes", pa.list_(pa.list_(pa.float64()))),
        ("licence", pa.string()),
        ("source", pa.string()),
        ("extra", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says.

    `text` may hold `<box:N>` tokens, which refer to the sample's boxes. `alternatives` are equally good texts for the same turn (the ten
    answers of a VQA record, the several expressions of one object): training draws one of them, so that a repeated text is drawn as
    often as it is repeated, and evaluation scores against all. Empty means that `text` is the only one.
    """

    role: Role
    text: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A training or evaluation record.

    Attributes:
        id: content hash, see `content_hash`; build samples with `Sample.create`, which fills it in.
        dataset: name of the source in `mgpt.data.datasets.READERS`.
        split: the dataset's own name: train, val, test, testA, testdev, ...
        task: name of a task in `tasks.yaml`.
        image: encoded file bytes, or None for text only.
        width, height: pixels of the decoded image; 0 where its header could not be read (curation decides what becomes of it).
        turns: user and assistant in turn; the user turn holds the content only (a question, a phrase, or nothing).
        boxes: absolute pixels.
        licence: of the record, as the source states it.
        source: `path#key` of the record inside the source's folder.
        extra: JSON-like facts that only evaluation needs: `key` (the id a prediction is reported under), `objects` (name of every object
            instance in the image), `choices` (candidate answers).
        names: what the image is called across datasets (`coco:139`, `vg:2315405`), for curation: not stored, no part of the hash.

    Raises:
        ValueError: a turn has another role, there is no turn, a text is no Unicode text, or a box token refers to a box that is not there.
    """

    id: str
    dataset: str
    split: str
    task: str
    image: bytes | None
    width: int
    height: int
    turns: tuple[Turn, ...]
    boxes: tuple[Box, ...] = ()
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
                raise ValueError(f"{where}: role {turn.role!r} is not known; use one of {', '.join(ROLES)}")
            self._check_text(turn, where)

    def _check_text(self, turn: Turn, where: str) -> None:
        for text in (turn.text, *turn.alternatives):
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" or letter == NOT_TEXT for letter in text):
                raise ValueError(
                    f"{where}: the text holds half of a UTF-16 pair or bytes that are not UTF-8; write the file as UTF-8"
                )
            for token in BOX_TOKEN.finditer(text):
                if int(token.group(1)) >= len(self.boxes):
                    there = f"the record has {len(self.boxes)}, counted from 0"
                    raise ValueError(f"{where}: {token.group()} refers to a box that is not there; {there}")

    @classmethod
    def create(cls, **fields: Any) -> "Sample":
        """A sample with its id computed; takes every field but `id` by name.

        Raises:
            ValueError: see the class.
        """
        unnamed = cls(id="", **fields)
        return dataclasses.replace(unnamed, id=unnamed.content_hash())

    def revise(self, **changes: Any) -> "Sample":
        """A copy with fields changed and the id computed anew.

        Raises:
            ValueError: see the class.
        """
        changed = dataclasses.replace(self, **changes)
        return dataclasses.replace(changed, id=changed.content_hash())

    def content_hash(self) -> str:
        """32 hexadecimal digits over what is learned or asked: dataset, task, image bytes, turns, boxes and extra. Split, licence and
        source stay out, so that the same record met twice has one id."""
        turns = [[turn.role, turn.text, list(turn.alternatives)] for turn in self.turns]
        image = hashlib.sha256(self.image).hexdigest() if self.image is not None else None
        boxes = [[repr(float(value)) for value in box] for box in self.boxes]
        content = [self.dataset, self.task, image, turns, boxes, _canonical(self.extra)]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:32]

    @property
    def references(self) -> tuple[str, ...]:
        """Every acceptable last assistant text, with repeats; empty when nobody answered."""
        last = next((turn for turn in reversed(self.turns) if turn.role == "assistant"), None)
        return () if last is None else last.alternatives or (last.text,)

    def to_row(self) -> dict[str, Any]:
        """The Parquet row of `SCHEMA`."""
        row = {name: getattr(self, name) for name in SCHEMA.names}
        row["turns"] = [
            {"role": turn.role, "text": turn.text, "alternatives": list(turn.alternatives)} for turn in self.turns
        ]
        row["boxes"] = [list(box) for box in self.boxes]
        row["extra"] = _canonical(self.extra)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Sample":
        """The sample of a Parquet row; inverse of `to_row`, and takes NumPy arrays in place of lists.

        Raises:
            ValueError: see the class.
            KeyError: a column of `SCHEMA` is missing.
        """
        fields = {name: row[name] for name in SCHEMA.names}
        fields["width"], fields["height"] = int(row["width"]), int(row["height"])
        fields["turns"] = tuple(Turn(turn["role"], turn["text"], tuple(turn["alternatives"])) for turn in row["turns"])
        fields["boxes"] = tuple(Box(*map(float, box)) for box in row["boxes"])
        fields["extra"] = json.loads(row["extra"])
        return cls(**fields)


def _canonical(extra: Mapping[str, Any]) -> str:
    return json.dumps(extra, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
