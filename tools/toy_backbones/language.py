"""Training of the toy language model, a LLaMA of 0.9 M parameters, and its sentencepiece tokenizer on `corpus`.

The scene of an example becomes 16 soft tokens by an oracle, a linear map of `targets.as_features` that is discarded
afterwards, in two layouts: strips of four patches, and cells of a 4 x 4 grid. The model never sees features of the toy
vision tower, so that the pretrain stage has to align the two.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import sentencepiece
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from mgpt.data.boxes import Box, iou
from mgpt.data.synthetic.world import Scene, scenes
from tools.toy_backbones import corpus
from tools.toy_backbones.corpus import CHAT_FORMATS, Example, examples
from tools.toy_backbones.targets import FEATURES, IGNORE, as_features, cell_targets, patch_targets

VOCABULARY = 512
WIDTH = 128
MERGE = 4
IMAGE_TOKENS = 16
MEGABATCH = 4  # this many batches of examples are sorted by length before they are split, which reduces padding


@dataclass(frozen=True)
class Phase:
    """One warm-up-and-decay cycle.

    Attributes:
        steps: optimizer steps.
        peak: peak learning rate.
        shares: relative share of batches by skill; None stands for examples of all kinds.
    """

    steps: int
    peak: float
    shares: dict[str | None, float]


EVERYTHING: dict[str | None, float] = {None: 1}
# Locations need most steps; docs/shapes-world.md gives the accuracies after 400 and more.
PHASES = (
    Phase(5000, 2.5e-3, EVERYTHING),
    *(
        Phase(steps, 1e-3, {skill: 1})
        for skill, steps in (("color", 200), ("existence", 200), ("location", 400), ("relation", 300))
    ),
    Phase(1000, 1.2e-3, EVERYTHING),
    Phase(3500, 1.8e-3, {"location": 8, "existence": 0.3, "color": 0.3, "relation": 0.4, None: 1}),
    Phase(1500, 6e-4, {None: 1, "location": 1, "relation": 0.3}),
)


def train_tokenizer(seed: int, sentences: tuple[str, ...]) -> bytes:
    """Trains a sentencepiece model as LLaMA's: BPE, byte fallback, single digits, no normalization.

    Returns the content of the `.model` file.
    """
    world = list(scenes("train", 3000, seed))
    stream = examples(world, seed, sentences)
    texts = [
        segment
        for _ in range(12_000)
        for example in [next(stream)]
        for segment in (example.before, *(t for t, _ in example.after))
    ]
    texts = [text.removesuffix("###") for text in texts]  # so that the end symbol does not merge with words
    texts += list(sentences) * 20 + [part for chat in CHAT_FORMATS for part in chat] * 50
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(t.replace("</s>", "") for t in texts if t),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def build_language_model() -> LlamaForCausalLM:
    """Builds the model with random weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


class Oracle(nn.Module):
    """A linear map from the true content of scenes, with noise, to soft tokens (B, 16, WIDTH).

    Stands for a vision tower with a projection.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(MERGE * FEATURES, WIDTH)
        self.cell = nn.Linear(FEATURES, WIDTH)

    def forward(
        self, features_patch: torch.Tensor, features_cell: torch.Tensor, by_patch: torch.Tensor
    ) -> torch.Tensor:
        patch = features_patch + 0.1 * torch.randn_like(features_patch)
        cell = features_cell + 0.1 * torch.randn_like(features_cell)
        return torch.where(
            by_patch[:, None, None], self.patch(patch.reshape(len(patch), IMAGE_TOKENS, -1)), self.cell(cell)
        )


class Encoder:
    """Tokenizes examples segment by segment, as the original does; -1 stands for a soft token."""

    def __init__(self, model: bytes) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def segment(self, text: str) -> list[int]:
        """Returns the ids of one segment."""
        stop = text.endswith("</s>")
        return self.pieces.encode(text.removesuffix("</s>")) + ([2] if stop else [])

    def __call__(self, example: Example, starts: int = 1) -> tuple[list[int], list[int], list[float]]:
        """Returns ids, labels and loss weights.

        An answer has a total weight of the square root of its length, so that long ones do not dominate.

        Args:
            example: the example.
            starts: number of start tokens: one as in the original's training, or two as in its conversations.
        """
        ids = [1] * starts + self.segment(example.before) + ([-1] * IMAGE_TOKENS if example.scene else [])
        labels = [IGNORE] * len(ids)
        weights = [0.0] * len(ids)
        for text, learned in example.after:
            part = self.segment(text)
            ids += part
            labels += part if learned else [IGNORE] * len(part)
            weights += [len(part) ** -0.5 if learned else 0.0] * len(part)
        return ids, labels, weights


def batches(
    encoder: Encoder,
    world: list[Scene],
    sentences: tuple[str, ...],
    batch_size: int,
    seed: int,
    skill: str | None = None,
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields padded batches of similar lengths without end; see `_collate` for their tensors."""
    stream = examples(world, seed, sentences, skill)
    rng = np.random.default_rng(seed)
    while True:
        group = [next(stream) for _ in range(MEGABATCH * batch_size)]
        encoded = sorted(((*encoder(e, 1 + int(rng.random() < 0.3)), e) for e in group), key=lambda row: len(row[0]))
        for start in rng.permutation(MEGABATCH) * batch_size:
            yield _collate(encoded[start : start + batch_size])


def _collate(rows: list[tuple[list[int], list[int], list[float], Example]]) -> dict[str, torch.Tensor]:
    """Returns ids, labels, weights (B, L), and for rows with a scene: features by patch and by cell, and their
    layout.
    """
    length = max(len(row[0]) for row in rows)
    pad = lambda values, fill: torch.tensor([v + [fill] * (length - len(v)) for v in values])  # noqa: E731
    seen = [(row[3].scene, row[3].layout) for row in rows if row[3].scene]
    with_scene = [scene for scene, _ in seen if scene]
    return {
        "ids": pad([row[0] for row in rows], 0),
        "labels": pad([row[1] for row in rows], IGNORE),
        "weights": pad([row[2] for row in rows], 0.0),
        "patch": torch.from_numpy(as_features(patch_targets(with_scene))),
        "cell": torch.from_numpy(as_features(cell_targets(with_scene))),
        "by_patch": torch.tensor([layout == "patch" for _, layout in seen]),
    }


def embed_inputs(model: LlamaForCausalLM, oracle: Oracle, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Returns embeddings (B, L, WIDTH) with the soft tokens inserted."""
    ids = batch["ids"]
    embeds = model.get_input_embeddings()(ids.clamp(min=0))
    soft = oracle(batch["patch"], batch["cell"], batch["by_patch"])
    return embeds.masked_scatter((ids == -1)[..., None], soft.to(embeds.dtype))


def language_loss(model: LlamaForCausalLM, oracle: Oracle, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Computes the weighted mean cross-entropy of the target tokens."""
    hidden = model.model(inputs_embeds=embed_inputs(model, oracle, batch)).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORE
    weights = batch["weights"][:, 1:][learned]
    return (
        functional.cross_entropy(model.lm_head(hidden[learned]).float(), labels[learned], reduction="none") * weights
    ).sum() / weights.sum()


def train_language_model(
    sentences: tuple[str, ...],
    phases: Sequence[Phase] = PHASES,
    batch_size: int = 64,
    seed: int = 2,
    count: int = 20_000,
) -> tuple[LlamaForCausalLM, Oracle, bytes]:
    """Trains on train scenes in phases; prints held-out losses, and the localization accuracies after each phase."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed, sentences)
    model, oracle, encoder = build_language_model(), Oracle(), Encoder(tokenizer)
    for number, phase in enumerate(phases):
        train_phase(model, oracle, encoder, sentences, phase, batch_size, seed + 100 * number, count)
        boxes, things = localization_accuracy(model, oracle, encoder, list(scenes("validation", 200, seed)))
        print(
            f"language phase {number + 1} of {len(phases)}: boxes found {boxes:.2f}, things named {things:.2f}",
            flush=True,
        )
    return model.eval().requires_grad_(False), oracle, tokenizer


def train_phase(
    model: LlamaForCausalLM,
    oracle: Oracle,
    encoder: Encoder,
    sentences: tuple[str, ...],
    phase: Phase,
    batch_size: int,
    seed: int,
    count: int,
    log_every: int = 100,
) -> None:
    """Trains one phase in place, with the forward pass in bfloat16; prints held-out losses by skill."""
    world, held_world = list(scenes("train", count, seed)), list(scenes("validation", 400, seed))
    streams = [
        batches(encoder, world, sentences, batch_size, seed + number, skill)
        for number, skill in enumerate(phase.shares)
    ]
    held = {
        skill: list(islice(batches(encoder, held_world, sentences, batch_size, seed, skill), 2))
        for skill in phase.shares
    }
    parameters = [*model.parameters(), *oracle.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=phase.peak, weight_decay=0.02, betas=(0.9, 0.98))
    lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, phase.peak, total_steps=phase.steps, pct_start=0.08)
    rng, shares = np.random.default_rng(seed), np.array(list(phase.shares.values())) / sum(phase.shares.values())
    for step in range(1, phase.steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = language_loss(model, oracle, next(streams[rng.choice(len(streams), p=shares)]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        lr_scheduler.step()
        if step % log_every == 0:
            print(
                f"language {step}/{phase.steps} loss {loss.item():.4f} held-out {_held_losses(model, oracle, held)}",
                flush=True,
            )


@torch.no_grad()
def _held_losses(model: LlamaForCausalLM, oracle: Oracle, held: dict[str | None, list[dict[str, torch.Tensor]]]) -> str:
    losses = {
        skill: np.mean([language_loss(model, oracle, batch).item() for batch in some]) for skill, some in held.items()
    }
    return " ".join(f"{skill or 'everything'} {loss:.4f}" for skill, loss in losses.items())


def localization_accuracy(
    model: LlamaForCausalLM, oracle: Oracle, encoder: Encoder, world: list[Scene]
) -> tuple[float, float]:
    """Returns the share of scenes where a thing's box is found (IoU above 0.5), and where a box's thing is named."""
    rng = np.random.default_rng(0)
    found, named = [], []
    for scene in world:
        if turn := corpus.locate_question(scene, rng):
            found.append(_overlap(_generate_answer(model, oracle, encoder, scene, turn[0]), turn[1]) > 0.5)
        if turn := corpus.identify_question(scene, rng):
            named.append(_generate_answer(model, oracle, encoder, scene, turn[0]) == turn[1])
    return float(np.mean(found)), float(np.mean(named))


@torch.no_grad()
def _generate_answer(model: LlamaForCausalLM, oracle: Oracle, encoder: Encoder, scene: Scene, question: str) -> str:
    """Generates an answer greedily, with the soft tokens of patch strips."""
    start, middle, _ = CHAT_FORMATS[1]
    example = Example(f"{start}<Img>", [(f"</Img> {question}{middle}", False)], scene)
    batch = _collate([(*encoder(example), example)])
    tokens = model.generate(  # type: ignore[misc]  # transformers declares a base of `generate` that LLaMA does not name
        inputs_embeds=embed_inputs(model, oracle, batch),
        attention_mask=torch.ones_like(batch["ids"]),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    return str(encoder.pieces.decode([token for token in tokens[0].tolist() if token > 2])).strip()


def _overlap(first: str, second: str) -> float:
    """Computes the IoU of the boxes in two texts; 0 if one has no box."""
    numbers = [[int(number) for number in re.findall(r"\d+", text)] for text in (first, second)]
    return iou(Box(*numbers[0]), Box(*numbers[1])) if all(len(some) == 4 for some in numbers) else 0.0
