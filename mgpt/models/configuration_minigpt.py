"""The configuration of a MiniGPT model: vision tower, Q-Former or token merge, language model and LoRA.

One class describes MiniGPT-4 (Q-Former), its LLaMA-2 variant and MiniGPT-v2 (token merge), on any vision tower and
causal language model of transformers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, AutoConfig, Blip2QFormerConfig, PreTrainedConfig

from mgpt.models.image_processing_minigpt import IMAGE_MEAN, IMAGE_STD
from mgpt.models.prompt_formats import PROMPT_FORMATS

BACKBONE_NAMES = ("vision", "qformer", "language")


@dataclass(frozen=True)
class BackboneReference:
    """The frozen backbone that a projection was trained on.

    Attributes:
        id: the publisher's name for it.
        revision: commit or tag, "" if none.
        sha256: `mgpt.models.backbones.backbone_hash` of its folder.
        uri: where it was read from; a location to try, never compared.
    """

    id: str
    revision: str
    sha256: str
    uri: str = ""


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank adapters on the language model; fields as in peft.

    MiniGPT-v2 has r=64, alpha=16 and dropout 0.05 on q_proj and v_proj (minigpt_v2.py:40-43).
    """

    r: int
    lora_alpha: int
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "v_proj")

    @classmethod
    def of(cls, value: Any) -> LoraSpec | None:
        """Converts a LoraSpec, a mapping, an object with these attributes (settings), or None.

        Raises ValueError for values that peft cannot use.
        """
        if value is None or isinstance(value, cls):
            return value
        read = value.get if isinstance(value, dict) else lambda name, default=None: getattr(value, name, default)
        spec = cls(
            int(read("r", 0) or 0),
            int(read("lora_alpha", 0) or 0),
            float(read("lora_dropout", 0.0) or 0.0),
            tuple(read("target_modules", ("q_proj", "v_proj"))),
        )
        if spec.r < 1 or spec.lora_alpha < 1 or not 0 <= spec.lora_dropout < 1 or not spec.target_modules:
            raise ValueError(
                f"lora: {asdict(spec)} is not usable: r and lora_alpha must be at least 1, "
                "lora_dropout in [0, 1), target_modules not empty"
            )
        return spec


class MiniGPTConfig(PreTrainedConfig):
    """Configuration of `MiniGPTForConditionalGeneration`.

    Args:
        vision_config, text_config: configurations (or dicts with a `model_type`) of the tower and the language model.
        qformer_config: of the Q-Former, or None for the token merge.
        num_query_tokens: the Q-Former's learned queries.
        merge: consecutive vision tokens in one image token (minigpt_v2.py:83-85); 1 keeps them.
        lora: see `LoraSpec`.
        prompt_format: the processor's default, a key of `PROMPT_FORMATS`.
        image_token_id: the placeholder in input_ids; by default the first id outside the embedding table, which no
            text has.
        image_mean, image_std: of the tower's pixels; by default CLIP's, which the original's tower has.
        backbones: `BackboneReference` as a dict, by name; a trained projection refuses backbones with other hashes.

    Raises ValueError when the parts do not fit together.
    """

    model_type = "minigpt"
    vision_config: Any
    qformer_config: Any
    text_config: Any
    sub_configs: ClassVar[dict[str, type]] = {
        "vision_config": AutoConfig,
        "qformer_config": Blip2QFormerConfig,
        "text_config": AutoConfig,
    }

    def __init__(
        self,
        vision_config: Any = None,
        text_config: Any = None,
        qformer_config: Any = None,
        *,
        num_query_tokens: int = 32,
        merge: int = 4,
        lora: Any = None,
        prompt_format: str = "minigpt-v2",
        image_token_id: int | None = None,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        backbones: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _sub_config(vision_config, "blip_2_vision_model")
        self.text_config = _sub_config(text_config, "llama")
        self.qformer_config = None if qformer_config is None else _sub_config(qformer_config, "blip_2_qformer")
        self.num_query_tokens = num_query_tokens
        self.merge = merge
        spec = LoraSpec.of(lora)
        self.lora = None if spec is None else asdict(spec)
        self.prompt_format = prompt_format
        self.image_token_id = self.text_config.vocab_size if image_token_id is None else image_token_id
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.backbones = {
            name: asdict(entry) if isinstance(entry, BackboneReference) else dict(entry)
            for name, entry in (backbones or {}).items()
        }
        kwargs.setdefault("tie_word_embeddings", bool(getattr(self.text_config, "tie_word_embeddings", False)))
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        if self.prompt_format not in PROMPT_FORMATS:
            raise ValueError(
                f"prompt_format: {self.prompt_format!r} is unknown; choose one of {', '.join(PROMPT_FORMATS)}"
            )
        if self.qformer_config is None and (self.merge < 1 or self.num_patches % self.merge):
            raise ValueError(
                f"merge: {self.merge} does not divide the tower's {self.num_patches} patches "
                f"(image_size {self.image_size}, patch_size {_side(self.vision_config.patch_size)}); choose a divisor"
            )
        if (
            self.qformer_config is not None
            and self.qformer_config.encoder_hidden_size != self.vision_config.hidden_size
        ):
            raise ValueError(
                f"qformer_config.encoder_hidden_size: {self.qformer_config.encoder_hidden_size} must equal "
                f"vision_config.hidden_size, {self.vision_config.hidden_size}; these backbones do not fit"
            )

    @property
    def image_size(self) -> int:
        """Side of the square input image, in pixels."""
        return _side(self.vision_config.image_size)

    @property
    def num_patches(self) -> int:
        """Vision tokens of one image, without CLS or register tokens."""
        return (self.image_size // _side(self.vision_config.patch_size)) ** 2

    @property
    def num_image_tokens(self) -> int:
        """Number of `image_token_id` placeholders per image in input_ids."""
        return self.num_query_tokens if self.qformer_config is not None else self.num_patches // self.merge

    @property
    def projection_inputs(self) -> int:
        """Width of the projection's input."""
        return (
            self.qformer_config.hidden_size
            if self.qformer_config is not None
            else self.vision_config.hidden_size * self.merge
        )

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.text_config.hidden_size

    def get_text_config(self, *_: Any, **__: Any) -> PreTrainedConfig:
        """Returns the language model's configuration, where transformers looks for sizes."""
        return self.text_config


def _side(value: Any) -> int:
    return int(value[0]) if isinstance(value, (list, tuple)) else int(value)


def _sub_config(value: Any, default_type: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        # A copy: transformers passes an attention implementation on to sub-configurations, and a loaded backbone has
        # its own.
        return copy.deepcopy(value)
    value = dict(value or {})
    kind = value.pop("model_type", default_type)
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"model_type: {kind!r} is not an architecture of the installed transformers")
    return CONFIG_MAPPING[kind](**value)
