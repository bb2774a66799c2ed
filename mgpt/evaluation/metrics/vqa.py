"""Visual question answering: `vqa_accuracy` by the dataset's own rule, and `vqa_exact`, equality with any reference.

- `official`: VQA v2's accuracy over ten people's answers with the quirks of its published evaluator
  (vqaEvaluation/vqaEval.py), for four or more reference answers (VQAv2, OK-VQA, A-OKVQA);
- `vizwiz`: min(matches / 3, 1) without leave-one-out or normalisation, as the original eval_vqa.py computes VizWiz;
- `exact`: equality with any reference, lower-case and trimmed (GQA; VSR's true/false; Hateful Memes' yes/no), used
  where there are fewer than four references;
- `ranked`: the choice with the lowest loss (IconVQA), see `mgpt.inference.generation.choice_losses`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mgpt.evaluation.metrics import METRICS
from mgpt.evaluation.types import Contribution, Example, ExampleScore, MetricFamily

MIN_OFFICIAL_REFERENCES = 4  # leave-one-out of three matches needs a fourth answer
MAX_CONSTANTS = 16
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(n) for n, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
DIGIT_COMMA = re.compile(r"(\d)(\,)(\d)")
# Contract: the published evaluator's pattern has `(?!<=` where a look-behind was meant, and passes re.UNICODE (32) as
# the count; both are kept, because scores depend on them.
PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
PERIOD_COUNT = 32
CONTRACTED = Path(__file__).with_name("contractions.txt").read_text(encoding="utf-8").split()


def _contractions() -> dict[str, str]:
    """Returns word with one apostrophe left out -> word, as the evaluator's table.

    The evaluator's upper-case keys (Im, Ive) never match there and are left out.
    """
    table = {word[:i] + word[i + 1 :]: word for word in CONTRACTED for i, letter in enumerate(word) if letter == "'"}
    return table | {"somebody'd": "somebodyd"}  # an entry that only the evaluator's table has


CONTRACTIONS = _contractions()


def official(prediction: str, references: Sequence[str]) -> float:
    """Computes VQA accuracy of one answer, 0..1: the mean over annotators of
    min(1, matches among the other annotators' answers / 3).

    As in the published evaluator, punctuation, digits, articles and contractions are normalised only where the
    references differ.
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
    """Removes or replaces punctuation by the evaluator's rule.

    A mark next to a space, or any mark in a text that contains `digit,digit`, is removed; other marks become a space.
    """
    result = text
    for mark in PUNCTUATION:
        if f"{mark} " in text or f" {mark}" in text or DIGIT_COMMA.search(text):
            result = result.replace(mark, "")
        else:
            result = result.replace(mark, " ")
    return PERIOD.sub("", result, count=PERIOD_COUNT)


def process_digits_and_articles(text: str) -> str:
    """Lower-cases, writes number words as digits, drops articles, and restores apostrophes of contractions."""
    kept = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in kept if word not in ARTICLES)


def vizwiz(prediction: str, references: Sequence[str]) -> float:
    """Computes VizWiz accuracy of one answer, 0..1."""
    return min(sum(reference.lower() == prediction.lower() for reference in references) / 3, 1.0)


def exact(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 when the answer, lower-case and trimmed, is one of the references, else 0.0."""
    answer = prediction.lower().replace("<unk>", "").strip()
    return float(any(answer == reference.lower().strip() for reference in references))


def score(example: Example, text: str, finished: bool) -> ExampleScore:
    """Scores one answer by the rule of its dataset and by exact match."""
    if example.dataset == "vizwiz":
        rule = vizwiz
    else:
        rule = official if len(example.references) >= MIN_OFFICIAL_REFERENCES else exact
    contributions = {
        "vqa_accuracy": Contribution(rule(text, example.references)),
        "vqa_exact": Contribution(exact(text, example.references)),
    }
    return ExampleScore(contributions, parsed=bool(text.strip()))


def constants(examples: Sequence[Example]) -> list[str]:
    """Returns the most frequent answers."""
    counts = Counter(reference for example in examples for reference in example.references)
    return [text for text, _ in counts.most_common(MAX_CONSTANTS)]


FAMILY = MetricFamily("vqa", METRICS["vqa"], score, constants)
