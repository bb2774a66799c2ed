"""FLOPs of one sample, and the rule by which they are counted.

A multiply-add is two FLOPs. N parameters cost 2N per token in the forward pass, 2N for the gradient of their inputs,
and 2N more if they are trained:

- the frozen language model 4N per token (gradients pass through it to the projection), LoRA 6N,
- the frozen tower and Q-Former 2N, the projection 4N (nothing before it needs a gradient),
- the head and the last layer's feed-forward 4N on supervised tokens only,
- attention by its products, causal attention half of them; embeddings and norms nothing.

Recomputed activations cost 2N more and are counted separately, since they are no progress. `mgpt.training.flops` uses
the same rule, so a measured MFU can be planned with.
"""

from __future__ import annotations

from dataclasses import dataclass

from mgpt.planning.sizes import FEED_FORWARD_MODULES, LanguageModel, ModelSizes, QFormer, VisionTower


@dataclass(frozen=True)
class Lengths:
    """Token counts of a mixture's samples.

    Attributes:
        text: prompt and answer of the average sample.
        supervised: answer and end token of the average sample.
        images: images per sample (0 to 1 on average).
        longest: text of the longest row.
        longest_answer: supervised tokens of the longest row.
    """

    text: float
    supervised: float
    images: float
    longest: int
    longest_answer: int


@dataclass(frozen=True)
class Flops:
    """FLOPs of one sample by part; `recomputed` is the second forward pass of activation checkpointing."""

    tower: float
    qformer: float
    projection: float
    language: float
    head: float
    recomputed: float

    @property
    def counted(self) -> float:
        """The numerator of MFU: everything but recomputation."""
        return self.tower + self.qformer + self.projection + self.language + self.head

    @property
    def executed(self) -> float:
        return self.counted + self.recomputed


def training_flops(sizes: ModelSizes, lengths: Lengths, *, recompute: bool = False, cached: bool = False) -> Flops:
    """Counts the FLOPs of one training sample.

    Args:
        recompute: the language model's activations are recomputed in the backward pass.
        cached: the frozen image features come from the feature cache.
    """
    language, tokens = sizes.language, position_count(sizes, lengths)
    image_tokens = lengths.images * sizes.image_tokens
    attention, last = causal_attention_flops(language, tokens), language.feed_forward
    lora, last_lora = sizes.lora_parameters, sizes.lora_parameters_per_layer(FEED_FORWARD_MODULES)
    qformer = qformer_flops(sizes.qformer, sizes.tower.tokens) if sizes.qformer else 0.0
    return Flops(
        tower=0.0 if cached else lengths.images * tower_flops(sizes.tower),
        qformer=0.0 if cached else lengths.images * qformer,
        projection=4 * image_tokens * sizes.projection,
        # Attention's backward pass is twice its forward pass: both factors need a gradient.
        language=tokens * (4 * (language.linear - last) + 6 * (lora - last_lora)) + 3 * attention,
        head=lengths.supervised * (4 * (language.vocabulary * language.width + last) + 6 * last_lora),
        recomputed=2 * tokens * (language.linear + lora) + attention if recompute else 0.0,
    )


def position_count(sizes: ModelSizes, lengths: Lengths) -> float:
    """Positions of the average sample: text and image tokens."""
    return lengths.text + lengths.images * sizes.image_tokens


def causal_attention_flops(language: LanguageModel, tokens: float) -> float:
    """Forward FLOPs of causal attention over a row of L tokens: half of 4 L² per layer and attention width."""
    return 2 * tokens**2 * language.heads * language.head * language.layers


def tower_flops(tower: VisionTower) -> float:
    """Forward FLOPs of one image."""
    embedding = 2 * 3 * tower.patch**2 * tower.width * tower.patches
    return 2 * tower.linear * tower.tokens + 4 * tower.tokens**2 * tower.width * tower.layers + embedding


def qformer_flops(qformer: QFormer, tokens: int) -> float:
    """Forward FLOPs of one image's queries over `tokens` tokens of the tower."""
    own = 4 * qformer.queries**2 * qformer.width * qformer.layers
    cross = 4 * qformer.queries * tokens * qformer.width * qformer.cross_layers
    return 2 * qformer.per_query * qformer.queries + 2 * qformer.per_token * tokens + own + cross


def prefill_flops(sizes: ModelSizes, tokens: float) -> float:
    """Forward FLOPs of one prompt with one image, in generation."""
    image = tower_flops(sizes.tower) + (qformer_flops(sizes.qformer, sizes.tower.tokens) if sizes.qformer else 0.0)
    attention = causal_attention_flops(sizes.language, tokens)
    text = tokens * 2 * (sizes.language.linear + sizes.lora_parameters) + attention
    return image + 2 * sizes.image_tokens * sizes.projection + text
