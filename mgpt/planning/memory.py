"""Memory of one worker, by part, in bytes.

Activations are counted tensor by tensor, as training saves them for the backward pass: fused LLaMA layers
(`mgpt.models.fused_llama`), other language models as transformers and peft compute them, and our head. Frozen linear
layers save nothing of their inputs. The last layer saves its feed-forward at supervised positions only; with packed
rows it saves everything but keys and values at answer positions only (`mgpt.models.last_layer`).

`tests/integration/planning/test_memory.py` compares this with real steps on CPU,
`tests/unit/planning/test_gpu_memory.py` with measurements at full size; both agree within 10 %. What CUDA adds to
tensors is the accelerator's reserve and slack.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property

from mgpt.planning.accelerators import Accelerator
from mgpt.planning.sizes import FEED_FORWARD_MODULES, LanguageModel, ModelSizes, VisionTower

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "8bit": 1.0, "4bit": 0.56}  # 4bit: with the scales of its blocks
# The tensor that linear modules share as their input: the norm before attention, and the one before the feed-forward.
_SHARED_INPUT = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "gate_proj": "feed-forward",
    "up_proj": "feed-forward",
}
_KEY_VALUE_MODULES, _QUERY_MODULES = ("k_proj", "v_proj"), ("q_proj", "o_proj")
_WITHOUT_MASK = ("varlen", "flash_attention_2", "flash_attention_3", "flex_attention")
_TRAINED = 4  # trained weights, their gradients and moments are float32


@dataclass(frozen=True)
class BatchShape:
    """One forward pass: `rows` of `length` positions with `samples`, `supervised` positions and `images` in total."""

    rows: int
    length: int
    samples: int
    supervised: int
    images: int

    @property
    def positions(self) -> int:
        return self.rows * self.length

    @property
    def answer_positions(self) -> int:
        """Positions from the one before each sample's answer to its end."""
        return min(self.positions, self.supervised + self.samples)


@dataclass(frozen=True)
class Dtypes:
    """Number formats: of the frozen backbones, of the language model's quantization, and of the computation."""

    backbones: str = "fp32"
    quantization: str | None = None
    compute: str = "fp32"

    @property
    def product_bytes(self) -> float:
        """Bytes of an activation that a matrix product returns."""
        return 2.0 if self.compute == "bf16" else BYTES[self.backbones]

    @property
    def residual_bytes(self) -> float:
        """Bytes of a residual activation, which starts as the backbones' embeddings."""
        return BYTES[self.backbones]


@dataclass(frozen=True)
class StepOptions:
    """Options of a training step that change its memory.

    Attributes:
        attention: transformers' name of an implementation, or `varlen` for packed rows without a mask.
        recompute: the language model's activations are recomputed in the backward pass.
        features: number format of cached features that replace pixels; None without a cache.
        cuda: runs on a GPU.
    """

    attention: str = "sdpa"
    recompute: bool = False
    features: str | None = None
    cuda: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step.

    `activations` include the backward pass's temporaries, `logits` are the head's, `buffers` are pixels, features and
    the tower's working set.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float
    reserve: float = 0.0

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class _Moment:
    """Memory of one moment of a step, without weights, gradients and optimizer state."""

    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        return self.activations + self.logits + self.buffers


def training_memory(
    sizes: ModelSizes,
    batch: BatchShape,
    dtypes: Dtypes,
    options: StepOptions,
    *,
    shards: int = 1,
    device: Accelerator | None = None,
) -> Memory:
    """Computes a worker's memory at the peak of a training step.

    Args:
        shards: number of workers over which the frozen weights are split.
        device: adds its runtime's reserve and slack; None counts tensors only.
    """
    step = _Step(sizes, batch, dtypes, options)
    peak = max((step.encoding(), step.head(), step.backward()), key=lambda moment: moment.total)
    trained = float(sizes.trainable * _TRAINED)
    # Of split weights, one layer is gathered while it computes and the next one is being gathered.
    gathered = 2 * (sizes.language.linear / sizes.language.layers) * BYTES[dtypes.backbones] if shards > 1 else 0.0
    frozen = _frozen_bytes(sizes, dtypes) / shards + gathered
    memory = Memory(frozen + trained, trained, 2 * trained, peak.activations, peak.logits, peak.buffers)
    return memory if device is None else _with_reserve(memory, device)


def inference_memory(sizes: ModelSizes, rows: int, length: int, dtypes: Dtypes, device: Accelerator) -> Memory:
    """Computes a generating worker's memory: weights, KV cache of `rows` sequences of `length`, widest layer."""
    language, width = sizes.language, dtypes.product_bytes
    kv_cache = 2 * language.layers * rows * length * language.key_heads * language.head * width
    prompt = rows * length * (language.width + 3 * language.inner) * width
    working_set = max(_encoding_bytes(sizes.tower, rows, dtypes), prompt)
    weights = _frozen_bytes(sizes, dtypes) + sizes.trainable * _TRAINED
    return _with_reserve(Memory(weights, 0, 0, kv_cache, rows * language.vocabulary * 4.0, working_set), device)


def _with_reserve(memory: Memory, device: Accelerator) -> Memory:
    return replace(memory, reserve=device.reserve + device.slack * memory.total)


def _frozen_bytes(sizes: ModelSizes, dtypes: Dtypes) -> float:
    """The frozen backbones.

    Quantization covers the language model's linear layers; its embeddings and head keep the backbones' format.
    """
    linear = sizes.language.linear
    others = (sizes.frozen - linear) * BYTES[dtypes.backbones]
    return linear * BYTES[dtypes.quantization or dtypes.backbones] + others


def _encoding_bytes(tower: VisionTower, images: int, dtypes: Dtypes) -> float:
    """Pixels and the frozen tower's working set: its feed-forward or its attention, whichever is wider.

    Nothing of it is saved.
    """
    widest = max(4 * tower.width + 2 * tower.inner, 9 * tower.width)
    return _pixel_bytes(tower, images) + images * tower.tokens * widest * BYTES[dtypes.backbones]


def _pixel_bytes(tower: VisionTower, images: int) -> float:
    return images * 3 * tower.image**2 * 4.0


@dataclass(frozen=True)
class _Step:
    """The moments of a training step, any of which may be its peak."""

    sizes: ModelSizes
    batch: BatchShape
    dtypes: Dtypes
    options: StepOptions

    @property
    def language(self) -> LanguageModel:
        return self.sizes.language

    @property
    def prunes_last_layer(self) -> bool:
        """The last layer computes answer positions only."""
        return self.language.fused and self.options.attention == "varlen"

    @cached_property
    def last_positions(self) -> int:
        """Positions at which the last layer's feed-forward is computed."""
        if self.prunes_last_layer:
            return self.batch.answer_positions
        return self.batch.positions if self.options.recompute else self.batch.supervised

    # Moments

    def encoding(self) -> _Moment:
        """While the tower computes, before anything else exists."""
        cached = self.options.features is not None
        buffers = 0.0 if cached else _encoding_bytes(self.sizes.tower, self.batch.images, self.dtypes)
        return _Moment(0.0, 0.0, buffers)

    def head(self) -> _Moment:
        """At the loss: all saved activations, and the logits once in the compute format and twice in float32."""
        positions = self.batch.answer_positions if self.prunes_last_layer else self.batch.positions
        final_norm = positions * (self.language.width * self.norm_bytes + 4)
        width = self.dtypes.product_bytes
        logits = self.batch.supervised * self.language.vocabulary * (8.0 + (4.0 if width == 4 else 4.0 + width))
        return _Moment(self.saved() + final_norm, logits, self.inputs())

    def backward(self) -> _Moment:
        """In a feed-forward's backward pass: gradients of its three inner tensors and its output, a recomputed layer.

        The last layer has few positions there; the layer before it may hold more, although the last one is freed by
        then.
        """
        temporary = (self.language.width + 3 * self.language.inner) * self.dtypes.product_bytes
        if self.options.recompute:
            # A fused norm's input is the checkpointed activation itself.
            layer = self.layer_saved() - (self.residual() if self.language.fused else 0.0)
            return _Moment(self.saved() + layer + self.batch.positions * temporary, 0.0, self.inputs())
        last = self.saved() + self.last_positions * temporary
        before_last = self.saved() - self.last_layer_saved() + self.batch.positions * temporary
        return _Moment(max(last, before_last), 0.0, self.inputs())

    # Saved activations

    def saved(self) -> float:
        """Everything saved for the backward pass."""
        if self.options.recompute:
            return self.language.layers * self.residual()
        return (self.language.layers - 1) * self.layer_saved() + self.last_layer_saved() + self.autocast_copies()

    def residual(self) -> float:
        """The residual activation between two layers."""
        return self.batch.positions * self.language.width * self.dtypes.residual_bytes

    def layer_saved(self) -> float:
        return self.batch.positions * (self.key_value_saved() + self.query_saved() + self.feed_forward_saved())

    def last_layer_saved(self) -> float:
        """Queries and feed-forward at answer positions only, or the feed-forward at supervised positions only."""
        query_positions = self.batch.answer_positions if self.prunes_last_layer else self.batch.positions
        queries, feed_forward = self.query_saved(), self.feed_forward_saved()
        return (
            self.batch.positions * self.key_value_saved()
            + query_positions * queries
            + self.last_positions * feed_forward
        )

    @property
    def norm_bytes(self) -> float:
        """Bytes per element of a norm's saved input: the residual's format if fused, else transformers' float32."""
        return self.dtypes.residual_bytes if self.language.fused else 4.0

    @property
    def attention_bytes(self) -> float:
        """Bytes per element that attention saves. On CPU, `varlen` computes in float32."""
        return 4.0 if self.options.attention == "varlen" and not self.options.cuda else self.dtypes.product_bytes

    def key_value_saved(self) -> float:
        """Bytes per position: the first norm's input and its scale, keys and values."""
        language = self.language
        keys_and_values = 2 * language.key_heads * language.head * self.attention_bytes
        return language.width * self.norm_bytes + 4 + keys_and_values + self.lora_saved(_KEY_VALUE_MODULES)

    def query_saved(self) -> float:
        """Bytes per position: queries, attention output, log-sums, additive mask, the second norm's input and scale."""
        language = self.language
        attention = (2 * language.heads * language.head) * self.attention_bytes + language.heads * 4
        has_mask = self.options.attention not in _WITHOUT_MASK
        mask = self.batch.length * self.dtypes.product_bytes if has_mask else 0.0
        return attention + mask + language.width * self.norm_bytes + 4 + self.lora_saved(_QUERY_MODULES)

    def feed_forward_saved(self) -> float:
        """Bytes per position: gate and up, and the gate's activation in layers that are not fused."""
        tensors = 2 if self.language.fused else 3
        return tensors * self.language.inner * self.dtypes.product_bytes + self.lora_saved(FEED_FORWARD_MODULES)

    def lora_saved(self, modules: tuple[str, ...]) -> float:
        """Bytes per position that LoRA on the given modules saves: inputs, dropout masks, and low-rank products.

        Inputs are separate copies where dropout or a cast makes them, otherwise shared with everything that saves the
        same tensor.
        """
        lora = self.sizes.lora
        if lora is None:
            return 0.0
        chosen = [module for module in lora.target_modules if module in modules]
        width = self.dtypes.product_bytes
        cast = width != self.dtypes.residual_bytes if self.language.fused else width != 4
        copied = cast or lora.lora_dropout > 0
        inputs = {
            module if copied else _SHARED_INPUT.get(module, module): self.language.module_size(module)[0]
            for module in chosen
        }
        total = sum(inputs.values())
        shared = 0 if copied else sum(size for name, size in inputs.items() if self._is_saved_elsewhere(name, modules))
        masks = (1.0 if self.options.cuda else self.dtypes.residual_bytes) if lora.lora_dropout else 0.0
        return (total - shared) * width + total * masks + len(chosen) * lora.r * width

    def _is_saved_elsewhere(self, tensor: str, modules: tuple[str, ...]) -> bool:
        """Queries share their input with keys and values; fused layers save `o_proj`'s input as attention's output."""
        assert self.sizes.lora is not None
        if tensor == "attention":
            return modules == _QUERY_MODULES and bool(set(_KEY_VALUE_MODULES) & set(self.sizes.lora.target_modules))
        whole_output = self.options.cuda or self.options.attention != "varlen"
        return tensor == "o_proj" and self.language.fused and whole_output

    def autocast_copies(self) -> float:
        """Half-precision copies that autocast makes of LoRA's weights, and of the backbones' if they are float32."""
        if self.dtypes.compute != "bf16":
            return 0.0
        float32 = self.dtypes.backbones == "fp32" and self.dtypes.quantization is None
        return 2.0 * (self.sizes.lora_parameters + (self.language.linear if float32 else 0))

    def inputs(self) -> float:
        """Pixels or cached features, and the features that the projection saves."""
        values = self.batch.images * self.sizes.image_tokens * self.sizes.feature_width
        features = self.options.features
        given = _pixel_bytes(self.sizes.tower, self.batch.images) if features is None else values * BYTES[features]
        shared = features == "fp32" and self.dtypes.product_bytes == 4  # nothing is cast before the projection
        return given + (0.0 if shared else values * self.dtypes.product_bytes)
