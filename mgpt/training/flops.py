"""FLOPs of training steps, as progress needs them, for MFU.

The rule: a multiplication and an addition are two. N weights cost 2N a token forward and 2N for the gradient of their inputs; trained ones
2N more. So the frozen language model costs 4N a token (gradients pass through it to the projection), not 6N; LoRA costs 6N; the frozen
tower and Q-Former cost 2N and are not counted where a cache stands in for them; the projection costs 4N an image token (nothing before it
wants a gradient); the head, and the last layer's feed-forward (`mgpt.models.last_layer`), 4N a supervised token. Attention is counted,
causal attention by half. Padding, recomputed activations, norms and embeddings are not. What the last layer of a packed row leaves out
beside (queries and their attention before the answers, `mgpt.models.tail`: 0.4 % of a 7B model) is counted all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mgpt.models.last_layer import feed_forward
from mgpt.training.batch import IGNORE, Batch
from mgpt.training.peaks import PEAK_FLOPS


@dataclass(frozen=True)
class StepFlops:
    """FLOPs by what they grow with: a token, a supervised token, an image that is encoded, an image that is projected, and a pair of
    tokens of one sample."""

    token: float
    supervised: float
    encoded: float
    projected: float
    pair: float

    @classmethod
    def of(cls, model: Any) -> StepFlops:
        """Counts the weights of a `MiniGPTForConditionalGeneration`."""
        text, vision = model.language_model, model.vision_tower
        head = model.get_output_embeddings().weight.numel()
        last = feed_forward(text.get_decoder())
        last_flops = 0 if last is None else _gradient_flops(last)
        sizes = text.config
        width = sizes.num_attention_heads * (
            getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
        )
        tokens = model.config.num_patches + 1
        tower = (
            2 * _matrices(vision) * tokens + 4 * tokens**2 * vision.config.hidden_size * vision.config.num_hidden_layers
        )
        queries = 0 if model.qformer is None else 2 * _matrices(model.qformer) * model.config.num_image_tokens
        return cls(
            token=_gradient_flops(text.get_decoder()) - last_flops,
            supervised=4 * head + last_flops,
            encoded=tower + queries,
            projected=4 * model.projection.weight.numel() * model.config.num_image_tokens,
            # Forward 4 a pair and width, halved by causality; the gradient twice that.
            pair=6 * width * sizes.num_hidden_layers,
        )

    def __call__(self, batches: Iterable[Batch]) -> float:
        """FLOPs of these batches. Reads tensors, so give batches that lie on the CPU."""
        return sum(
            self._of_batch(batch) for batch in batches if batch.ids
        )  # one without samples only keeps workers in step

    def _of_batch(self, batch: Batch) -> float:
        lengths = list(sample_lengths(batch))
        supervised = int((batch.tensors["labels"][:, 1:] != IGNORE).sum())
        encoded, cached = (len(batch.tensors.get(name, ())) for name in ("pixel_values", "image_features"))
        language = (
            self.token * sum(lengths) + self.pair * sum(length**2 for length in lengths) + self.supervised * supervised
        )
        return language + self.encoded * encoded + self.projected * (encoded + cached)


def sample_lengths(batch: Batch) -> Iterator[int]:
    """Tokens of each sample, padding left out."""
    if "segment_ids" not in batch.tensors:
        yield from batch.tensors["attention_mask"].sum(1).tolist()
        return
    for row in batch.tensors["segment_ids"]:
        yield from torch.bincount(row)[1:].tolist()


def peak_flops(device: torch.device) -> float | None:
    """bf16 FLOPs a second that a device is sold with; None for a CPU and for a GPU that is not known here."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks["bf16"] for part, peaks in PEAK_FLOPS.items() if part in name), None)


def _gradient_flops(module: nn.Module) -> int:
    """A token's, forward and backward: 4 a frozen weight, 6 a trained one."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return 4 * _matrices(module) + 2 * trained


def _matrices(module: nn.Module) -> int:
    """Weights that multiply tokens: linear layers', embeddings and norms left out. Quantised weights count as what they stand for."""
    linear: Sequence[Any] = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return sum(part.in_features * part.out_features for part in linear)
