"""Visual question answering: the official accuracy over ten people's answers, its kin for other sets, and exact match.

- `official`: VQA v2's accuracy with the quirks of its published evaluator (vqaEvaluation/vqaEval.py), for four or more reference answers
  (VQAv2, OK-VQA, A-OKVQA);
- `vizwiz`: min(matches / 3, 1) without leave-one-out or normalisation, as the original eval_vqa.py computes VizWiz;
- `exact`: equality with any reference, lower-case and trimmed (GQA; VSR's true/false; Hateful Memes' yes/no), used where there are fewer
  than four references;
- `ranked`: the choice with the lowest loss (IconVQA), see `mgpt.inference.generation.choice_losses`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mgpt.evaluation.examples import Item
from mgpt.evaluation.scoring import Family, Judgement, Metric, Part

FEWEST_OFFICIAL = 4  # leave-one-out of three matches needs a fourth answer
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(n) for n, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
DIGIT_COMMA = re.compile(r"(\d)(\,)(\d)")
# Contract: the published evaluator's pattern has `(?!<=` where it meant a look-behind, and passes re.UNICODE (32) as the count; both are
# kept, scores depend on them.
PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
PERIOD_COUNT = 32
CONTRACTED = Path(__file__).with_name("contractions.txt").read_text(encoding="utf-8").split()


def _contractions() -> dict[str, str]:
    """A word with one apostrophe left out -> the word. The evaluator's table has some entries that only it has; upper-case keys (Im, Ive)
    never match there, so are not here.
    """
    table = {word[:i] + word[i + 1 :]: word for word in CONTRACTED for i, letter in enumerate(word) if letter == "'"}
    return table | {"somebody'd": "somebodyd"}


CONTRACTIONS = _contractions()


def official(prediction: str, references: Sequence[str]) -> float:
    """VQA accuracy of one answer, 0..1: mean over people of min(1, matches among the others / 3).

    Normalisation (punctuation, digits, articles, contractions) happens only where the references are not all the same, as in the published
    evaluator.
    """
    answer = prediction.lower().replace("<unk>", "").replace("\n", " ").replace("\t", " ").strip()
    people = [reference.replace("\n", " ").replace("\t", " ").strip() for reference in references]
    if len(set(people)) > 1:
        people = [process_digits_and_articles(process_punctuation(person)) for person in people]
        answer = process_digits_and_articles(process_punctuation(answer))
    matches = [person == answer for person in people]
    total = sum(matches)
    return sum(min(1.0, (total - matched) / 3) for matched in matches) / len(people)


def process_punctuation(text: str) -> str:
    """The evaluator's rule: a mark next to a space, or any mark in a text that has `digit,digit`, goes; other marks become a space."""
    result = text
    for mark in PUNCTUATION:
        if f"{mark} " in text or f" {mark}" in text or DIGIT_COMMA.search(text):
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    return PERIOD.sub("", result, count=PERIOD_COUNT)


def process_digits_and_articles(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions with their apostrophe."""
    kept = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ARTICLES)


def vizwiz(prediction: str, references: Sequence[str]) -> float:
    """VizWiz accuracy of one answer, 0..1."""
    return min(sum(reference.lower() == prediction.lower() for reference in references) / 3, 1.0)


def exact(prediction: str, references: Sequence[str]) -> float:
    """1.0 when the answer, lower-case and trimmed, is one of the references."""
    answer = prediction.lower().replace("<unk>", "").strip()
    return float(any(answer == reference.lower().strip() for reference in references))


def judge(item: Item, text: str, finished: bool) -> Judgement:
    """`vqa_accuracy`: by the dataset's own rule; `vqa_exact`: exact match with any reference."""
    rule = vizwiz if item.dataset == "vizwiz" else official if len(item.references) >= FEWEST_OFFICIAL else exact
    return Judgement(
        {"vqa_accuracy": Part(rule(text, item.references)), "vqa_exact": Part(exact(text, item.references))},
        parsed=bool(text.strip()),
    )


def constants(items: Sequence[Item]) -> list[str]:
    """The most frequent answers."""
    return [text for text, _ in Counter(reference for item in items for reference in item.references).most_common(16)]


FAMILY = Family("vqa", (Metric("vqa_accuracy", headline=True), Metric("vqa_exact")), judge, constants)
