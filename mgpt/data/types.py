"""`Sample`, the record of all curated data: an image (or none), a conversation about it, and boxes in pixels."""

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
        image: encoded bytes, or None for text only.
        width, height: pixels of the decoded image; 0 if its header could not be read (curation decides about such
            images).
        turns: alternating user and assistant; the user's turn holds the content only (a question, a phrase, or
            nothing).
        boxes: absolute pixels.
        licence: of the record, as stated by the source.
        source: `path#key` of the record inside the source's folder.
        extra: JSON values that only evaluation needs: `key` (id of the prediction), `objects` (name of every object
            instance in the image), `choices` (candidate answers).
        names: ids of the image across datasets (`coco:139`, `vg:2315405`), for curation; neither stored nor hashed.

    Raises:
        ValueError: there is no turn, a role is unknown, a text is not valid Unicode, or a box token has no box.
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
                raise ValueError(f"{where}: role {turn.role!r} is unknown; use one of {', '.join(ROLES)}")
            self._check_text(turn, where)

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
        """Hashes dataset, task, image bytes, turns, boxes and extra to 32 hexadecimal digits.

        Split, licence and source are excluded, so that a record found twice has one id.
        """
        turns = [[turn.role, turn.text, list(turn.alternatives)] for turn in self.turns]
        image = hashlib.sha256(self.image).hexdigest() if self.image is not None else None
        boxes = [[repr(float(value)) for value in box] for box in self.boxes]
        content = [self.dataset, self.task, image, turns, boxes, _canonical_json(self.extra)]
        return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:32]

    @property
    def references(self) -> tuple[str, ...]:
        """All acceptable texts of the last assistant turn, repeats included; empty if there is no such turn."""
        last = next((turn for turn in reversed(self.turns) if turn.role == "assistant"), None)
        return () if last is None else last.alternatives or (last.text,)

    def to_row(self) -> dict[str, Any]:
        """Returns the row of `SCHEMA`."""
        row = {name: getattr(self, name) for name in SCHEMA.names}
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
        fields = {name: row[name] for name in SCHEMA.names}
        fields["width"], fields["height"] = int(row["width"]), int(row["height"])
        fields["turns"] = tuple(Turn(turn["role"], turn["text"], tuple(turn["alternatives"])) for turn in row["turns"])
        fields["boxes"] = tuple(Box(*map(float, box)) for box in row["boxes"])
        fields["extra"] = json.loads(row["extra"])
        return cls(**fields)


def _canonical_json(extra: Mapping[str, Any]) -> str:
    return json.dumps(extra, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
