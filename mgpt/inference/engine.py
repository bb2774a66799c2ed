"""Generation with several checkpoints of a model: backbones are loaded once, only trained weights are exchanged."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from mgpt.inference.generation import FeatureCache, choice_losses, generate
from mgpt.inference.types import (
    TRAINABLE_FILE,
    UNTRAINED,
    CheckpointRequest,
    GenerationOutput,
    GenerationRequest,
    ModelSource,
)
from mgpt.models import MiniGPTProcessor
from mgpt.models.backbones import check_backbones
from mgpt.models.loading import ModelSpec, default_device
from mgpt.models.weights import read_config, read_tensors

# Protocol of the MiniGPT-4 paper, construction of the second stage's data.
CONTINUE = {"role": "user", "content": "Continue"}


class InferenceEngine:
    """A loaded model. Called with requests, it returns the outputs of each by checkpoint.

    threads: of torch on the CPU, in the whole process; None leaves them as they are.
    Raises ValueError when a checkpoint was trained on other backbones or does not fit.
    """

    def __init__(self, source: ModelSource, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.source = source
        self.loaded = UNTRAINED
        with tempfile.TemporaryDirectory(prefix="mgpt-engine-") as name:
            folders = _write_checkpoints(source, Path(name))
            last = folders[list(source.weights)[-1]]
            spec = _untrained(source, last)
            backbones = spec.backbone_folders()
            for folder in folders.values():
                check_backbones(read_config(folder).backbones, backbones)
            self.model = spec.load_model(default_device())
            self.processor = MiniGPTProcessor.from_pretrained(last)
            trainable = self.model.trainable_parameters()
            self.states = {UNTRAINED: {key: value.detach().clone() for key, value in trainable.items()}}
            self.states |= {name: read_tensors(folder / TRAINABLE_FILE) for name, folder in folders.items()}

    def __call__(self, requests: Sequence[CheckpointRequest]) -> list[dict[str, GenerationOutput]]:
        """Returns outputs in the order of the requests. Each image is encoded once, for all checkpoints."""
        outputs: list[dict[str, GenerationOutput]] = [{} for _ in requests]
        features = FeatureCache(self.model)
        for name in dict.fromkeys(name for request in requests for name in request.checkpoints):
            if name != self.loaded:
                self.model.load_trainable(self.states[name])
                self.loaded = name
            chosen = [i for i, request in enumerate(requests) if name in request.checkpoints]
            open_ended = [i for i in chosen if not requests[i].choices]
            generated = self._generate([requests[i] for i in open_ended], features)
            for i, output in zip(open_ended, generated, strict=True):
                outputs[i][name] = output
            for i in chosen:
                if requests[i].choices:
                    outputs[i][name] = self._choose(requests[i], features)
        return outputs

    def _choose(self, request: CheckpointRequest, features: FeatureCache) -> GenerationOutput:
        choices, format = request.choices, self.source.format
        losses = choice_losses(self.model, self.processor, request.request, choices, format, features)
        return GenerationOutput(choices[losses.index(min(losses))], True)

    def _generate(self, requests: Sequence[CheckpointRequest], features: FeatureCache) -> list[GenerationOutput]:
        """Generates answers, and continues those that `continue_below` calls too short."""
        limits = [request.max_new_tokens for request in requests]
        outputs = self._generate_by_limit([request.request for request in requests], limits, features)
        floors = [request.continue_below for request in requests]
        short = [i for i, floor in enumerate(floors) if floor and outputs[i].tokens <= floor]
        continued = [_continued(requests[i].request, outputs[i]) for i in short]
        more = self._generate_by_limit(continued, [limits[i] for i in short], features)
        for i, rest in zip(short, more, strict=True):
            text, tokens = f"{outputs[i].text} {rest.text}".strip(), outputs[i].tokens + rest.tokens
            outputs[i] = GenerationOutput(text, rest.finished, tokens)
        return outputs

    def _generate_by_limit(
        self, requests: Sequence[GenerationRequest], limits: Sequence[int], features: FeatureCache
    ) -> list[GenerationOutput]:
        """Generates in one call per token limit, since rows of a batch share one."""
        outputs: dict[int, GenerationOutput] = {}
        for limit in sorted(set(limits)):
            chosen = [i for i, own in enumerate(limits) if own == limit]
            some, source = [requests[i] for i in chosen], self.source
            generated = generate(self.model, self.processor, some, source.format, limit, source.batch_size, features)
            outputs.update(zip(chosen, generated, strict=True))
        return [outputs[i] for i in range(len(requests))]


def generate_locally(source: ModelSource, requests: Sequence[CheckpointRequest]) -> list[dict[str, GenerationOutput]]:
    """Generates in this process; a `GenerationBackend`."""
    return InferenceEngine(source)(requests)


def _continued(request: GenerationRequest, first: GenerationOutput) -> GenerationRequest:
    answer = {"role": "assistant", "content": first.text}
    return GenerationRequest(request.images, (*request.messages, answer, CONTINUE))


def _untrained(source: ModelSource, checkpoint: Path) -> ModelSpec:
    """Returns a newly initialised model in the shape of a checkpoint."""
    config = read_config(checkpoint)
    init = {"merge": config.merge, "lora": config.lora, "seed": source.seed, "image_size": config.image_size}
    return ModelSpec(source.backbones, None, init, {"precision": source.precision})


def _write_checkpoints(source: ModelSource, folder: Path) -> dict[str, Path]:
    for name, files in source.weights.items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_bytes(content)
    return {name: folder / name for name in source.weights}
