"""Texts about scenes agree with the scenes."""

import numpy as np

from mgpt.data.synthetic import language
from mgpt.data.synthetic.world import Scene, scenes

RNG = np.random.default_rng(0)
WORLD: list[Scene] = list(scenes("validation", 150, 11))


def test_captions_name_all_things() -> None:
    for scene in WORLD:
        text = language.caption(scene, RNG).replace("small ", "").replace("large ", "")
        rest = text
        for thing in scene.things:
            assert language.article(thing.kind).split(" ", 1)[1] in rest
            rest = rest.replace(thing.kind, "", 1)
        assert not any(shape in rest for shape in ("circle", "square", "triangle", "cross"))


def test_expressions_are_unambiguous() -> None:
    turn_texts = {}
    for scene in WORLD:
        for thing in scene.things:
            for phrase in language.expressions(scene, thing):
                assert turn_texts.setdefault((scene.name, phrase), thing) is thing
                assert phrase.endswith(thing.kind)


def test_grounded_captions_use_each_box_once() -> None:
    for scene in WORLD:
        text, boxes = language.grounded_caption(scene)
        assert [text.count(f"<box:{i}>") for i in range(len(boxes))] == [1] * len(scene.things)
        assert boxes == [t.box for t in scene.things]


def test_questions_are_correct_and_balanced() -> None:
    answers = []
    for scene in WORLD:
        for question in language.questions(scene, RNG):
            assert len(question.answers) == 10
            if question.kind == "count":
                assert question.answers[0] == str(len(scene.things))
            if question.kind == "existence":
                kind = question.question.removeprefix("Is there ").rstrip("?").split(" ", 1)[1]
                assert (question.answers[0] == "yes") == any(t.kind == kind for t in scene.things)
            if question.kind in ("existence", "relation"):
                answers.append(question.answers[0])
    assert answers.count("yes") == answers.count("no") > 100


def test_descriptions_name_all_things() -> None:
    for scene in WORLD:
        text = language.description(scene)
        assert text.endswith(".")
        assert text.count("There is") == len(scene.things)


def test_text_instructions_have_correct_answers() -> None:
    for _ in range(50):
        request, answer = language.text_instruction(RNG)
        listed = request.split(": ")[1].rstrip(".")
        kinds = listed.replace(" and ", ", ").split(", ")
        if request.startswith("Count"):
            assert answer == language.NUMBERS[len(kinds)]
        elif request.startswith("Name the first"):
            assert answer == kinds[0]
        elif request.startswith("Repeat"):
            assert answer == language.enumeration(kinds[:-1])
