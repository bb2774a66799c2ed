"""Task definitions and the rendering of samples as messages.

A task is an identifier, a pool of instructions, and the format of answers and boxes. The shipped tasks are in
`tasks.yaml`; users add their own in YAML (docs/tasks.md).
"""

import json
import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mgpt.data.boxes import DELIMITER, Box, to_grid
from mgpt.data.types import BOX_TOKEN, Sample

IMAGE_PREFIX = "<Img><ImageHere></Img> "
BARE_IMAGE = "<ImageHere>"
BOX_TOKENS = re.compile(r"<box:\d{1,9}>(?:\s*<box:\d{1,9}>)*")
SHIPPED = Path(__file__).with_name("tasks.yaml")

Message = dict[str, str]


@dataclass(frozen=True)
class BoxFormat:
    """The text format of a box.

    Attributes:
        template: with `$x1 $y1 $x2 $y2` for the coordinates.
        scale: coordinate of the right and bottom edge of the image.
        decimals: digits after the point; 0 truncates, as in the original.
        delimiter: separates the boxes of one phrase.
        around: template for all boxes of one phrase or item, with `{}` for the joined boxes.
    """

    template: str = "{<$x1><$y1><$x2><$y2>}"
    scale: float = 100
    decimals: int = 0
    delimiter: str = DELIMITER
    around: str = "{}"

    def text(self, box: Box, width: int, height: int) -> str:
        """Formats a box of a width x height image.

        Raises:
            ValueError: the box is not inside the image, see `mgpt.data.boxes.to_grid`.
        """
        grid = to_grid(box, width, height)
        if self.scale == 100 and self.decimals == 0:
            values = [str(value) for value in grid]
        else:
            scaled = [side / size * self.scale for side, size in zip(box, (width, height, width, height), strict=True)]
            values = [f"{value:.{self.decimals}f}" if self.decimals else str(int(value)) for value in scaled]
        return string.Template(self.template).substitute(dict(zip(("x1", "y1", "x2", "y2"), values, strict=True)))


@dataclass(frozen=True)
class ItemsFormat:
    """The text format of an answer that is a list of records; the assistant's text is then a JSON list of objects.

    Attributes:
        template: text of one record, with `$name` for each field.
        join: separates the records.
        around: template for the whole list, with `{}` for the joined records.
        empty: text of an empty list; None formats it like any other.
        quote: `json` writes texts as JSON strings, `none` as they are. Box tokens always become boxes.
    """

    template: str
    join: str = ", "
    around: str = "{}"
    empty: str | None = None
    quote: str = "none"


@dataclass(frozen=True)
class Task:
    """One task of `tasks.yaml`; the head of that file describes the fields."""

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
        """Returns the user's text: the identifier, then the instruction with the content filled in."""
        filled = instruction.replace("{}", content, 1)
        return f"{self.identifier} {filled}" if self.identifier else filled

    def assistant(self, text: str, where: str) -> str:
        """Returns the assistant's text: the answer template with the text or the formatted items filled in.

        Raises:
            ValueError: the task has items and the text is not a JSON list of objects with their fields.
        """
        return self.answer.replace("{}", _format_items(text, self.items, where) if self.items else text, 1)


def _format_items(text: str, items: ItemsFormat, where: str) -> str:
    try:
        records = json.loads(text)
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise ValueError("it is not a list of objects")
        template = string.Template(items.template)
        texts = [
            template.substitute({name: _format_value(value, items.quote) for name, value in record.items()})
            for record in records
        ]
    except KeyError as error:
        raise ValueError(f"{where}: an item of the answer lacks the field {error} of the task's template") from error
    except ValueError as error:
        raise ValueError(f"{where}: the answer {text[:80]!r} must be a JSON list of objects ({error})") from error
    if not texts and items.empty is not None:
        return items.empty
    return items.around.replace("{}", items.join.join(texts), 1)


def _format_value(value: object, quote: str) -> str:
    if isinstance(value, str) and (quote == "none" or BOX_TOKENS.fullmatch(value)):
        return value
    return json.dumps(value, ensure_ascii=False)


def load_tasks(*paths: str | Path) -> dict[str, Task]:
    """Loads the shipped tasks and those of the given YAML files.

    Raises:
        ValueError: a file does not have the form described in `tasks.yaml`, or a name is taken. The message lists all
            errors of the file.
    """
    tasks: dict[str, Task] = {}
    for path in (SHIPPED, *paths):
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{path}: a tasks file must be a mapping from task names to tasks; see docs/tasks.md")
        errors: list[str] = []
        for name, values in content.items():
            if name in tasks:
                errors.append(f"{name}: the name is taken; choose another")
                continue
            try:
                tasks[name] = _parse_task(str(name), values)
            except (TypeError, ValueError) as error:
                errors.append(f"{name}: {error}")
        if errors:
            raise ValueError(f"{path}: " + "; ".join(errors))
    return tasks


@lru_cache(maxsize=1)
def shipped_tasks() -> Mapping[str, Task]:
    """The tasks of `tasks.yaml`."""
    return load_tasks()


def _parse_task(name: str, values: object) -> Task:
    values = dict(_known_keys(values, Task))
    if "items" in values:
        values["items"] = ItemsFormat(**_known_keys(values["items"], ItemsFormat))
        _check_template("items.template", values["items"].template, None)
    if "boxes" in values:
        values["boxes"] = BoxFormat(**_known_keys(values["boxes"], BoxFormat))
        _check_template("boxes.template", values["boxes"].template, {"x1", "y1", "x2", "y2"})
    values["instructions"] = tuple(map(str, values.get("instructions") or ()))
    if not values["instructions"] and not values.get("bare"):
        raise ValueError("instructions: the pool is empty; give at least one, for example '{}'")
    values.setdefault("evaluation", (values["instructions"] or ("{}",))[0])
    return Task(name=name, **values)


def _known_keys(values: Any, kind: type) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{values!r} must be a mapping")
    known = {item.name for item in fields(kind)} - {"name"}
    unknown = sorted(map(str, set(values) - known))
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)}; use {', '.join(sorted(known))}")
    return values


def _check_template(key: str, template: str, names: set[str] | None) -> None:
    parsed = string.Template(template)
    if not parsed.is_valid():
        raise ValueError(f"{key}: {template!r} has a single $; write $name for a field and $$ for a dollar sign")
    if names is not None and set(parsed.get_identifiers()) != names:
        raise ValueError(f"{key}: {template!r} must use each of {', '.join('$' + name for name in sorted(names))}")


def render(
    sample: Sample, rng: random.Random, *, task: str | None = None, tasks: Mapping[str, Task] | None = None
) -> list[Message]:
    """Renders a sample as the messages of a training example, `[{"role", "content"}, ...]`.

    Draws one instruction of the pool and one of each turn's alternatives. The first user message of a sample with an
    image starts with `<Img><ImageHere></Img> `; in a `bare` task it is `<ImageHere>` alone.

    Args:
        sample: the record.
        rng: source of the draws; `mgpt.data.mixture.sample_rng` in training.
        task: overrides the sample's task (`caption-bare` in MiniGPT-4's first stage).
        tasks: task definitions by name; by default the shipped ones.

    Raises:
        ValueError: the task is unknown or needs an image that the sample lacks (or the reverse), a box is outside its
            image, or an answer has the wrong form.
    """
    chosen = _select_task(sample, task, tasks)
    first = rng.choice(chosen.instructions) if chosen.instructions else "{}"
    messages = []
    for number, turn in enumerate(sample.turns):
        text = rng.choice(turn.alternatives) if turn.alternatives else turn.text
        messages.append(_message(sample, chosen, number, text, first if number == 0 else "{}"))
    return messages


def prompt(sample: Sample, *, task: str | None = None, tasks: Mapping[str, Task] | None = None) -> list[Message]:
    """Renders the messages of an evaluation prompt: the task's `evaluation` instruction, without the last assistant
    turn.

    Raises:
        ValueError: see `render`.
    """
    chosen = _select_task(sample, task, tasks)
    turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
    return [
        _message(sample, chosen, number, turn.text, chosen.evaluation if number == 0 else "{}")
        for number, turn in enumerate(turns)
    ]


def _select_task(sample: Sample, task: str | None, tasks: Mapping[str, Task] | None) -> Task:
    known = shipped_tasks() if tasks is None else tasks
    name = task or sample.task
    where = f"{sample.dataset} {sample.source}"
    if name not in known:
        raise ValueError(f"{where}: task {name!r} is unknown; use one of {', '.join(sorted(known))}")
    if known[name].image != bool(sample.images):
        conflict = "has an image; task {!r} takes none" if sample.images else "has no image, which task {!r} needs"
        raise ValueError(f"{where}: the sample {conflict.format(name)}. Use another task")
    return known[name]


def _message(sample: Sample, task: Task, number: int, text: str, instruction: str) -> Message:
    role = sample.turns[number].role
    if task.bare and role == "user":
        return {"role": role, "content": BARE_IMAGE * len(sample.images)}
    where = f"{sample.dataset} {sample.source}".strip()
    content = task.user(text, instruction) if role == "user" else task.assistant(text, where)
    prefix = IMAGE_PREFIX * len(sample.images) if number == 0 and task.image else ""
    return {"role": role, "content": prefix + write_boxes(content, sample.boxes, sample.box_sizes, task.boxes)}


def write_boxes(
    text: str, boxes: Sequence[Box], sizes: Sequence[tuple[int, int]], form: BoxFormat | None = None
) -> str:
    """Replaces the `<box:N>` tokens of a text by formatted boxes.

    Boxes of adjacent tokens are joined by the delimiter.

    Args:
        sizes: width and height of the image of each box.

    Raises:
        ValueError: a box is not inside its image.
        IndexError: a token has no box (which `Sample` rules out).
    """
    form = form or BoxFormat()

    def format_run(run: re.Match[str]) -> str:
        numbers = map(int, BOX_TOKEN.findall(run.group()))
        texts = [form.text(boxes[number], *sizes[number]) for number in numbers]
        return form.around.replace("{}", form.delimiter.join(texts), 1)

    return BOX_TOKENS.sub(format_run, text)
