"""Tasks as data: from a `Sample` to the messages that a processor turns into tokens.

A task is an identifier, a pool of instructions, and how answers and boxes are written. Tasks live in `tasks.yaml`; a user's own YAML
adds more without code.
"""

import json
import random
import re
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mgpt.data.boxes import DELIMITER, Box, to_grid
from mgpt.data.types import BOX_TOKEN, Sample, Turn

IMAGE_PREFIX = "<Img><ImageHere></Img> "
BARE_IMAGE = "<ImageHere>"
BOX_TOKENS = re.compile(r"<box:\d{1,9}>(?:\s*<box:\d{1,9}>)*")
SHIPPED = Path(__file__).with_name("tasks.yaml")

Message = dict[str, str]


@dataclass(frozen=True)
class BoxFormat:
    """How a task writes a box.

    Attributes:
        template: `$x1 $y1 $x2 $y2` stand for the coordinates.
        scale: a coordinate at the right or bottom edge of the image.
        decimals: digits after the point; 0 truncates as the protocol does.
        delimiter: between the boxes of one phrase.
        around: for several boxes of one phrase or item, with `{}` for the joined boxes; "{}" leaves them as they are.
    """

    template: str = "{<$x1><$y1><$x2><$y2>}"
    scale: float = 100
    decimals: int = 0
    delimiter: str = DELIMITER
    around: str = "{}"

    def text(self, box: Box, width: int, height: int) -> str:
        """One box of a width x height image as text.

        Raises:
            ValueError: the box is not inside the image, see `mgpt.data.boxes.to_grid`.
        """
        grid = to_grid(box, width, height)
        if self.scale == 100 and self.decimals == 0:
            values = [str(value) for value in grid]
        else:
            sides = (width, height, width, height)
            values = [self._number(value / side * self.scale) for value, side in zip(box, sides, strict=True)]
        return string.Template(self.template).substitute(dict(zip(("x1", "y1", "x2", "y2"), values, strict=True)))

    def _number(self, value: float) -> str:
        return str(int(value)) if self.decimals == 0 else f"{value:.{self.decimals}f}"


@dataclass(frozen=True)
class ItemsFormat:
    """How a task writes an answer that is a list of records.

    The assistant's text is then a JSON list of objects. `template` is filled for each with `$name` for every field; `join` goes between,
    `around` outside (`{}` is the joined list), `empty` stands for an empty list. With `quote: json` texts are written as JSON strings;
    box tokens are always written as boxes.
    """

    template: str
    join: str = ", "
    around: str = "{}"
    empty: str | None = None
    quote: str = "none"


@dataclass(frozen=True)
class Task:
    """One task of `tasks.yaml`; the file's head says what each field means."""

    name: str
    identifier: str = ""
    image: bool = True
    bare: bool = False
    instructions: tuple[str, ...] = ()
    evaluation: str = "{}"
    answer: str = "{}"
    items: ItemsFormat | None = None
    boxes: BoxFormat = field(default_factory=BoxFormat)

    def user(self, content: str, instruction: str) -> str:
        """The user's text: identifier, then the instruction filled with the content."""
        filled = instruction.replace("{}", content, 1)
        return f"{self.identifier} {filled}" if self.identifier else filled

    def assistant(self, text: str, where: str) -> str:
        """The assistant's text: the answer template filled, items written out.

        Raises:
            ValueError: the task wants a list of records and the text is none.
        """
        return self.answer.replace("{}", _format_items(text, self.items, where) if self.items else text, 1)


def _format_items(text: str, items: ItemsFormat, where: str) -> str:
    try:
        records = json.loads(text)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError("it is not a list of objects")
        template = string.Template(items.template)
        written = [
            template.substitute({name: _quoted(value, items.quote) for name, value in record.items()})
            for record in records
        ]
    except KeyError as error:
        raise ValueError(
            f"{where}: an item of the answer lacks the field {error}, which the task's template names"
        ) from error
    except ValueError as error:
        raise ValueError(f"{where}: the answer {text[:80]!r} must be a JSON list of objects ({error})") from error
    return (
        items.empty
        if not written and items.empty is not None
        else items.around.replace("{}", items.join.join(written), 1)
    )


def _quoted(value: object, quote: str) -> str:
    if isinstance(value, str) and (quote == "none" or BOX_TOKENS.fullmatch(value)):
        return value
    return json.dumps(value, ensure_ascii=False)


def load_tasks(*paths: str | Path) -> dict[str, Task]:
    """The shipped tasks and those of the given YAML files.

    Raises:
        ValueError: a file is not as described at the head of `tasks.yaml`, or a name is taken; every mistake of a file is named.
    """
    tasks: dict[str, Task] = {}
    for path in (SHIPPED, *paths):
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path}: a tasks file is a mapping of task names; see docs/tasks.md")
        mistakes: list[str] = []
        for name, values in content.items():
            if name in tasks:
                mistakes.append(f"{name}: the name is taken; choose another")
                continue
            try:
                tasks[name] = _task(str(name), values)
            except (TypeError, ValueError) as error:
                mistakes.append(f"{name}: {error}")
        if mistakes:
            raise ValueError(f"{path}: " + "; ".join(mistakes))
    return tasks


@lru_cache(maxsize=1)
def shipped_tasks() -> Mapping[str, Task]:
    """The tasks of `tasks.yaml`."""
    return load_tasks()


def _task(name: str, values: object) -> Task:
    if not isinstance(values, dict):
        raise ValueError("must be a mapping")
    values = dict(values)
    _only(values, Task)
    if "items" in values:
        values["items"] = ItemsFormat(**_only(values["items"], ItemsFormat))
        _check_template("items.template", values["items"].template, None)
    if "boxes" in values:
        values["boxes"] = BoxFormat(**_only(values["boxes"], BoxFormat))
        _check_template("boxes.template", values["boxes"].template, {"x1", "y1", "x2", "y2"})
    values["instructions"] = tuple(map(str, values.get("instructions") or ()))
    if not values["instructions"] and not values.get("bare"):
        raise ValueError("instructions: the pool is empty; give at least one, for instance '{}'")
    values.setdefault("evaluation", (values["instructions"] or ("{}",))[0])
    return Task(name=name, **values)


def _only(values: Any, kind: type) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} must be a mapping")
    known = {item.name for item in fields(kind)} - {"name"}
    unknown = sorted(map(str, set(values) - known))
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return values


def _check_template(key: str, template: str, names: set[str] | None) -> None:
    parsed = string.Template(template)
    if not parsed.is_valid():
        raise ValueError(f"{key}: {template!r} has a lone $; write $name for a field and $$ for the sign")
    if names is not None and set(parsed.get_identifiers()) != names:
        raise ValueError(f"{key}: {template!r} must use each of {', '.join('$' + name for name in sorted(names))}")


def render(
    sample: Sample, rng: random.Random, *, task: str | None = None, tasks: Mapping[str, Task] | None = None
) -> list[Message]:
    """The messages of a training example: `[{"role", "content"}, ...]`.

    One instruction of the pool is drawn, and one of each turn's alternatives. The first user message of a sample with an image starts with
    `<Img><ImageHere></Img> `; of a `bare` task it is `<ImageHere>` alone.

    Args:
        sample: the record.
        rng: decides the drawing, `mgpt.data.mixture.pick_rng` in training.
        task: renders as another task than the sample's own (`caption-bare` for MiniGPT-4's first stage).
        tasks: where names are looked up; the shipped ones by default.

    Raises:
        ValueError: the task is not known or wants an image that is not there, a box is outside its image, or an answer has the wrong form.
    """
    chosen = _task_of(sample, task, tasks)
    first = rng.choice(chosen.instructions) if chosen.instructions else "{}"
    return [
        _message(sample, chosen, number, _draw_text(turn, rng), first if number == 0 else "{}")
        for number, turn in enumerate(sample.turns)
    ]


def prompt(sample: Sample, *, task: str | None = None, tasks: Mapping[str, Task] | None = None) -> list[Message]:
    """The messages that evaluation asks with: the task's `evaluation` instruction, ending before the last assistant turn. Deterministic.

    Raises:
        ValueError: see `render`.
    """
    chosen = _task_of(sample, task, tasks)
    turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
    return [
        _message(sample, chosen, number, turn.text, chosen.evaluation if number == 0 else "{}")
        for number, turn in enumerate(turns)
    ]


def _task_of(sample: Sample, task: str | None, tasks: Mapping[str, Task] | None) -> Task:
    known = shipped_tasks() if tasks is None else tasks
    name = task or sample.task
    if name not in known:
        raise ValueError(
            f"{sample.dataset} {sample.source}: task {name!r} is not known; known are {', '.join(sorted(known))}"
        )
    if known[name].image != (sample.image is not None):
        has, wants = ("no image", "needs one") if sample.image is None else ("an image", "takes none")
        raise ValueError(
            f"{sample.dataset} {sample.source}: the sample has {has} and task {name!r} {wants}; use another task"
        )
    return known[name]


def _draw_text(turn: Turn, rng: random.Random) -> str:
    return rng.choice(turn.alternatives) if turn.alternatives else turn.text


def _message(sample: Sample, task: Task, number: int, text: str, instruction: str) -> Message:
    role = sample.turns[number].role
    if task.bare and role == "user":
        return {"role": role, "content": BARE_IMAGE}
    where = f"{sample.dataset} {sample.source}".strip()
    written = task.user(text, instruction) if role == "user" else task.assistant(text, where)
    prefix = IMAGE_PREFIX if number == 0 and task.image else ""
    return {
        "role": role,
        "content": prefix + write_boxes(written, sample.boxes, sample.width, sample.height, task.boxes),
    }


def write_boxes(text: str, boxes: Iterable[Box], width: int, height: int, form: BoxFormat | None = None) -> str:
    """Text with its `<box:N>` tokens replaced by written boxes of a width x height image; runs of tokens are joined by the delimiter.

    Raises:
        ValueError: a box is not inside the image.
        IndexError: a token refers to a box that is not there (a `Sample` has none such).
    """
    form, known = form or BoxFormat(), tuple(boxes)

    def written(run: re.Match[str]) -> str:
        numbers = [int(number) for number in BOX_TOKEN.findall(run.group())]
        return form.around.replace(
            "{}", form.delimiter.join(form.text(known[number], width, height) for number in numbers), 1
        )

    return BOX_TOKENS.sub(written, text)
