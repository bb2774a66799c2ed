"""Sizes of a model from its backbones' configurations, and the parameters that follow from them.

Letters: D width, I inner width of the feed-forward layer, T tokens of the tower (CLS included), Q queries, L positions of a row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt.config.models import LoraSettings

FORWARD = ("gate_proj", "up_proj", "down_proj")  # the linear modules of a feed-forward part
TOWERS, LANGUAGES = ("blip_2_vision_model",), ("llama", "mistral")


@dataclass(frozen=True)
class Tower:
    """The frozen vision tower."""

    width: int
    inner: int
    layers: int
    heads: int
    patch: int
    image: int

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image // self.patch) ** 2

    @property
    def tokens(self) -> int:
        """T: patches and CLS."""
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
    """The frozen Q-Former. `every`: each so-many-th layer, the first included, attends to the tower's tokens too."""

    width: int
    inner: int
    layers: int
    every: int
    encoder: int
    queries: int

    @property
    def cross_layers(self) -> int:
        return -(-self.layers // self.every)

    @property
    def on_queries(self) -> int:
        """Parameters that every query is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.inner) + self.cross_layers * 2 * self.width**2

    @property
    def on_tokens(self) -> int:
        """Parameters that every token of the tower is multiplied with."""
        return self.cross_layers * 2 * self.encoder * self.width

    @property
    def parameters(self) -> int:
        own = self.layers * (4 * self.width + 2 * self.width + self.inner + self.width + 2 * self.width)
        cross = self.cross_layers * (4 * self.width + 2 * self.width)
        return self.on_queries + self.on_tokens + own + cross + 2 * self.width + self.queries * self.width


@dataclass(frozen=True)
class Language:
    """The frozen language model, of LLaMA's form. `lean`: it trains in the form that `mgpt.models.fused_llama` gives to LLaMA itself."""

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    tied: bool
    lean: bool

    def outputs(self, module: str) -> tuple[int, int]:
        """(inputs, outputs) of a linear module of a layer, by its name in transformers. Raises ValueError for another name."""
        attended, keys = self.heads * self.head, self.key_heads * self.head
        sizes = {
            "q_proj": (self.width, attended),
            "k_proj": (self.width, keys),
            "v_proj": (self.width, keys),
            "o_proj": (attended, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }
        if module not in sizes:
            raise ValueError(
                f"lora.target_modules: {module!r} is no linear module of this language model; choose of {', '.join(sizes)}"
            )
        return sizes[module]

    @property
    def linear(self) -> int:
        """Parameters that every token is multiplied with, the head apart."""
        attention = 2 * self.width * self.heads * self.head + 2 * self.width * self.key_heads * self.head
        return self.layers * (attention + self.feed_forward)

    @property
    def feed_forward(self) -> int:
        """Those of one layer's feed-forward part."""
        return 3 * self.width * self.inner

    @property
    def parameters(self) -> int:
        norms = self.layers * 2 * self.width + self.width
        return self.linear + norms + self.vocabulary * self.width * (1 if self.tied else 2)


@dataclass(frozen=True)
class Sizes:
    """A whole model. Frozen: tower, Q-Former, language model; trained: projection and LoRA."""

    tower: Tower
    language: Language
    qformer: QFormer | None
    merge: int
    lora: LoraSettings | None

    @property
    def image_tokens(self) -> int:
        """Positions that one image takes in a row."""
        return self.qformer.queries if self.qformer else self.tower.patches // self.merge

    @property
    def feature_width(self) -> int:
        """What the projection reads for one image token."""
        return self.qformer.width if self.qformer else self.tower.width * self.merge

    @property
    def projection(self) -> int:
        return self.feature_width * self.language.width + self.language.width

    @property
    def adapters(self) -> int:
        """Parameters of LoRA."""
        return self.language.layers * self.adapters_of(self.lora.target_modules) if self.lora else 0

    def adapters_of(self, modules: tuple[str, ...]) -> int:
        """Parameters of LoRA on these modules of one layer, of those that have it."""
        if self.lora is None:
            return 0
        return self.lora.r * sum(
            sum(self.language.outputs(module)) for module in self.lora.target_modules if module in modules
        )

    @property
    def trainable(self) -> int:
        return self.projection + self.adapters

    @property
    def frozen(self) -> int:
        return self.tower.parameters + self.language.parameters + (self.qformer.parameters if self.qformer else 0)


def sizes_of(parts: Mapping[str, Any], merge: int, lora: LoraSettings | None, image_size: int | None = None) -> Sizes:
    """Sizes from configurations as `config.json` holds them: `vision_config`, `text_config`, perhaps `qformer_config` and
    `num_query_tokens`. Raises ValueError for an architecture whose arithmetic is not known here."""
    vision, text, qformer = parts["vision_config"], parts["text_config"], parts.get("qformer_config")
    _check_kind("vision", vision, TOWERS)
    _check_kind("language", text, LANGUAGES)
    return Sizes(
        Tower(
            vision["hidden_size"],
            vision["intermediate_size"],
            vision["num_hidden_layers"],
            vision["num_attention_heads"],
            vision["patch_size"],
            image_size or vision["image_size"],
        ),
        _language(text),
        _qformer(qformer, parts["num_query_tokens"]) if qformer else None,
        merge,
        lora,
    )


def _language(text: Mapping[str, Any]) -> Language:
    heads, width = text["num_attention_heads"], text["hidden_size"]
    return Language(
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


def _qformer(sizes: Mapping[str, Any], queries: int) -> QFormer:
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "cross_attention_frequency",
        "encoder_hidden_size",
    )
    width, inner, layers, every, encoder = (sizes[name] for name in names)
    return QFormer(width, inner, layers, every, encoder, queries)


def _check_kind(part: str, config: Mapping[str, Any], known: tuple[str, ...]) -> None:
    if config.get("model_type") not in known:
        raise ValueError(
            f"models.{part}: `mgpt plan` knows the sizes of {', '.join(known)}, not of {config.get('model_type')!r}; "
            "plan with the nearest published model (models.SYSTEM.preset)"
        )


def parts_of_folders(vision: Path, language: Path, qformer: Path | None) -> dict[str, Any]:
    """The configurations of base folders, without their weights. Raises ValueError where a folder has none."""
    parts = {"vision_config": _read(vision), "text_config": _read(language)}
    if qformer is None:
        return parts
    return parts | {
        "qformer_config": _read(qformer),
        "num_query_tokens": _queries(qformer / "query_tokens.safetensors"),
    }


def _read(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{folder}/config.json: {error}; expected a base folder, as `mgpt convert backbones` writes it"
        ) from error
    return content


def _queries(file: Path) -> int:
    """Queries in a safetensors file, from its header: eight bytes of length, then JSON."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        return int(header["query_tokens"]["shape"][1])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); write the base again") from error
