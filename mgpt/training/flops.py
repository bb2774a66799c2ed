"""FLOPs of training steps, for MFU: work that training needs, not work that was executed.

A multiplication and an addition count as two. N weights cost 2N per token in the forward pass and 2N for the gradient
of their inputs; trained weights cost 2N more. So:
- the frozen language model costs 4N per token (gradients pass through it to the projection), LoRA 6N;
- the frozen tower and Q-Former cost 2N, and nothing where a cache replaces them;
- the projection costs 4N per image token (nothing before it needs a gradient);
- the head and the last layer's feed-forward part (`mgpt.models.last_layer`) cost 4N per supervised token.
Attention is counted, causal attention by half. Padding, recomputed activations, norms and embeddings are not. Queries
and attention that last-layer pruning leaves out of packed rows are counted all the same (0.4 % of a 7B model).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mgpt.models.last_layer import feed_forward
from mgpt.training.batch import IGNORE, Batch
from mgpt.training.types import PEAK_FLOPS


@dataclass(frozen=True)
class StepFlops:
    """FLOPs per token, supervised token, encoded image, projected image, and pair of tokens of one sample."""

    token: float
    supervised: float
    encoded: float
    projected: float
    pair: float

    @classmethod
    def of(cls, model: Any) -> StepFlops:
        """Counts the weights of a `MiniGPTForConditionalGeneration`."""
        text, vision, sizes = model.language_model, model.vision_tower, model.language_model.config
        last = feed_forward(text.get_decoder())
        last_flops = 0 if last is None else _gradient_flops(last)
        head_dim = getattr(sizes, "head_dim", None) or sizes.hidden_size // sizes.num_attention_heads
        width = sizes.num_attention_heads * head_dim
        tokens = model.config.num_patches + 1
        vision_attention = 4 * tokens**2 * vision.config.hidden_size * vision.config.num_hidden_layers
        tower = 2 * _matrix_weights(vision) * tokens + vision_attention
        queries = 0 if model.qformer is None else 2 * _matrix_weights(model.qformer) * model.config.num_image_tokens
        return cls(
            token=_gradient_flops(text.get_decoder()) - last_flops,
            supervised=4 * model.get_output_embeddings().weight.numel() + last_flops,
            encoded=tower + queries,
            projected=4 * model.projection.weight.numel() * model.config.num_image_tokens,
            # Forward: 4 per pair and width, halved by causality. Backward: twice that.
            pair=6 * width * sizes.num_hidden_layers,
        )

    def __call__(self, batches: Iterable[Batch]) -> float:
        """Returns the FLOPs of batches. Reads their tensors, which should be on the CPU."""
        return sum(self._of_batch(batch) for batch in batches if batch.ids)  # blank batches only keep workers aligned

    def _of_batch(self, batch: Batch) -> float:
        lengths = list(sample_lengths(batch))
        supervised = int((batch.tensors["labels"][:, 1:] != IGNORE).sum())
        encoded, cached = (len(batch.tensors.get(name, ())) for name in ("pixel_values", "image_features"))
        pairs = sum(length**2 for length in lengths)
        language = self.token * sum(lengths) + self.pair * pairs + self.supervised * supervised
        return language + self.encoded * encoded + self.projected * (encoded + cached)


def sample_lengths(batch: Batch) -> Iterator[int]:
    """Yields the tokens of each sample, without padding."""
    if "segment_ids" not in batch.tensors:
        yield from batch.tensors["attention_mask"].sum(1).tolist()
        return
    for row in batch.tensors["segment_ids"]:
        yield from torch.bincount(row)[1:].tolist()


def peak_flops(device: torch.device) -> float | None:
    """Returns a device's peak bf16 FLOP/s by its data sheet; None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks["bf16"] for part, peaks in PEAK_FLOPS.items() if part in name), None)


def _gradient_flops(module: nn.Module) -> int:
    """Returns the FLOPs of a token, forward and backward: 4 per frozen weight, 6 per trained one."""
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return 4 * _matrix_weights(module) + 2 * trained


def _matrix_weights(module: nn.Module) -> int:
    """Counts the weights of linear layers, quantised ones by their original size; embeddings and norms do not count."""
    linear: Sequence[Any] = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return sum(part.in_features * part.out_features for part in linear)
