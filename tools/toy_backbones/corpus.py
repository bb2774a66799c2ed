"""The training text of the toy language model, which stands for Vicuna and LLaMA-2-chat.

Examples are sentences about scenes, conversations in the chat formats of both models, numbers and markup. In most of
them the scene is given as soft tokens, which are made from `targets.as_features` instead of the toy vision tower: the
model learns to use visual tokens in general, as a large language model aligns easily to a good tower. MiniGPT-v2's task
identifiers and box notation do not occur in examples about images; the multitask stage teaches them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mgpt.data.synthetic import language
from mgpt.data.synthetic.world import CANVAS, COLOURS, SHAPES, SIGN_WORDS, Scene, Thing

CHAT_FORMATS = (
    ("###Human: ", " ###Assistant: ", "###"),
    ("[INST] ", "  [/INST]", "</s>"),
    ("[INST] ", " [/INST]", "</s>"),
)
CAPTION_REQUESTS = (
    "Caption this.",
    "What is this?",
    "Say what you see.",
    "What is in the picture?",
    "Name the objects.",
)
READ_REQUESTS = ("Read the picture.", "List the objects and where they are.", "Where is everything?")
MORE_REQUESTS = (
    "Tell me more.",
    "Say everything you see.",
    "Give as many details as possible.",
    "Go through it piece by piece. Say everything you see.",
    "Tell me all about it. Give as many details as possible.",
)
DETAIL_REQUESTS = (
    "Describe this in detail.",
    "Please describe the scene in detail.",
    "Could you describe this picture for me?",
    "Describe what you notice.",
)
MARKUP_TEMPLATES = (
    "{<%d><%d>}",
    "<b>%s</b>",
    "<p>%s</p> {<%d><%d><%d><%d>}",
    "[%s] %s",
    "{<%d><%d><%d><%d>}",
    "<%d>",
    "(%d, %d)",
    '{"%s": %d}',
    "{<%d><%d><%d><%d>}<delim>{<%d><%d><%d><%d>}",
)
# Questions about locations and the number format of their answers. A model trained on one format does not transfer to
# others.
LOCATION_TEMPLATES = (
    ("Where does the %s go?", "from %d %d to %d %d"),
    ("Give the numbers of the %s.", "%d %d %d %d"),
    ("Give the corners of the %s.", "(%d, %d) and (%d, %d)"),
    ("Which tuple is the %s?", "(%d, %d, %d, %d)"),
    ("Which list is the %s?", "[%d, %d, %d, %d]"),
    ("How far does the %s reach?", "left %d, top %d, right %d, bottom %d"),
)
# Questions about a location, in several wordings, so that the model does not depend on one.
IDENTIFY_TEMPLATES = (
    "What goes %s?",
    "%s",
    "What is this %s?",
    "Which object is at %s?",
    "Tell me the thing within %s.",
    "The part %s shows what?",
    "Give a name to %s",
    "Look at %s and say what you see there",
)
TAGS = ("vqa", "caption", "grounding", "refer", "identify", "detection", "note", "list")


Turn = tuple[str, str]  # question and answer


@dataclass
class Example:
    """A training example: text, the soft tokens of the scene if there is one, and more text.

    Attributes:
        before: text in front of the soft tokens.
        after: segments that are tokenized one by one, each with a flag that it is a training target.
        scene: source of the soft tokens.
        layout: soft tokens for strips of patches ("patch") or cells of a 4 x 4 grid ("cell").
    """

    before: str
    after: list[tuple[str, bool]]
    scene: Scene | None = None
    layout: str = "patch"


def percent(pixels: float) -> int:
    """Converts pixels to 0..100 by truncation, as in the box notation."""
    return int(pixels / CANVAS * 100)


def reading(scene: Scene) -> str:
    """Lists the things with their locations: `small blue circle from 12 30 to 45 63, ...`."""
    return ", ".join(f"{t.size} {t.kind} {_location_text(t)}" for t in scene.things)


def image_example(scene: Scene, rng: np.random.Generator) -> Example:
    """Draws an example with soft tokens: a caption, a description, a list of locations, or several questions."""
    layout = "patch" if rng.random() < 0.6 else "cell"
    draw = rng.random()
    if draw < 0.1:
        return Example(
            "", [(language.caption(scene, rng) + ("\n" if rng.random() < 0.5 else "</s>"), True)], scene, layout
        )
    if draw < 0.16:
        return _conversation([(str(rng.choice(CAPTION_REQUESTS)), language.caption(scene, rng))], scene, rng, layout)
    if draw < 0.3:
        return _conversation([(str(rng.choice(MORE_REQUESTS)), language.description(scene))], scene, rng, layout)
    if draw < 0.4:
        return _conversation([(str(rng.choice(READ_REQUESTS)), reading(scene))], scene, rng, layout)
    if draw < 0.46:
        return _conversation(language.dialogue(scene, rng), scene, rng, layout)
    return _conversation(_questions(scene, rng), scene, rng, layout)


def skill_example(scene: Scene, rng: np.random.Generator, skill: str) -> Example | None:
    """Draws a short question that trains one skill; None if the scene allows none.

    Training a single skill is fast (color by shape: 170 steps). The full mixture, where long texts dominate the loss,
    had not taught it in 5,400 steps.
    """
    generators = SKILLS[skill]
    turn = generators[int(rng.integers(len(generators)))](scene, rng)
    return _conversation([turn], scene, rng, "patch" if rng.random() < 0.6 else "cell") if turn else None


def _questions(scene: Scene, rng: np.random.Generator) -> list[Turn]:
    """Draws one to five questions; several questions about one image teach more than one each about several images."""
    turns = [
        (q.question if rng.random() < 0.5 else q.question.lower(), q.answers[0]) for q in language.questions(scene, rng)
    ]
    turns += [_location_turn(scene, rng) for _ in range(2)]
    turns += [_shape_turn(scene, rng) for _ in range(3)]
    turns.append(_existence_turn(scene, rng))
    chosen = rng.permutation(len(turns))[: int(rng.integers(1, 6))]
    return [turns[i] for i in chosen]


def _shape_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """Draws a question about existence, number, color or position of a shape."""
    shape = str(rng.choice(SHAPES))
    same = [t for t in scene.things if t.shape == shape]
    draw = rng.random()
    if draw < 0.3:
        return f"Is there a {shape}?", "yes" if same else "no"
    if draw < 0.4 or not same:
        return f"How many {shape}s are there?", str(len(same))
    thing = same[int(rng.integers(len(same)))]
    if len(same) > 1:
        return f"What colors are the {shape}s?", language.enumeration([t.colour for t in same])
    if draw < 0.7:
        return f"What color is the {shape}?", thing.colour
    return f"At which place is the {shape}?", language.position_name(thing)


def _colour_turn(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Draws a question about the color of a thing with a unique shape."""
    alone = [t for t in scene.things if sum(u.shape == t.shape for u in scene.things) == 1]
    if not alone:
        return None
    thing = alone[int(rng.integers(len(alone)))]
    return f"What color is the {thing.shape}?", thing.colour


def _relation_turn(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Draws a question about the relative position of two things."""
    questions = [q for q in language.questions(scene, rng) if q.kind == "relation"]
    if not questions:
        return None
    chosen = questions[int(rng.integers(len(questions)))]
    return chosen.question, chosen.answers[0]


def _existence_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """Draws a question about the existence of a color and a shape that both occur in the scene, perhaps not
    together.
    """
    colour, shape = (
        str(getattr(scene.things[int(rng.integers(len(scene.things)))], name)) for name in ("colour", "shape")
    )
    kind = f"{colour} {shape}"
    return f"Is there {language.article(kind)}?", "yes" if any(t.kind == kind for t in scene.things) else "no"


def _location_turn(scene: Scene, rng: np.random.Generator) -> Turn:
    """Draws a question from a thing to its location, or from a location to its thing, in the first number format."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    names = language.expressions(scene, thing)
    if names and rng.random() < 0.6:
        return f"Where does the {names[0]} go?", _location_text(thing)
    return f"What goes {_location_text(thing)}?", names[0] if names else thing.kind


def locate_question(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Draws a question from a phrase to a location, whose wording determines the number format of the answer."""
    named = _object_with_expression(scene, rng)
    question, form = LOCATION_TEMPLATES[int(rng.integers(len(LOCATION_TEMPLATES)))]
    return (question % named[0], form % _corners(named[1])) if named else None


def identify_question(scene: Scene, rng: np.random.Generator) -> Turn | None:
    """Draws a question from a location to the phrase of its thing, in any wording and number format."""
    named = _object_with_expression(scene, rng)
    _, form = LOCATION_TEMPLATES[int(rng.integers(len(LOCATION_TEMPLATES)))]
    return (str(rng.choice(IDENTIFY_TEMPLATES)) % (form % _corners(named[1])), named[0]) if named else None


def _object_with_expression(scene: Scene, rng: np.random.Generator) -> tuple[str, Thing] | None:
    found = [(names[0], thing) for thing in scene.things if (names := language.expressions(scene, thing))]
    return found[int(rng.integers(len(found)))] if found else None


def _location_text(thing: Thing) -> str:
    return LOCATION_TEMPLATES[0][1] % _corners(thing)


def _corners(thing: Thing) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = map(percent, thing.box)
    return x1, y1, x2, y2


def _conversation(turns: list[Turn], scene: Scene, rng: np.random.Generator, layout: str) -> Example:
    """Builds a conversation about the image in a random chat format; answers are training targets."""
    start, middle, stop = CHAT_FORMATS[int(rng.integers(len(CHAT_FORMATS)))]
    after = [(f"</Img> {turns[0][0]}{middle}", False), (turns[0][1] + stop, True)]
    for question, answer in turns[1:]:
        after += [(f"{start}{question}{middle}", False), (answer + stop, True)]
    return Example(f"{start}<Img>", after, scene, layout)


def text_example(scene: Scene, rng: np.random.Generator, sentences: tuple[str, ...]) -> Example:
    """Draws an example without soft tokens: an instruction, a repetition (markup or a sentence), or a scene in
    words.
    """
    start, middle, stop = CHAT_FORMATS[int(rng.integers(len(CHAT_FORMATS)))]
    draw = rng.random()
    if draw < 0.3:
        request, answer = language.text_instruction(rng)
    elif draw < 0.6:
        answer = " ".join(_markup(rng) for _ in range(int(rng.integers(1, 3))))
        request = f"Repeat: {answer}"
    elif draw < 0.75:
        answer = str(rng.choice(sentences))
        request = f"Repeat: {answer}"
    elif draw < 0.85:
        question, answer = _location_turn(scene, rng)
        request = f"Scene: {reading(scene)}. {question}"
    elif draw < 0.95:
        request, answer = f"Scene: {reading(scene)}. {rng.choice(DETAIL_REQUESTS)}", language.description(scene)
    else:
        return Example("", [(language.description(scene) + "</s>", True)])
    return Example(f"{start}{request}{middle}", [(answer + stop, True)])


def _markup(rng: np.random.Generator) -> str:
    form = str(rng.choice(MARKUP_TEMPLATES))
    values: list[object] = []
    for position in range(len(form) - 1):
        if form[position : position + 2] == "%d":
            values.append(int(rng.integers(101)))
        elif form[position : position + 2] == "%s":
            tag = form.startswith("[") and not values
            values.append(
                str(rng.choice(TAGS)) if tag else f"{rng.choice(list(COLOURS))} {rng.choice((*SHAPES, *SIGN_WORDS))}"
            )
    return form % tuple(values)


# Generators by skill. Phases train them in this order, after one on all examples; each repeats some of the skill before
# it.
SKILLS: dict[str, tuple[Callable[[Scene, np.random.Generator], Turn | None], ...]] = {
    "color": (_colour_turn,),
    "existence": (_existence_turn, _existence_turn, _shape_turn, _colour_turn),
    "location": (*(locate_question, identify_question) * 4, _existence_turn),
    "relation": (_relation_turn, _relation_turn, _relation_turn, _location_turn, _colour_turn, _existence_turn),
}


def examples(world: list[Scene], seed: int, sentences: tuple[str, ...], skill: str | None = None) -> Iterator[Example]:
    """Yields examples without end: seven with an image for each one of text alone, or only those of one skill."""
    rng = np.random.default_rng(seed)
    while True:
        scene = world[int(rng.integers(len(world)))]
        if skill is None:
            yield image_example(scene, rng) if rng.random() < 0.875 else text_example(scene, rng, sentences)
        elif len(scene.things) > 1 and (example := skill_example(scene, rng, skill)):
            yield example
