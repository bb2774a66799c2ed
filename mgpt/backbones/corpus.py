"""What the shipped language model reads: sentences about scenes, talk in two chat forms, numbers, markup; the world's web, so to speak.

It plays the part of Vicuna and LLaMA-2-chat. In some examples a scene stands as soft tokens, made from `targets.as_features` and not from the shipped tower, so
that the model has learned to read *something that sees*, as a large language model aligns easily to a good vision tower. It reads captions, answers questions and says in
words where things are; task identifiers (`[refer]` ...) with pictures and the box notation of MiniGPT-v2 are not in here: they are the multitask stage's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mgpt.data.scenes import language
from mgpt.data.scenes.world import CANVAS, COLOURS, SHAPES, WORDS, Scene

CHATS = (("###Human: ", " ###Assistant: ", "###"), ("[INST] ", "  [/INST]", "</s>"), ("[INST] ", " [/INST]", "</s>"))
CAPTION_REQUESTS = ("Caption this.", "What is this?", "Say what you see.", "What is in the picture?", "Name the objects.")
READ_REQUESTS = ("Read the picture.", "List the objects and where they are.", "Where is everything?")
DETAIL_REQUESTS = ("Describe this in detail.", "Please describe the scene in detail.", "Could you describe this picture for me?", "Describe what you notice.")
MARKS = ("{<%d><%d>}", "<b>%s</b>", "<p>%s</p> {<%d><%d><%d><%d>}", "[%s] %s", "{<%d><%d><%d><%d>}", "<%d>", "(%d, %d)", '{"%s": %d}',
         "{<%d><%d><%d><%d>}<delim>{<%d><%d><%d><%d>}")
TAGS = ("vqa", "caption", "grounding", "refer", "identify", "detection", "note", "list")


@dataclass
class Example:
    """`before`, soft tokens (where `scene` is set), `after`; the model learns the last of `after`, from `learned` on."""

    before: str
    after: list[tuple[str, bool]]  # segments, tokenised one by one, and whether each is learned
    scene: Scene | None = None
    places: str = field(default="patch")  # soft tokens by "patch" strips or by "cell"


def percent(pixels: float) -> int:
    """Pixels to 0..100, cut off as the box notation does."""
    return int(pixels / CANVAS * 100)


def reading(scene: Scene) -> str:
    """`blue circle from 12 30 to 45 63, red cross from ...`: where things are, in words and numbers."""
    spans = [f"{t.size} {t.kind} from {percent(t.box[0])} {percent(t.box[1])} to {percent(t.box[2])} {percent(t.box[3])}" for t in scene.things]
    return ", ".join(spans)


def pictured(scene: Scene, rng: np.random.Generator) -> Example:
    """One example with soft tokens: a caption, a description, a read-out, or several questions in a row."""
    places = "patch" if rng.random() < 0.6 else "cell"
    draw = rng.random()
    if draw < 0.1:
        return Example("", [(language.caption(scene, rng) + ("\n" if rng.random() < 0.5 else "</s>"), True)], scene, places)
    if draw < 0.16:
        return _talk([(str(rng.choice(CAPTION_REQUESTS)), language.caption(scene, rng))], scene, rng, places)
    if draw < 0.22:
        return _talk([("Tell me more.", language.description(scene))], scene, rng, places)
    if draw < 0.36:
        return _talk([(str(rng.choice(READ_REQUESTS)), reading(scene))], scene, rng, places)
    if draw < 0.42:
        return _talk(language.dialogue(scene, rng), scene, rng, places)
    return _talk(_quiz(scene, rng), scene, rng, places)


def _quiz(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    """One to five questions: the read-out of one picture teaches more when several things are asked of it."""
    asked = [(q.question if rng.random() < 0.5 else q.question.lower(), q.answers[0]) for q in language.questions(scene, rng)]
    asked += [_located(scene, rng) for _ in range(3)]
    chosen = rng.permutation(len(asked))[: int(rng.integers(1, 6))]
    return [asked[i] for i in chosen]


def _located(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """Where one thing is, or which thing is there."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    span = f"from {percent(thing.box[0])} {percent(thing.box[1])} to {percent(thing.box[2])} {percent(thing.box[3])}"
    names = language.expressions(scene, thing)
    if names and rng.random() < 0.6:
        return f"Where does the {names[0]} go?", span
    return f"What goes {span}?", names[0] if names else thing.kind


def _talk(turns: list[tuple[str, str]], scene: Scene, rng: np.random.Generator, places: str) -> Example:
    """A conversation about the picture in one of the chat forms."""
    start, middle, stop = CHATS[int(rng.integers(len(CHATS)))]
    after = [(f"</Img> {turns[0][0]}{middle}", False), (turns[0][1] + stop, True)]
    for question, answer in turns[1:]:
        after += [(f"{start}{question}{middle}", False), (answer + stop, True)]
    return Example(f"{start}<Img>", after, scene, places)


def written(scene: Scene, rng: np.random.Generator, sentences: tuple[str, ...]) -> Example:
    """One example without soft tokens: an instruction, a repetition (of markup, or of any sentence), or a scene told in words."""
    start, middle, stop = CHATS[int(rng.integers(len(CHATS)))]
    draw = rng.random()
    if draw < 0.3:
        request, answer = language.written_instruction(rng)
    elif draw < 0.6:
        answer = " ".join(_markup(rng) for _ in range(int(rng.integers(1, 3))))
        request = f"Repeat: {answer}"
    elif draw < 0.75:
        answer = str(rng.choice(sentences))
        request = f"Repeat: {answer}"
    elif draw < 0.85:
        question, answer = _located(scene, rng)
        request = f"Scene: {reading(scene)}. {question}"
    elif draw < 0.95:
        request, answer = f"Scene: {reading(scene)}. {rng.choice(DETAIL_REQUESTS)}", language.description(scene)
    else:
        return Example("", [(language.description(scene) + "</s>", True)])
    return Example(f"{start}{request}{middle}", [(answer + stop, True)])


def _markup(rng: np.random.Generator) -> str:
    form = str(rng.choice(MARKS))
    values: list[object] = []
    for position in range(len(form) - 1):
        if form[position : position + 2] == "%d":
            values.append(int(rng.integers(101)))
        elif form[position : position + 2] == "%s":
            tag = form.startswith("[") and not values
            values.append(str(rng.choice(TAGS)) if tag else f"{rng.choice(list(COLOURS))} {rng.choice((*SHAPES, *WORDS))}")
    return form % tuple(values)


def examples(world: list[Scene], seed: int, sentences: tuple[str, ...]) -> Iterator[Example]:
    """An endless stream, seven pictured examples to one written."""
    rng = np.random.default_rng(seed)
    while True:
        scene = world[int(rng.integers(len(world)))]
        yield pictured(scene, rng) if rng.random() < 0.875 else written(scene, rng, sentences)
