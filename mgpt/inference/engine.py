"""One loaded model that answers for several checkpoints of one model: the frozen backbones are read once, only trainables are exchanged."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from mgpt.inference.generation import FeatureCache, answer, choice_losses
from mgpt.inference.types import TRAINABLE_FILE, UNTRAINED, Answer, Ask, ModelSource, Request
from mgpt.models import MiniGPTForConditionalGeneration, MiniGPTProcessor
from mgpt.models.assembly import read_config, read_tensors
from mgpt.models.backbones import PRECISIONS, check_backbones
from mgpt.storage import Store, is_remote

CONTINUE = {"role": "user", "content": "Continue"}  # protocol: MiniGPT-4 paper, construction of the second stage's data


class Answerer:
    """The loaded model. Calling it with asks gives, for each, checkpoint -> answer.

    Raises ValueError where a checkpoint was trained on other backbones or does not fit.
    """

    def __init__(self, source: ModelSource) -> None:
        self.source = source
        self.loaded = UNTRAINED
        with tempfile.TemporaryDirectory(prefix="mgpt-answering-") as name:
            folder = Path(name)
            backbones = _local_backbones(source, folder)
            _write_weights(source, folder)
            last = folder / list(source.weights)[-1]
            self.model = _fresh(source, backbones, last)
            self.processor = MiniGPTProcessor.from_pretrained(last)
            self.states = {
                UNTRAINED: {key: value.detach().clone() for key, value in self.model.trainable_parameters().items()}
            }
            for checkpoint in source.weights:
                check_backbones(read_config(folder / checkpoint).backbones, backbones)
                self.states[checkpoint] = read_tensors(folder / checkpoint / TRAINABLE_FILE)

    def __call__(self, asks: Sequence[Ask]) -> list[dict[str, Answer]]:
        """Answers in the order of the asks. Images go through the frozen tower once, whatever the number of checkpoints."""
        answers: list[dict[str, Answer]] = [{} for _ in asks]
        features = FeatureCache(self.model)
        for name in dict.fromkeys(name for ask in asks for name in ask.checkpoints):
            if name != self.loaded:
                self.model.load_trainable(self.states[name])
                self.loaded = name
            chosen = [i for i, ask in enumerate(asks) if name in ask.checkpoints and not ask.choices]
            for i, given in zip(chosen, self._answer([asks[i] for i in chosen], features), strict=True):
                answers[i][name] = given
            for i, ask in enumerate(asks):
                if name in ask.checkpoints and ask.choices:
                    answers[i][name] = self._choose(ask, features)
        return answers

    def _choose(self, ask: Ask, features: FeatureCache) -> Answer:
        losses = choice_losses(self.model, self.processor, ask.request, ask.choices, self.source.format, features)
        return Answer(ask.choices[losses.index(min(losses))], True)

    def _answer(self, asks: Sequence[Ask], features: FeatureCache) -> list[Answer]:
        answers = self._ask([ask.request for ask in asks], asks, features)
        short = [i for i, ask in enumerate(asks) if ask.continue_below and answers[i].tokens <= ask.continue_below]
        again = [_continued(asks[i].request, answers[i]) for i in short]
        for i, more in zip(short, self._ask(again, [asks[i] for i in short], features), strict=True):
            answers[i] = Answer(
                f"{answers[i].text} {more.text}".strip(), more.finished, answers[i].tokens + more.tokens
            )
        return answers

    def _ask(self, requests: Sequence[Request], asks: Sequence[Ask], features: FeatureCache) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for limit in sorted({ask.max_new_tokens for ask in asks}):
            chosen = [i for i, ask in enumerate(asks) if ask.max_new_tokens == limit]
            given = answer(
                self.model,
                self.processor,
                [requests[i] for i in chosen],
                self.source.format,
                limit,
                self.source.batch_size,
                features,
            )
            answers.update(zip(chosen, given, strict=True))
        return [answers[i] for i in range(len(asks))]


def _continued(request: Request, first: Answer) -> Request:
    return Request(request.images, (*request.messages, {"role": "assistant", "content": first.text}, CONTINUE))


def _fresh(source: ModelSource, backbones: Mapping[str, str | Path], like: Path) -> MiniGPTForConditionalGeneration:
    config = read_config(like)
    model = MiniGPTForConditionalGeneration.from_backbones(
        **backbones,
        merge=config.merge,
        lora=config.lora,
        seed=source.seed,
        image_size=config.image_size,
        dtype=PRECISIONS[source.precision],
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _local_backbones(source: ModelSource, folder: Path) -> dict[str, str | Path]:
    local: dict[str, str | Path] = {}
    for name, uri in source.backbones.items():
        if is_remote(uri):
            Store(uri).fetch_folder(uri, folder / "backbones" / name)
        local[name] = str(folder / "backbones" / name) if is_remote(uri) else uri
    return local


def _write_weights(source: ModelSource, folder: Path) -> None:
    for name, files in source.weights.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(content)


def answer_here(source: ModelSource, asks: Sequence[Ask]) -> list[dict[str, Answer]]:
    """Answer in this process."""
    return Answerer(source)(asks)
