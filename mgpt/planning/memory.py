"""Memory of one training worker, by part, in bytes.

What the backward pass keeps is counted tensor by tensor, as training keeps it: LLaMA in its lean form (`mgpt.models.fused_llama`), another language
model as transformers and peft have it, and our head. Frozen linear layers keep nothing of their inputs; the last layer keeps its
feed-forward at supervised positions alone, or all that follows its keys and values at the samples' tails alone (`mgpt.models.tail`).
`tests/integration/planning/test_memory.py` holds this to real steps on CPU, `test_gpu_memory.py` to measurements at full size, both within 10 %. What CUDA
adds beside tensors is the accelerator's reserve and slack.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property

from mgpt.planning.accelerators import Accelerator
from mgpt.planning.sizes import FORWARD, Language, Sizes, Tower

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "8bit": 1.0, "4bit": 0.56}  # 4bit: with the scales of its blocks
# Linear modules that read one tensor: the norm before attention, and the one before the feed-forward.
_READ = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "gate_proj": "feed-forward",
    "up_proj": "feed-forward",
}
_KNOWN, _ASKED = ("k_proj", "v_proj"), ("q_proj", "o_proj")
_UNMASKED = ("varlen", "flash_attention_2", "flash_attention_3", "flex_attention")
_TRAINED = 4  # trained weights, their gradients and moments are float32


@dataclass(frozen=True)
class Rows:
    """What one forward pass sees: `rows` of `length` positions, which hold `samples` with `supervised` positions and `images` in all."""

    rows: int
    length: int
    samples: int
    supervised: int
    images: int

    @property
    def positions(self) -> int:
        return self.rows * self.length

    @property
    def tails(self) -> int:
        """Positions from the one before each sample's answer to its end."""
        return min(self.positions, self.supervised + self.samples)


@dataclass(frozen=True)
class Kinds:
    """How numbers are held: the frozen backbones' type, the language model's quantization, and that of the computation."""

    backbones: str = "fp32"
    quantization: str | None = None
    computed: str = "fp32"

    @property
    def width(self) -> float:
        """Bytes of an activation that a product made."""
        return 2.0 if self.computed == "bf16" else BYTES[self.backbones]

    @property
    def stream(self) -> float:
        """Bytes of what goes from layer to layer, a sum that began with the backbones' embeddings."""
        return BYTES[self.backbones]


@dataclass(frozen=True)
class Way:
    """How a step is made. attention: transformers' name, or `varlen` of packed rows. recomputed: the language model's activations are.
    features: the type of features that a cache gives in place of pixels, None without a cache. cuda: on a GPU."""

    attention: str = "sdpa"
    recomputed: bool = False
    features: str | None = None
    cuda: bool = True


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
    sizes: Sizes, rows: Rows, kinds: Kinds, way: Way, *, shards: int = 1, device: Accelerator | None = None
) -> Memory:
    """Memory of a worker at its fullest.

    shards: over how many workers the frozen weights are spread. device: None for what tensors alone take.
    """
    step = _Step(sizes, rows, kinds, way)
    fullest = max((step.encode(), step.head(), step.layer()), key=lambda moment: moment.total)
    trained = float(sizes.trainable * _TRAINED)
    # Of split weights one layer is whole while it works, and the next one on its way.
    whole_layers = 2 * (sizes.language.linear / sizes.language.layers) * BYTES[kinds.backbones] if shards > 1 else 0.0
    frozen = _weights(sizes, kinds) / shards + whole_layers
    whole = Memory(frozen + trained, trained, 2 * trained, fullest.activations, fullest.logits, fullest.buffers)
    return whole if device is None else replace(whole, reserve=device.reserve + device.slack * whole.total)


def inference_memory(sizes: Sizes, rows: int, length: int, kinds: Kinds, device: Accelerator) -> Memory:
    """Memory of a worker that generates: weights, the keys and values of `rows` sequences of `length`, and the prompt's widest layer."""
    language = sizes.language
    cache = 2 * language.layers * rows * length * language.key_heads * language.head * kinds.width
    prompt = rows * length * (language.width + 3 * language.inner) * kinds.width
    moment = max(_encoding(sizes.tower, rows, kinds), prompt)
    whole = Memory(
        _weights(sizes, kinds) + sizes.trainable * _TRAINED, 0, 0, cache, rows * language.vocabulary * 4.0, moment
    )
    return replace(whole, reserve=device.reserve + device.slack * whole.total)


def _weights(sizes: Sizes, kinds: Kinds) -> float:
    """The frozen backbones. Quantization is of the language model's linear layers; its embeddings and head keep the backbones' type."""
    linear = sizes.language.linear
    return linear * BYTES[kinds.quantization or kinds.backbones] + (sizes.frozen - linear) * BYTES[kinds.backbones]


def _encoding(tower: Tower, images: int, kinds: Kinds) -> float:
    """While the frozen tower works: its feed-forward layer or its attention, whichever is wider. Nothing of it is kept."""
    widest = max(4 * tower.width + 2 * tower.inner, 9 * tower.width)
    return _pixels(tower, images) + images * tower.tokens * widest * BYTES[kinds.backbones]


def _pixels(tower: Tower, images: int) -> float:
    return images * 3 * tower.image**2 * 4.0


@dataclass(frozen=True)
class _Step:
    """A step's moments, any of which may be the fullest."""

    sizes: Sizes
    rows: Rows
    kinds: Kinds
    way: Way

    @property
    def language(self) -> Language:
        return self.sizes.language

    @cached_property
    def answered(self) -> int:
        """Positions at which the last layer's feed-forward is computed."""
        if self.has_tails:
            return self.rows.tails
        return self.rows.positions if self.way.recomputed else self.rows.supervised

    @property
    def has_tails(self) -> bool:
        """Whether the last layer computes tails alone."""
        return self.language.lean and self.way.attention == "varlen"

    # Moments

    def encode(self) -> _Moment:
        """While the tower works, before there is anything else."""
        return _Moment(
            0.0, 0.0, _encoding(self.sizes.tower, self.rows.images, self.kinds) if self.way.features is None else 0.0
        )

    def head(self) -> _Moment:
        """When the loss is computed: everything is kept, and the logits stand there in the computed type and twice in float32."""
        final = (self.rows.tails if self.has_tails else self.rows.positions) * (self.language.width * self.norm + 4)
        width = self.kinds.width
        logits = self.rows.supervised * self.language.vocabulary * (8.0 + (4.0 if width == 4 else 4.0 + width))
        return _Moment(self.kept() + final, logits, self.fed())

    def layer(self) -> _Moment:
        """In the backward pass of a feed-forward: gradients of its three inner tensors and of its output, and the layer itself where it is
        recomputed. The last layer has few positions there; then the one before it is fuller, though the last is gone."""
        temporary = (self.language.width + 3 * self.language.inner) * self.kinds.width
        if self.way.recomputed:
            again = self.layer_kept() - (
                self.stream() if self.language.lean else 0.0
            )  # a lean norm's input is what was kept
            return _Moment(self.kept() + again + self.rows.positions * temporary, 0.0, self.fed())
        last = self.kept() + self.answered * temporary
        before = self.kept() - self.last_kept() + self.rows.positions * temporary
        return _Moment(max(last, before), 0.0, self.fed())

    # What is kept

    def kept(self) -> float:
        if self.way.recomputed:
            return self.language.layers * self.stream()
        return (self.language.layers - 1) * self.layer_kept() + self.last_kept() + self.converted()

    def stream(self) -> float:
        """What goes from one layer to the next."""
        return self.rows.positions * self.language.width * self.kinds.stream

    def layer_kept(self) -> float:
        return self.rows.positions * (self.known() + self.asked() + self.forward())

    def last_kept(self) -> float:
        """All but keys and values at tails alone, or the feed-forward at supervised positions alone."""
        asking = self.rows.tails if self.has_tails else self.rows.positions
        return self.rows.positions * self.known() + asking * self.asked() + self.answered * self.forward()

    @property
    def norm(self) -> float:
        """Bytes of a norm's input as it is kept: its own type, or transformers' float32."""
        return self.kinds.stream if self.language.lean else 4.0

    @property
    def mixed(self) -> float:
        """Bytes of what attention keeps. `varlen` computes in float32 where it is not flash attention in half precision."""
        return 4.0 if self.way.attention == "varlen" and not self.way.cuda else self.kinds.width

    def known(self) -> float:
        """Bytes a position: the first norm's input and its length, keys and values."""
        language = self.language
        return (
            language.width * self.norm + 4 + 2 * language.key_heads * language.head * self.mixed + self.adapted(_KNOWN)
        )

    def asked(self) -> float:
        """Bytes a position: queries, what they attended to and its log-sums, the mask as added, the second norm's input and its length."""
        language = self.language
        attended = (2 * language.heads * language.head) * self.mixed + language.heads * 4
        mask = 0.0 if self.way.attention in _UNMASKED else self.rows.length * self.kinds.width
        return attended + mask + language.width * self.norm + 4 + self.adapted(_ASKED)

    def forward(self) -> float:
        """Bytes a position: gate and up, and the gate's activation where the layer is not lean."""
        return (2 if self.language.lean else 3) * self.language.inner * self.kinds.width + self.adapted(FORWARD)

    def adapted(self, modules: tuple[str, ...]) -> float:
        """Bytes a position that LoRA on some modules keeps: their inputs, each module's own where they are dropped out or cast, else shared
        by all that keep the same tensor; dropout's masks; the low rank."""
        lora = self.sizes.lora
        if lora is None:
            return 0.0
        chosen = [module for module in lora.target_modules if module in modules]
        cast = self.kinds.width != self.kinds.stream if self.language.lean else self.kinds.width != 4
        own = cast or lora.lora_dropout > 0
        inputs = {module if own else _READ.get(module, module): self.language.outputs(module)[0] for module in chosen}
        kept = 0 if own else sum(size for name, size in inputs.items() if self.is_kept_elsewhere(name, modules))
        masks = (1.0 if self.way.cuda else self.kinds.stream) if lora.lora_dropout else 0.0
        width = self.kinds.width
        return (sum(inputs.values()) - kept) * width + sum(inputs.values()) * masks + len(chosen) * lora.r * width

    def is_kept_elsewhere(self, tensor: str, modules: tuple[str, ...]) -> bool:
        """Queries read what keys and values read; `o_proj` reads what attention keeps, where that is not in samples' own parts."""
        assert self.sizes.lora is not None
        if tensor == "attention":
            return modules == _ASKED and bool(set(_KNOWN) & set(self.sizes.lora.target_modules))
        return tensor == "o_proj" and self.language.lean and (self.way.cuda or self.way.attention != "varlen")

    def converted(self) -> float:
        """Under autocast each float32 weight that is used is kept once more in half precision: LoRA's, and backbones' that are float32."""
        if self.kinds.computed != "bf16":
            return 0.0
        frozen = self.language.linear if self.kinds.backbones == "fp32" and self.kinds.quantization is None else 0
        return 2.0 * (self.sizes.adapters + frozen)

    def fed(self) -> float:
        """Pixels or cached features, and the features that the projection keeps."""
        values = self.rows.images * self.sizes.image_tokens * self.sizes.feature_width
        given = (
            _pixels(self.sizes.tower, self.rows.images)
            if self.way.features is None
            else values * BYTES[self.way.features]
        )
        shared = self.way.features == "fp32" and self.kinds.width == 4  # nothing is cast on the way to the projection
        return given + (0.0 if shared else values * self.kinds.width)
