"""Dimensions of a model, read from its backbones' configurations, and the parameter counts that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.config.models import LoraSettings

FEED_FORWARD_MODULES = ("gate_proj", "up_proj", "down_proj")
TOWERS, LANGUAGE_MODELS = ("blip_2_vision_model",), ("llama", "mistral")


@dataclass(frozen=True)
class VisionTower:
    """The frozen vision tower. `inner` is the feed-forward's width, `patch` and `image` are in pixels."""

    width: int
    inner: int
    layers: int
    heads: int
    patch: int
    image: int

    @property
    def patches(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """Patches and CLS."""
        return self.patches + 1

    @property
    def linear(self) -> int:
        """Parameters that every token is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def parameters(self) -> int:
        biases = self.layers * (4 * self.width + self.inner + self.width + 4 * self.width)
        embeddings = 3 * self.patch**2 * self.width + self.width + self.width + self.tokens * self.width
        return self.linear + biases + embeddings + 2 * self.width


@dataclass(frozen=True)
class QFormer:
    """The frozen Q-Former.

    Every `cross_every`-th layer, beginning with the first, also attends to the tower's tokens, of width `encoder`.
    """

    width: int
    inner: int
    layers: int
    cross_every: int
    encoder: int
    queries: int

    @property
    def cross_layers(self) -> int:
        return -(-self.layers // self.cross_every)

    @property
    def per_query(self) -> int:
        """Parameters that every query is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.inner) + self.cross_layers * 2 * self.width**2

    @property
    def per_token(self) -> int:
        """Parameters that every token of the tower is multiplied with."""
        return self.cross_layers * 2 * self.encoder * self.width

    @property
    def parameters(self) -> int:
        own = self.layers * (4 * self.width + 2 * self.width + self.inner + self.width + 2 * self.width)
        cross = self.cross_layers * (4 * self.width + 2 * self.width)
        return self.per_query + self.per_token + own + cross + 2 * self.width + self.queries * self.width


@dataclass(frozen=True)
class LanguageModel:
    """The frozen language model, of LLaMA's form.

    `head` is one head's width; `fused`: it trains with `mgpt.models.fused_llama`.
    """

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    tied: bool
    fused: bool

    def module_size(self, module: str) -> tuple[int, int]:
        """Returns (inputs, outputs) of a layer's linear module, named as in transformers.

        Raises:
            ValueError: there is no such module.
        """
        attention, keys = self.heads * self.head, self.key_heads * self.head
        sizes = {
            "q_proj": (self.width, attention),
            "k_proj": (self.width, keys),
            "v_proj": (self.width, keys),
            "o_proj": (attention, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }
        if module not in sizes:
            raise ValueError(
                f"lora.target_modules: {module!r} is not a linear module of this language model; "
                f"choose from {', '.join(sizes)}"
            )
        return sizes[module]

    @property
    def linear(self) -> int:
        """Parameters that every token is multiplied with, without the head."""
        attention = 2 * self.width * self.heads * self.head + 2 * self.width * self.key_heads * self.head
        return self.layers * (attention + self.feed_forward)

    @property
    def feed_forward(self) -> int:
        """Parameters of one layer's feed-forward part."""
        return 3 * self.width * self.inner

    @property
    def parameters(self) -> int:
        norms = self.layers * 2 * self.width + self.width
        return self.linear + norms + self.vocabulary * self.width * (1 if self.tied else 2)


@dataclass(frozen=True)
class ModelSizes:
    """A whole model: tower, Q-Former and language model are frozen, projection and LoRA trained."""

    tower: VisionTower
    language: LanguageModel
    qformer: QFormer | None
    merge: int
    lora: LoraSettings | None

    @property
    def image_tokens(self) -> int:
        """Positions that one image takes in a row."""
        return self.qformer.queries if self.qformer else self.tower.patches // self.merge

    @property
    def feature_width(self) -> int:
        """Width of the projection's input."""
        return self.qformer.width if self.qformer else self.tower.width * self.merge

    @property
    def projection(self) -> int:
        return self.feature_width * self.language.width + self.language.width

    @property
    def lora_parameters(self) -> int:
        return self.language.layers * self.lora_parameters_per_layer(self.lora.target_modules) if self.lora else 0

    def lora_parameters_per_layer(self, modules: tuple[str, ...]) -> int:
        """Returns LoRA's parameters on those of the given modules that have it, in one layer."""
        if self.lora is None:
            return 0
        return self.lora.r * sum(
            sum(self.language.module_size(module)) for module in self.lora.target_modules if module in modules
        )

    @property
    def trainable(self) -> int:
        return self.projection + self.lora_parameters

    @property
    def frozen(self) -> int:
        return self.tower.parameters + self.language.parameters + (self.qformer.parameters if self.qformer else 0)


def sizes_from_configs(
    configs: Mapping[str, Any], merge: int, lora: LoraSettings | None, image_size: int | None = None
) -> ModelSizes:
    """Builds sizes from the content of `config.json` files.

    Args:
        configs: `vision_config`, `text_config`, and with a Q-Former `qformer_config` and `num_query_tokens`.
        image_size: pixels, if not the tower's own.

    Raises:
        ValueError: an architecture whose arithmetic is not implemented here.
    """
    vision, text, qformer = configs["vision_config"], configs["text_config"], configs.get("qformer_config")
    _check_architecture("vision", vision, TOWERS)
    _check_architecture("language", text, LANGUAGE_MODELS)
    tower = VisionTower(
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["num_hidden_layers"],
        vision["num_attention_heads"],
        vision["patch_size"],
        image_size or vision["image_size"],
    )
    queries = _qformer(qformer, configs["num_query_tokens"]) if qformer else None
    return ModelSizes(tower, _language_model(text), queries, merge, lora)


def _language_model(text: Mapping[str, Any]) -> LanguageModel:
    heads, width = text["num_attention_heads"], text["hidden_size"]
    return LanguageModel(
        width,
        text["intermediate_size"],
        text["num_hidden_layers"],
        heads,
        text.get("num_key_value_heads") or heads,
        text.get("head_dim") or width // heads,
        text["vocab_size"],
        bool(text.get("tie_word_embeddings", False)),
        text["model_type"] == "llama" and text.get("hidden_act", "silu") == "silu",
    )


def _qformer(config: Mapping[str, Any], queries: int) -> QFormer:
    return QFormer(
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        config["cross_attention_frequency"],
        config["encoder_hidden_size"],
        queries,
    )


def _check_architecture(part: str, config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if config.get("model_type") not in known:
        raise ValueError(
            f"models.{part}: `mgpt plan` knows the sizes of {', '.join(known)}, not of {config.get('model_type')!r}; "
            "set models.MODEL.preset to the closest published model"
        )


def configs_from_folders(vision: Path, language: Path, qformer: Path | None) -> dict[str, Any]:
    """Reads the configurations of backbone folders, without their weights.

    Raises ValueError for a folder that has none.
    """
    configs = {"vision_config": _read_config(vision), "text_config": _read_config(language)}
    if qformer is None:
        return configs
    queries = _count_queries(qformer / "query_tokens.safetensors")
    return configs | {"qformer_config": _read_config(qformer), "num_query_tokens": queries}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder}/config.json: {error}; expected a backbone folder as `mgpt convert backbones` writes it"
        ) from error
    return content


def _count_queries(file: Path) -> int:
    """Reads the number of queries from a safetensors header: eight bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return int(header["query_tokens"]["shape"][1])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); write the backbone folder again") from error
