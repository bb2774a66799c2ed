"""FLOPs of a sample, and how they are counted.

A multiplication and an addition are two. N parameters cost 2N a token forward and 2N for the gradient of their inputs; trained ones 2N
more. So the frozen language model costs 4N a token (gradients pass through it to the projection), LoRA 6N, the frozen tower and Q-Former
2N, the projection 4N (nothing before it wants a gradient). Attention is counted, causal attention by half; embeddings and norms are not.
The head and the last layer's feed-forward cost 4N on supervised tokens alone. Recomputed activations cost 2N more; they are counted apart,
since they are no progress. It is the rule of `mgpt.training.flops`: a measured MFU may be put in here.
"""

from __future__ import annotations

from dataclasses import dataclass

from mgpt.planning.sizes import FORWARD, Language, QFormer, Sizes, Tower


@dataclass(frozen=True)
class Lengths:
    """A sample as tokens: `text` of prompt and answer, `supervised` of the answer with its end, `images` of one sample (0 to 1 on
    average). `longest` is the longest row's text, `longest_answer` what is supervised of it."""

    text: float
    supervised: float
    images: float
    longest: int
    longest_answer: int


@dataclass(frozen=True)
class Flops:
    """Of one sample, by part. `repeated` is the recomputation of activations."""

    tower: float
    qformer: float
    projection: float
    language: float
    head: float
    repeated: float

    @property
    def counted(self) -> float:
        """What progress needs: the numerator of MFU."""
        return self.tower + self.qformer + self.projection + self.language + self.head

    @property
    def executed(self) -> float:
        return self.counted + self.repeated


def training_flops(sizes: Sizes, lengths: Lengths, *, recomputed: bool = False, cached: bool = False) -> Flops:
    """FLOPs of one training sample.

    recomputed: the language model's activations are recomputed. cached: the frozen features come from a cache.
    """
    language, tokens = sizes.language, position_count(sizes, lengths)
    image_tokens = lengths.images * sizes.image_tokens
    causal, last = causal_flops(language, tokens), language.feed_forward
    adapters, last_adapters = sizes.adapters, sizes.adapters_of(FORWARD)
    return Flops(
        tower=0.0 if cached else lengths.images * tower_flops(sizes.tower),
        qformer=0.0
        if cached or sizes.qformer is None
        else lengths.images * qformer_flops(sizes.qformer, sizes.tower.tokens),
        projection=4 * image_tokens * sizes.projection,
        # Attention's gradient is twice its forward pass: both of its factors want one.
        language=tokens * (4 * (language.linear - last) + 6 * (adapters - last_adapters)) + 3 * causal,
        head=lengths.supervised * (4 * (language.vocabulary * language.width + last) + 6 * last_adapters),
        repeated=2 * tokens * (language.linear + adapters) + causal if recomputed else 0.0,
    )


def position_count(sizes: Sizes, lengths: Lengths) -> float:
    """Positions of a sample: text and image tokens."""
    return lengths.text + lengths.images * sizes.image_tokens


def causal_flops(language: Language, tokens: float) -> float:
    """Forward FLOPs of causal attention over a row: half of 4 L² a layer and attended width."""
    return 2 * tokens**2 * language.heads * language.head * language.layers


def tower_flops(tower: Tower) -> float:
    """Forward FLOPs of one image."""
    embedding = 2 * 3 * tower.patch**2 * tower.width * tower.patches
    return 2 * tower.linear * tower.tokens + 4 * tower.tokens**2 * tower.width * tower.layers + embedding


def qformer_flops(qformer: QFormer, tokens: int) -> float:
    """Forward FLOPs of one image's queries over `tokens` tokens of the tower."""
    own = 4 * qformer.queries**2 * qformer.width * qformer.layers
    cross = 4 * qformer.queries * tokens * qformer.width * qformer.cross_layers
    return 2 * qformer.on_queries * qformer.queries + 2 * qformer.on_tokens * tokens + own + cross


def prefill_flops(sizes: Sizes, tokens: float) -> float:
    """Forward FLOPs of one prompt with one image, in generation."""
    image = tower_flops(sizes.tower) + (qformer_flops(sizes.qformer, sizes.tower.tokens) if sizes.qformer else 0.0)
    body = tokens * 2 * (sizes.language.linear + sizes.adapters) + causal_flops(sizes.language, tokens)
    return image + 2 * sizes.image_tokens * sizes.projection + body
