"""The question and conversation datasets of the shapes world: VQA, LLaVA, instructions, benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mgpt.data.boxes import Box, format_box
from mgpt.data.synthetic import language
from mgpt.data.synthetic.language import Question
from mgpt.data.synthetic.world import CANVAS, SHAPES, Split
from mgpt.data.synthetic.write_captions import FLAW_INTERVAL
from mgpt.data.synthetic.writer import SceneImage, WorldWriter

FILES: tuple[tuple[Split, str, str], ...] = (
    ("train", "train", "train2014"),
    ("validation", "val", "val2014"),
    ("test", "test", "val2014"),
)
INSTRUCTIONS_SHARE = 0.25
COVER_QUESTIONS = ("What is the title of this book?", "What does the sign say?")
SMALL_SET_STRIDE = 5  # the small evaluation sets and GQA use every fifth test scene


def _draw_questions(image: SceneImage, purpose: str, count: int) -> list[Question]:
    """Draws `count` of an image's questions without replacement."""
    rng = image.rng(purpose)
    questions = language.questions(image.scene, rng)
    return [questions[i] for i in rng.permutation(len(questions))[:count]]


def write_vqa(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes VQAv2, OK-VQA and A-OKVQA on COCO images. One VQAv2 training record in `FLAW_INTERVAL` lacks its image.

    A-OKVQA's training file has the layout of LAVIS, its validation file the official one. OK-VQA's test questions and
    answers are separate files, as published.
    """
    for split, name, release in FILES:
        rows = [row for image in images[split] for row in _vqa_rows(image, "vqav2", 2, release)]
        if split == "train":
            for row in rows[::FLAW_INTERVAL]:
                row["image"] = row["image"].replace(".jpg", "_gone.jpg")
        world.write_json(f"vqav2/vqa_{name}.json", rows)
    third = len(images["train"]) // 3
    okvqa = [row for image in images["train"][:third] for row in _vqa_rows(image, "okvqa", 1, "train2014")]
    world.write_json("okvqa/okvqa_train.json", okvqa)
    aokvqa = [row for image in images["train"][third : 2 * third] for row in _aokvqa_rows(image)]
    world.write_json(
        "aokvqa/aokvqa_v1p0_train.json",
        [{"image": f"train2014/COCO_train2014_{row['image_id']:012d}.jpg"} | row for row in aokvqa],
    )
    world.write_json(
        "aokvqa/aokvqa_v1p0_val.json", [row for image in images["validation"] for row in _aokvqa_rows(image)]
    )
    _write_okvqa_test(world, images["test"])


def _vqa_rows(image: SceneImage, purpose: str, count: int, release: str) -> list[dict[str, Any]]:
    return [
        {
            "image": f"{release}/COCO_{release}_{image.coco_name}.jpg",
            "question": item.question,
            "question_id": image.number * 1000 + number,
            "answer": list(item.answers),
            "question_type": item.kind,
            "dataset": "vqa",
        }
        for number, item in enumerate(_draw_questions(image, purpose, count))
    ]


def _choices(answer: str, rng: np.random.Generator) -> list[str]:
    """Returns four candidate answers of the answer's kind in random order, the correct one included."""
    groups = (
        ["yes", "no", "maybe", "left"],
        ["1", "2", "3", "4"],
        list(SHAPES),
        ["red", "green", "blue", "yellow", "purple", "orange"],
    )
    group = next((members for members in groups if answer in members), ["cat", "dog", "sun", "map"])
    others = [member for member in group if member != answer]
    chosen = [answer, *(others[i] for i in rng.permutation(len(others))[:3])]
    return [chosen[i] for i in rng.permutation(4)]


def _aokvqa_rows(image: SceneImage) -> list[dict[str, Any]]:
    rows = []
    for item in _draw_questions(image, "aokvqa", 1):
        answer = item.answers[0]
        choices = _choices(answer, image.rng("choices"))
        rows.append(
            {
                "image_id": image.number,
                "question": item.question,
                "question_id": f"shapes{image.number}",
                "choices": choices,
                "correct_choice_idx": choices.index(answer),
                "direct_answers": list(item.answers),
                "difficult_direct_answer": False,
                "rationales": [language.description(image.scene)] * 3,
            }
        )
    return rows


def _write_okvqa_test(world: WorldWriter, images: Sequence[SceneImage]) -> None:
    pairs = [(image, question) for image in images for question in _draw_questions(image, "okvqa", 1)]
    questions = [{"image_id": p.number, "question": q.question, "question_id": p.number * 1000} for p, q in pairs]
    answers = [
        {
            "image_id": p.number,
            "question_id": p.number * 1000,
            "question_type": q.kind,
            "answer_type": "other",
            "answers": [
                {"answer": text, "raw_answer": text, "answer_confidence": "yes", "answer_id": n}
                for n, text in enumerate(q.answers, 1)
            ],
        }
        for p, q in pairs
    ]
    world.write_json("okvqa_evaluation/okvqa_test_split.json", questions)
    world.write_json("okvqa_evaluation/mscoco_val2014_annotations.json", {"info": {}, "annotations": answers})


def write_gqa(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes GQA: one question per image with one answer; training in the layout of LAVIS, testdev in the official
    one.
    """
    for split in ("train", "test"):
        chosen = images["train"] if split == "train" else images["test"][::SMALL_SET_STRIDE]
        for image in chosen:
            world.write(f"gqa/images/{image.number}.jpg", image.jpeg)
        pairs = [(image, question) for image in chosen for question in _draw_questions(image, "gqa", 1)]
        if split == "train":
            rows = [
                {
                    "image": f"{p.number}.jpg",
                    "question": q.question,
                    "answer": q.answers[0],
                    "question_id": f"{p.number:08d}",
                }
                for p, q in pairs
            ]
            world.write_json("gqa/train_balanced_questions.json", rows)
        else:
            official = {
                f"{p.number:08d}": {
                    "imageId": str(p.number),
                    "question": q.question,
                    "answer": q.answers[0],
                    "isBalanced": True,
                }
                for p, q in pairs
            }
            world.write_json("gqa/testdev_balanced_questions.json", official)


def write_ocrvqa(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes OCR-VQA: images with a sign stand for book covers."""
    books = {}
    for code, split in ((1, "train"), (2, "validation"), (3, "test")):
        for image in images["train" if split == "train" else "validation" if split == "validation" else "test"]:
            if image.scene.sign:
                word = image.scene.sign.word
                world.write(f"ocrvqa/images/{image.coco_name}.jpg", image.jpeg)
                books[image.coco_name] = {
                    "imageURL": f"https://shapes.example/{image.number}.01._SX500_.jpg",
                    "questions": list(COVER_QUESTIONS),
                    "answers": [word, word],
                    "title": word,
                    "authorName": "",
                    "genre": "Shapes",
                    "split": code,
                }
    world.write_json("ocrvqa/dataset.json", books)


def write_llava(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes LLaVA-Instruct's three files on COCO images: conversations, detailed descriptions, reasoning."""
    third = len(images["train"]) // 3
    kinds = (("conversation_58k", 0), ("detail_23k", 1), ("complex_reasoning_77k", 2))
    for name, number in kinds:
        rows = []
        for image in images["train"][number * third : (number + 1) * third]:
            rng = image.rng(name)
            pairs = (
                language.dialogue(image.scene, rng)
                if number == 0
                else [("Describe the picture in detail.", language.description(image.scene))]
                if number == 1
                else [language.reasoning(image.scene, rng)]
            )
            rows.append(_conversation(image, pairs))
        world.write_json(f"llava/{name}.json", rows)


def _conversation(image: SceneImage, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    turns: list[dict[str, str]] = []
    for number, (question, answer) in enumerate(pairs):
        turns += [
            {"from": "human", "value": question + ("\n<image>" if number == 0 else "")},
            {"from": "gpt", "value": answer},
        ]
    return {"id": image.coco_name, "image": f"{image.coco_name}.jpg", "conversations": turns}


def write_multitask(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes multi-task conversations: a reference, a question and a caption per image, with task identifiers and
    boxes.
    """
    rows = []
    for image in images["train"][::6]:
        pairs = []
        for thing in image.scene.things[:1]:
            for expression in language.expressions(image.scene, thing):
                pairs.append(
                    (f"[refer] give me the location of {expression}", format_box(Box(*thing.box), CANVAS, CANVAS))
                )
        pairs += [(f"[vqa] {item.question}", item.answers[0]) for item in _draw_questions(image, "multitask", 1)]
        pairs.append(("[caption] briefly describe the image", language.caption(image.scene, image.rng("multitask"))))
        rows.append(_conversation(image, pairs))
    world.write_json("multitask_conversation/multitask_conversation.json", rows)


def write_instructions(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes Unnatural Instructions: text-only instructions, a quarter as many as training images of COCO."""
    rows = []
    for number in range(round(INSTRUCTIONS_SHARE * len(images["train"]))):
        rng = np.random.default_rng([world.seed, number, len(FILES)])
        instruction, answer = language.text_instruction(rng)
        constraints = "Answer in lower case." if rng.random() < 0.1 else None
        instance = {"instruction_with_input": instruction, "input": "", "constraints": constraints, "output": answer}
        rows.append({"instruction": instruction.split(":")[0] + ".", "instances": [instance]})
    world.write_json("unnatural_instructions/unnatural_instructions.json", rows)


def write_statements(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes VSR: statements about positions, half of them true."""
    rows = []
    for image in images["test"]:
        for item in language.questions(image.scene, image.rng("vsr")):
            if item.kind == "relation":
                subject, _, rest = item.question.removeprefix("Is the ").removesuffix("?").partition(" to the ")
                label = int(item.answers[0] == "yes")
                name = f"COCO_val2014_{image.coco_name}.jpg"
                rows.append(
                    {
                        "image": name,
                        "image_link": "",
                        "caption": f"The {subject} is to the {rest}.",
                        "label": label,
                        "relation": rest.split()[0],
                    }
                )
    world.write_lines("vsr/test.jsonl", rows)


def write_small_evaluations(world: WorldWriter, images: Mapping[Split, list[SceneImage]]) -> None:
    """Writes IconVQA, VizWiz and Hateful Memes on test scenes.

    Every other question of VizWiz is 'unanswerable', as the image has no book; an image with the word "hot" is hateful.
    """
    icons, blind, memes = [], [], []
    for number, image in enumerate(images["test"][::SMALL_SET_STRIDE]):
        item = _draw_questions(image, "evaluation", 1)[0]
        choices = _choices(item.answers[0], image.rng("choices"))
        world.write(f"iconvqa/{image.number}/image.png", image.png)
        icons.append(
            {
                "image_id": str(image.number),
                "question": item.question,
                "choices": choices,
                "answer": choices.index(item.answers[0]),
            }
        )
        name = f"VizWiz_val_{number:08d}.jpg"
        world.write(f"vizwiz/images/{name}", image.jpeg)
        question, answers = (
            (item.question, item.answers) if number % 2 else ("What does the book say?", ("unanswerable",) * 10)
        )
        blind.append(
            {
                "image": name,
                "question": question,
                "answers": [{"answer": text, "answer_confidence": "yes"} for text in answers],
            }
        )
        world.write(f"hateful_memes/img/{number:05d}.png", image.png)
        word = image.scene.sign.word if image.scene.sign else "nothing"
        memes.append({"id": f"{number:05d}", "img": f"img/{number:05d}.png", "label": int(word == "hot"), "text": word})
    world.write_json("iconvqa/choose_text_val.json", icons)
    world.write_json("vizwiz/val.json", blind)
    world.write_lines("hateful_memes/dev.jsonl", memes)
