"""Memory of one training worker, by part, in bytes.

What the backward pass keeps is counted tensor by tensor, as transformers' LLaMA under SDPA with a mask, peft's LoRA and our head keep them:
frozen linear layers keep nothing of their inputs, norms keep theirs in float32, the head keeps the log-probabilities of supervised tokens.
`tests/plan/test_memory.py` holds this to real steps on CPU, within 10 %. What CUDA adds is the accelerator's reserve and slack.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from mgpt.plan.accelerators import Accelerator
from mgpt.plan.sizes import Sizes, Tower

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "8bit": 1.0, "4bit": 0.56}  # 4bit: with the scales of its blocks
# Linear modules that read one tensor: the norm before attention, and the one before the feed-forward.
_READ = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "feed-forward", "up_proj": "feed-forward"}
_TRAINED = 4  # trained weights, their gradients and moments are float32


@dataclass(frozen=True)
class Rows:
    """What one forward pass sees: `rows` of `length` positions, `supervised` of them in all, and `images`."""

    rows: int
    length: int
    supervised: int
    images: int

    @property
    def positions(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Kinds:
    """How numbers are held: the frozen bases' type, the language model's quantization, and that of the computation."""

    bases: str = "fp32"
    quantization: str | None = None
    computed: str = "fp32"

    @property
    def width(self) -> float:
        """Bytes of an activation."""
        return 2.0 if self.computed == "bf16" else BYTES[self.bases]


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment of a step. `activations` are those kept for the backward pass with its temporaries, `logits` the
    head's, `buffers` pixels, features and the tower's working set."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    buffers: float
    reserve: float = 0.0

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class _Moment:
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        return self.activations + self.logits + self.buffers


def training_memory(
    sizes: Sizes, rows: Rows, kinds: Kinds, *, recomputed: bool = False, shards: int = 1, device: Accelerator | None = None
) -> Memory:
    """Memory of a worker at its fullest.

    recomputed: the language model's activations are. shards: over how many workers the frozen weights are spread. device: None for what
    tensors alone take.
    """
    moments = (_encode(sizes.tower, rows, kinds), _head(sizes, rows, kinds, recomputed), _layer(sizes, rows, kinds, recomputed))
    fullest = max(moments, key=lambda moment: moment.total)
    trained = float(sizes.trainable * _TRAINED)
    # Of split weights one layer is whole while it works, and the next one on its way.
    whole_layers = 2 * (sizes.language.linear / sizes.language.layers) * BYTES[kinds.bases] if shards > 1 else 0.0
    frozen = _weights(sizes, kinds) / shards + whole_layers
    whole = Memory(frozen + trained, trained, 2 * trained, fullest.activations, fullest.logits, fullest.buffers)
    return whole if device is None else replace(whole, reserve=device.reserve + device.slack * whole.total)


def inference_memory(sizes: Sizes, rows: int, length: int, kinds: Kinds, device: Accelerator) -> Memory:
    """Memory of a worker that generates: weights, the keys and values of `rows` sequences of `length`, and the prompt's widest layer."""
    language = sizes.language
    cache = 2 * language.layers * rows * length * language.key_heads * language.head * kinds.width
    prompt = rows * length * (language.width + 3 * language.inner) * kinds.width
    moment = max(_encode(sizes.tower, Rows(rows, length, 0, rows), kinds).total, prompt)
    whole = Memory(_weights(sizes, kinds) + sizes.trainable * _TRAINED, 0, 0, cache, rows * language.vocabulary * 4.0, moment)
    return replace(whole, reserve=device.reserve + device.slack * whole.total)


def _weights(sizes: Sizes, kinds: Kinds) -> float:
    """The frozen bases. Quantization is of the language model's linear layers; its embeddings and head keep the bases' type."""
    linear = sizes.language.linear
    return linear * BYTES[kinds.quantization or kinds.bases] + (sizes.frozen - linear) * BYTES[kinds.bases]


def _encode(tower: Tower, rows: Rows, kinds: Kinds) -> _Moment:
    """While the frozen tower works: its feed-forward layer or its attention, whichever is wider. Nothing of it is kept."""
    widest = max(4 * tower.width + 2 * tower.inner, 9 * tower.width)
    return _Moment(0.0, 0.0, _pixels(tower, rows) + rows.images * tower.tokens * widest * BYTES[kinds.bases])


def _head(sizes: Sizes, rows: Rows, kinds: Kinds, recomputed: bool) -> _Moment:
    """When the loss is computed: everything is kept, and the logits stand there in the computed type and twice in float32."""
    final = rows.positions * (sizes.language.width + 1) * 4.0  # the last norm's input
    logits = rows.supervised * sizes.language.vocabulary * (8.0 + (4.0 if kinds.width == 4 else 4.0 + kinds.width))
    return _Moment(_kept(sizes, rows, kinds, recomputed) + final, logits, _fed(sizes, rows, kinds))


def _layer(sizes: Sizes, rows: Rows, kinds: Kinds, recomputed: bool) -> _Moment:
    """In the backward pass of a feed-forward: gradients of its three inner tensors and of its output, and the layer itself where it is
    recomputed. The last layer's is of supervised positions alone; then the one before it is fuller, though the last is gone."""
    temporary = (sizes.language.width + 3 * sizes.language.inner) * kinds.width
    kept, fed = _kept(sizes, rows, kinds, recomputed), _fed(sizes, rows, kinds)
    if recomputed:
        return _Moment(kept + _kept_by_layer(sizes, rows, kinds) + rows.positions * temporary, 0.0, fed)
    last = kept + rows.supervised * temporary
    before = kept - _kept_by_layer(sizes, rows, kinds) + _unread(sizes, rows, kinds) + rows.positions * temporary
    return _Moment(max(last, before), 0.0, fed)


def _kept(sizes: Sizes, rows: Rows, kinds: Kinds, recomputed: bool) -> float:
    language = sizes.language
    if recomputed:
        return language.layers * rows.positions * language.width * kinds.width
    return language.layers * _kept_by_layer(sizes, rows, kinds) - _unread(sizes, rows, kinds) + _converted(sizes, kinds)


def _unread(sizes: Sizes, rows: Rows, kinds: Kinds) -> float:
    """What the last layer's feed-forward does not keep, since it is computed at supervised positions alone."""
    return (rows.positions - rows.supervised) * 3 * sizes.language.inner * kinds.width


def _kept_by_layer(sizes: Sizes, rows: Rows, kinds: Kinds) -> float:
    """What one layer keeps: gate, its activation and up; queries, keys, values and attended; two norms' inputs; the mask as added."""
    language = sizes.language
    attended = 2 * language.heads * language.head + 2 * language.key_heads * language.head
    position = (3 * language.inner + attended + rows.length) * kinds.width + (2 * language.width + language.heads + 2) * 4
    return rows.positions * (position + _kept_by_lora(sizes, kinds))


def _kept_by_lora(sizes: Sizes, kinds: Kinds) -> float:
    """Bytes a position and layer: the inputs, cast for each module in half precision, else shared by those that read the same tensor;
    the low rank; dropout's masks."""
    if sizes.lora is None:
        return 0.0
    modules = sizes.lora.target_modules
    inputs = {module: sizes.language.outputs(module)[0] for module in modules}
    dropout = sizes.lora.lora_dropout > 0
    tensors = inputs if kinds.width != 4 or dropout else {_READ.get(module, module): inputs[module] for module in modules}
    masks = sum(inputs.values()) if dropout else 0
    return sum(tensors.values()) * kinds.width + masks + len(modules) * sizes.lora.r * kinds.width


def _converted(sizes: Sizes, kinds: Kinds) -> float:
    """Under autocast each float32 weight that is used is kept once more in half precision: LoRA's, and bases' that are float32."""
    if kinds.computed != "bf16":
        return 0.0
    frozen = sizes.language.linear if kinds.bases == "fp32" and kinds.quantization is None else 0
    return 2.0 * (sizes.adapters + frozen)


def _pixels(tower: Tower, rows: Rows) -> float:
    return rows.images * 3 * tower.image**2 * 4.0


def _fed(sizes: Sizes, rows: Rows, kinds: Kinds) -> float:
    """Pixels, and the features that the projection keeps."""
    return _pixels(sizes.tower, rows) + rows.images * sizes.image_tokens * sizes.feature_width * kinds.width
