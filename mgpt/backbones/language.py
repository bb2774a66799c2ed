"""The shipped language model: transformers' LLaMA of 0.9 M parameters and its sentencepiece tokenizer, trained on `corpus`.

Where an example has a scene, an *oracle* (a linear map of `targets.as_features`, thrown away afterwards) puts 16 soft tokens in its
place, in two layouts: strips of four patches, and cells of a 4 x 4 grid. The model never meets the shipped tower: aligning the two is
what the pipeline's pretrain stage does.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import numpy as np
import sentencepiece
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from mgpt.backbones.corpus import CHATS, Example, examples
from mgpt.backbones.targets import FEATURES, IGNORE, as_features, cell_targets, dense_targets
from mgpt.data.scenes.world import Scene, scenes

VOCABULARY = 512
WIDTH = 128
MERGE = 4
IMAGE_TOKENS = 16
DIET_STEPS = {"color": 200, "existence": 200, "place": 400, "relation": 300}
MEGABATCH = 4  # batches are cut from this many sorted by length, so that little of a batch is padding


def train_tokenizer(seed: int, sentences: tuple[str, ...]) -> bytes:
    """A LLaMA-style sentencepiece model: BPE, byte fallback, digits one by one, no normalisation. Returns the `.model` file."""
    world = list(scenes("train", 3000, seed))
    stream = examples(world, seed, sentences)
    texts = [segment for _ in range(12_000) for example in [next(stream)] for segment in (example.before, *(t for t, _ in example.after))]
    texts = [text.removesuffix("###") for text in texts]  # the end symbol stays a piece of its own
    texts += list(sentences) * 20 + [part for chat in CHATS for part in chat] * 50
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
    """Soft tokens (B, 16, WIDTH) of what is truly in a scene, with noise: it stands where a vision tower and a projection will."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(MERGE * FEATURES, WIDTH)
        self.cell = nn.Linear(FEATURES, WIDTH)

    def forward(self, features_patch: torch.Tensor, features_cell: torch.Tensor, by_patch: torch.Tensor) -> torch.Tensor:
        patch = features_patch + 0.1 * torch.randn_like(features_patch)
        cell = features_cell + 0.1 * torch.randn_like(features_cell)
        return torch.where(by_patch[:, None, None], self.patch(patch.reshape(len(patch), IMAGE_TOKENS, -1)), self.cell(cell))


class Encoder:
    """Examples to ids: segments one by one, as the original tokenises them; soft tokens are marked by -1."""

    def __init__(self, model: bytes) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def segment(self, text: str) -> list[int]:
        stop = text.endswith("</s>")
        return self.pieces.encode(text.removesuffix("</s>")) + ([2] if stop else [])

    def __call__(self, example: Example, starts: int = 1) -> tuple[list[int], list[int], list[float]]:
        """Ids, labels and weights: an answer counts by the root of its length, so that short ones are heard.

        `starts`: start tokens, one as in the original's training or two as in its conversations.
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
    encoder: Encoder, world: list[Scene], sentences: tuple[str, ...], batch_size: int, seed: int, diet: str | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless padded batches of similar length: ids, labels, features by patch and cell, layout, rows with a scene."""
    stream = examples(world, seed, sentences, diet)
    rng = np.random.default_rng(seed)
    while True:
        group = [next(stream) for _ in range(MEGABATCH * batch_size)]
        encoded = sorted(((*encoder(e, 1 + int(rng.random() < 0.3)), e) for e in group), key=lambda row: len(row[0]))
        for start in rng.permutation(MEGABATCH) * batch_size:
            yield _collate(encoded[start : start + batch_size])


def _collate(rows: list[tuple[list[int], list[int], list[float], Example]]) -> dict[str, torch.Tensor]:
    length = max(len(row[0]) for row in rows)
    pad = lambda values, fill: torch.tensor([v + [fill] * (length - len(v)) for v in values])  # noqa: E731
    seen = [(row[3].scene, row[3].places) for row in rows if row[3].scene]
    pictured = [scene for scene, _ in seen if scene]
    return {
        "ids": pad([row[0] for row in rows], 0),
        "labels": pad([row[1] for row in rows], IGNORE),
        "weights": pad([row[2] for row in rows], 0.0),
        "patch": torch.from_numpy(as_features(dense_targets(pictured))),
        "cell": torch.from_numpy(as_features(cell_targets(pictured))),
        "by_patch": torch.tensor([places == "patch" for _, places in seen]),
    }


def language_loss(model: LlamaForCausalLM, oracle: Oracle, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Weighted mean cross-entropy of the learned tokens."""
    ids = batch["ids"]
    embeds = model.get_input_embeddings()(ids.clamp(min=0))
    soft = oracle(batch["patch"], batch["cell"], batch["by_patch"])
    embeds = embeds.masked_scatter((ids == -1)[..., None], soft.to(embeds.dtype))
    hidden = model.model(inputs_embeds=embeds).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    learned = labels != IGNORE
    weights = batch["weights"][:, 1:][learned]
    return (
        functional.cross_entropy(model.lm_head(hidden[learned]).float(), labels[learned], reduction="none") * weights
    ).sum() / weights.sum()


def train_language_model(
    sentences: tuple[str, ...], steps: tuple[int, int], batch_size: int = 64, seed: int = 2, count: int = 20_000
) -> tuple[LlamaForCausalLM, Oracle, bytes]:
    """Train on train scenes: `steps[0]` of everything, then one diet of lookups after the other, then `steps[1]` of everything."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed, sentences)
    model, oracle = build_language_model(), Oracle()
    courses = [(None, steps[0], 2.5e-3), *((diet, length, 1e-3) for diet, length in DIET_STEPS.items()), (None, steps[1], 1.2e-3)]
    for number, (diet, length, peak) in enumerate(courses):
        train_cycle(model, oracle, Encoder(tokenizer), sentences, length, batch_size, seed + 100 * number, count, diet, peak)
    return model.eval().requires_grad_(False), oracle, tokenizer


def train_cycle(
    model: LlamaForCausalLM,
    oracle: Oracle,
    encoder: Encoder,
    sentences: tuple[str, ...],
    steps: int,
    batch_size: int,
    seed: int,
    count: int,
    diet: str | None = None,
    peak: float = 2.5e-3,
    log_every: int = 50,
    after_log: Callable[[], None] = lambda: None,
) -> None:
    """One warm-up-and-decay cycle in place, the forward pass in bfloat16; prints the held-out loss as it goes."""
    stream = batches(encoder, list(scenes("train", count, seed)), sentences, batch_size, seed, diet)
    held = batches(encoder, list(scenes("validation", 500, seed)), sentences, batch_size, seed + 1, diet)
    held_batches = [next(held) for _ in range(8)]
    parameters = [*model.parameters(), *oracle.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.02, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak, total_steps=steps, pct_start=0.08)
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = language_loss(model, oracle, next(stream))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % log_every == 0:
            with torch.no_grad():
                held_loss = float(np.mean([language_loss(model, oracle, b).item() for b in held_batches]))
            print(f"language {step + 1}/{steps} loss {loss.item():.4f} held-out {held_loss:.4f}", flush=True)
            after_log()
