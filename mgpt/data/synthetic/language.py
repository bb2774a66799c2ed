"""Texts about scenes: captions, descriptions, referring expressions, questions, dialogues.

All texts are functions of the scene and a numpy generator. `<box:i>` in a text stands for the i-th of the boxes
returned with it, as in `mgpt.data.types.Sample`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mgpt.data.synthetic.world import CANVAS, COLOURS, SHAPES, PixelBox, Scene, Thing

NUMBERS = ("zero", "one", "two", "three", "four")
POSITION_NAMES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@dataclass(frozen=True)
class Question:
    """A question with the answers of ten annotators; `kind` groups the scores."""

    kind: str
    question: str
    answers: tuple[str, ...]


def article(noun: str) -> str:
    """Returns the noun with its article: `a red circle`, `an orange cross`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def position_name(thing: Thing) -> str:
    """Returns the name of the cell of a 3 x 3 grid that the thing's centre lies in: `top left`, ..."""
    x, y = thing.centre
    return POSITION_NAMES[min(int(y * 3 / CANVAS), 2)][min(int(x * 3 / CANVAS), 2)]


def enumeration(parts: list[str]) -> str:
    """Joins words: `a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Returns a caption that names all things in reading order; a quarter give sizes, a fifth have an opening
    phrase.
    """
    sized = rng.random() < 0.25
    things = enumeration([article(f"{t.size} {t.kind}" if sized else t.kind) for t in scene.things])
    if scene.sign and rng.random() < 0.5:
        things += f" with a sign that says {scene.sign.word}"
    return f"a picture of {things}" if rng.random() < 0.2 else things


def description(scene: Scene) -> str:
    """Returns the detailed description: count; size, kind and position of every thing; sign; background."""
    count = len(scene.things)
    sentences = [f"The image shows {NUMBERS[count]} object{'s' if count > 1 else ''}."]
    sentences += [f"There is {article(f'{t.size} {t.kind}')} at the {position_name(t)}." for t in scene.things]
    if scene.sign:
        sentences.append(f"A sign says {scene.sign.word}.")
    return " ".join([*sentences, f"The background is {scene.background}."])


def expressions(scene: Scene, thing: Thing) -> list[str]:
    """Returns phrases that identify the thing, the simplest first; empty if no simple phrase does."""
    same = [t for t in scene.things if t.kind == thing.kind]
    if len(same) == 1:
        return [thing.kind]
    if len([t for t in same if t.size == thing.size]) == 1:
        return [f"{thing.size} {thing.kind}"]
    if len(same) == 2:
        other = same[0] if same[1] is thing else same[1]
        dx, dy = thing.centre[0] - other.centre[0], thing.centre[1] - other.centre[1]
        if max(abs(dx), abs(dy)) >= 8:
            side = ("left" if dx < 0 else "right") if abs(dx) >= abs(dy) else ("top" if dy < 0 else "bottom")
            return [f"{side} {thing.kind}"]
    return []


def grounded_caption(scene: Scene) -> tuple[str, list[PixelBox]]:
    """Returns `a <p>red circle</p> <box:0> and a <p>blue square</p> <box:1>` and the boxes."""
    parts = [f"{article(t.kind).split()[0]} <p>{t.kind}</p> <box:{i}>" for i, t in enumerate(scene.things)]
    return enumeration(parts), [t.box for t in scene.things]


def phrases(scene: Scene) -> dict[str, list[PixelBox]]:
    """Returns kind -> boxes of all things of that kind (the detection task)."""
    found: dict[str, list[PixelBox]] = {}
    for thing in scene.things:
        found.setdefault(thing.kind, []).append(thing.box)
    return found


def questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Returns all questions with a unique answer; yes/no questions come in pairs of one true and one false."""
    found = [_make_question(rng, "count", "How many objects are there?", str(len(scene.things)))]
    for thing in scene.things:
        if sum(t.shape == thing.shape for t in scene.things) == 1:
            found.append(_make_question(rng, "color", f"What color is the {thing.shape}?", thing.colour))
        if sum(t.colour == thing.colour for t in scene.things) == 1:
            found.append(_make_question(rng, "shape", f"What shape is the {thing.colour} object?", thing.shape))
    found += _existence(scene, rng) + _relations(scene, rng)
    if scene.sign:
        found.append(_make_question(rng, "text", "What does the sign say?", scene.sign.word))
    return found


def dialogue(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Returns one to three pairs of question and answer, in full sentences."""
    turns = [("What do you see in the picture?", f"I see {enumeration([article(t.kind) for t in scene.things])}.")]
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if expressions(scene, thing):
        turns.append(
            (f"Where is the {expressions(scene, thing)[0]}?", f"It is at the {position_name(thing)} of the picture.")
        )
    if rng.random() < 0.5:
        turns.append(("What is the background like?", f"The background is {scene.background}."))
    return turns


def reasoning(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Returns a question that takes two steps of reasoning, and its answer with the reason."""
    colours = [t.colour for t in scene.things]
    if rng.random() < 0.5:
        large = sum(t.size == "large" for t in scene.things)
        small = len(scene.things) - large
        verdict = "Yes" if large > small else "No"
        return (
            "Are there more large objects than small ones?",
            f"{verdict}, there are {NUMBERS[large]} large and {NUMBERS[small]} small.",
        )
    return (
        "Do any two objects share a color?",
        f"{'Yes' if len(set(colours)) < len(colours) else 'No'}, the colors are {enumeration(colours)}.",
    )


def text_instruction(rng: np.random.Generator) -> tuple[str, str]:
    """Returns a text-only instruction and its answer; stands for Unnatural Instructions."""
    kinds = [f"{rng.choice(list(COLOURS))} {rng.choice(SHAPES)}" for _ in range(int(rng.integers(2, 5)))]
    listed = enumeration([article(k) for k in kinds])
    task = int(rng.integers(4))
    if task == 0:
        return f"Count the objects in this list: {listed}.", NUMBERS[len(kinds)]
    if task == 1:
        return f"Name the first object in this list: {listed}.", article(kinds[0])
    if task == 2:
        return f"Name the colors in this list: {listed}.", enumeration([k.split()[0] for k in kinds])
    return f"Repeat this list without the last object: {listed}.", enumeration([article(k) for k in kinds[:-1]])


def _make_question(rng: np.random.Generator, kind: str, question: str, answer: str) -> Question:
    """Builds a question with ten answers; in a fifth of the questions two of them are longer variants."""
    variants = 2 if rng.random() < 0.2 else 0
    return Question(kind, question, (answer,) * (10 - variants) + (f"it is {answer}",) * variants)


def _existence(scene: Scene, rng: np.random.Generator) -> list[Question]:
    present = {t.kind for t in scene.things}
    absent = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in present]
    yes, no = str(rng.choice(sorted(present))), str(rng.choice(absent))
    return [
        _make_question(rng, "existence", f"Is there {article(yes)}?", "yes"),
        _make_question(rng, "existence", f"Is there {article(no)}?", "no"),
    ]


def _relations(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Returns a true and a false question on two things at least 10 px apart horizontally."""
    unique = [t for t in scene.things if expressions(scene, t) == [t.kind]]
    pairs = [(a, b) for a in unique for b in unique if a is not b and abs(a.centre[0] - b.centre[0]) >= 10]
    if not pairs:
        return []
    first, second = pairs[int(rng.integers(len(pairs)))]
    side = "left" if first.centre[0] < second.centre[0] else "right"
    other = "right" if side == "left" else "left"
    return [
        _make_question(rng, "relation", f"Is the {first.kind} to the {side} of the {second.kind}?", "yes"),
        _make_question(rng, "relation", f"Is the {first.kind} to the {other} of the {second.kind}?", "no"),
    ]
