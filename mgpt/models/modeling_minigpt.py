"""The model: frozen vision tower → Q-Former or token merge → trained projection → causal language model with optional LoRA.

Letters in names: B images or rows, L positions of a row, D width, n supervised positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Blip2QFormerModel,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from mgpt.models import assembly
from mgpt.models.backbones import vision_class
from mgpt.models.configuration_minigpt import LoraSpec, MiniGPTConfig
from mgpt.models.language import (
    add_lora,
    attention_bias,
    check_ids,
    check_shapes,
    has_plain_head,
    head_loss,
    logits_loss,
    mend_generation,
    pad_left,
    place_images,
    supervised_places,
    supervised_rows,
)
from mgpt.models.last_layer import LastLayer
from mgpt.models.tail import tail_of, takes_tails
from mgpt.models.trainable_parameters import FreezeReport, freeze_report
from mgpt.models.vision import encode_frozen, fix_norm


@dataclass
class MiniGPTOutput(ModelOutput):
    """loss: mean over supervised tokens, or None without labels. logits: (batch, length, vocabulary), or None when not asked for."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None


@dataclass
class Parts:
    """Loaded backbones that a model is built around, instead of fresh random ones."""

    vision: PreTrainedModel
    language: PreTrainedModel
    qformer: Blip2QFormerModel | None = None
    query_tokens: torch.Tensor | None = None

    def keep(self) -> Parts:
        """Mark every module as initialised, so that transformers' `post_init` does not draw the loaded weights anew."""
        for part in (self.vision, self.language, self.qformer):
            for module in part.modules() if part is not None else ():
                setattr(module, "_is_hf_initialized", True)  # noqa: B010 - a mark that torch's types do not know
        return self


class MiniGPTForConditionalGeneration(PreTrainedModel):
    """MiniGPT-4, its LLaMA-2 variant and MiniGPT-v2; which one is in the configuration alone."""

    config_class = MiniGPTConfig
    main_input_name = "input_ids"
    config: MiniGPTConfig
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Trained weights stay float32 under half-precision backbones (the original trains float32 adapters under autocast).
    _keep_in_fp32_modules_strict = ["projection", "lora_A", "lora_B"]

    def __init__(self, config: MiniGPTConfig, parts: Parts | None = None) -> None:
        super().__init__(config)
        parts = _random_parts(config) if parts is None else parts.keep()
        self.vision_tower = parts.vision
        fix_norm(self.vision_tower)
        self.qformer = parts.qformer
        if parts.query_tokens is not None:
            self.query_tokens = nn.Parameter(parts.query_tokens)
        self.projection = nn.Linear(config.projection_inputs, config.hidden_size)
        self.language_model = parts.language
        mend_generation(self.language_model.generation_config)
        self.post_init()
        lora = LoraSpec.of(config.lora)
        if lora is not None:
            add_lora(self.language_model, lora)
        self._last_layer = LastLayer(self.language_model.get_decoder())
        self._freeze()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every part arrives initialised, and a fresh projection keeps torch's start, as the original's does."""

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("projection.") or ".lora_" in name)
        self.train(self.training)

    # Building and saving

    @classmethod
    def from_backbones(
        cls, vision: str | Path, language: str | Path, qformer: str | Path | None = None, **options: Any
    ) -> MiniGPTForConditionalGeneration:
        """A fresh projection (and LoRA) on frozen base folders; see `mgpt.models.assembly.from_bases` for the options."""
        return assembly.from_backbones(cls, vision, language, qformer, **options)

    @classmethod
    def from_trainable(
        cls, folder: str | Path, backbones: Mapping[str, str | Path], **options: Any
    ) -> MiniGPTForConditionalGeneration:
        """A trained part on its backbones, refused on any other; see `mgpt.models.assembly.from_trainable`."""
        return assembly.from_trainable(cls, folder, backbones, **options)

    def save_trainable(self, folder: str | Path, processor: Any = None) -> None:
        """Write trainable.safetensors, config.json, a model card and the processor's files, all or nothing."""
        assembly.save_trainable(self, folder, processor)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """The whole model. Raises ValueError for a folder that cannot be read, and where transformers would only warn: weights missing,
        left over or of another shape.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = assembly.read_whole(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        model._freeze()
        assembly.read_generation(model, pretrained_model_name_or_path, kwargs.get("revision"))
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """The whole model, with a model card, ready for `push_to_hub`."""
        super().save_pretrained(save_directory, **kwargs)
        assembly.write_card(self.config, save_directory)

    # What is trained

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter of everything that takes gradients."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def load_trainable(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy trained weights in. Raises ValueError on a missing or unexpected name, another shape, or a value that is not finite."""
        assembly.load_trainable(self, state)

    def freeze_report(self) -> FreezeReport:
        """What is frozen and what is trained: names, counts and the trained share."""
        return freeze_report(self)

    def train(self, mode: bool = True) -> MiniGPTForConditionalGeneration:
        """Training mode reaches the language model (its LoRA dropout). The frozen tower and Q-Former stay in evaluation mode, as in the
        original (minigpt4.py:57-73): a Q-Former with dropout moves the features by 0.8.
        """
        super().train(mode)
        self.vision_tower.eval()
        if self.qformer is not None:
            self.qformer.eval()
        return self

    def set_activation_checkpointing(self, *, vision: bool = False, language: bool = False) -> None:
        """Recompute activations in the backward pass, of the tower and of the language model apart. A frozen tower keeps none: for it this
        saves nothing.
        """
        for wanted, module in ((vision, self.vision_tower), (language, self.language_model)):
            if wanted:
                module.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                module.gradient_checkpointing_disable()

    @classmethod
    def can_generate(cls) -> bool:
        """Through the language model; transformers' pipelines ask."""
        return True

    @property
    def generation_config(self) -> GenerationConfig:
        """The language model's."""
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if hasattr(self, "language_model"):  # PreTrainedModel sets one before there is any part
            self.language_model.generation_config = value

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    # Images

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The frozen part: (images, 3, side, side) → (images, image tokens, projection inputs). What a feature cache may keep, since
        training never changes it.

        Raises ValueError for another shape than the configured side.
        """
        side = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise ValueError(
                f"pixel_values: expected (images, 3, {side}, {side}), got {tuple(pixel_values.shape)}; use the processor's images"
            )
        queries = None if self.qformer is None else self.query_tokens
        return encode_frozen(
            self.vision_tower, pixel_values, self.config.num_patches, self.config.merge, self.qformer, queries
        )

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(images, 3, side, side) → (images, image tokens, language model width): what takes the placeholders' places."""
        return self._project(self.encode_images(pixel_values))

    def _project(self, features_BLD: torch.Tensor) -> torch.Tensor:
        return self.projection(features_BLD.to(self.projection.weight.dtype))

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings (batch, length, width) with the images' features in the placeholders' places, in reading order.

        Raises ValueError when placeholders and images do not match; both counts are named.
        """
        is_image = input_ids == self.config.image_token_id
        if pixel_values is not None and image_features is not None:
            raise ValueError(
                "pixel_values and image_features: the features stand in place of the pixels; give one of them"
            )
        features = (
            self.encode_images(pixel_values) if pixel_values is not None and pixel_values.shape[0] else image_features
        )
        self._check_images(input_ids, is_image, features)
        embeds_BLD = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if features is None or not features.shape[0]:
            return embeds_BLD
        image_embeds = self._project(features).to(embeds_BLD.dtype)
        return place_images(embeds_BLD, is_image, image_embeds.flatten(0, 1))

    def _check_images(self, input_ids: torch.Tensor, is_image: torch.Tensor, features: torch.Tensor | None) -> None:
        """The placeholders are those of the images given. What the host knows without asking the device comes first."""
        if input_ids.ndim != 2 or input_ids.is_floating_point():
            raise ValueError(
                f"input_ids: expected integers of shape (batch, length), got {tuple(input_ids.shape)} of {input_ids.dtype}"
            )
        tokens, width = self.config.num_image_tokens, self.config.projection_inputs
        if features is not None and features.shape[-1] != width:
            raise ValueError(f"image_features: width {features.shape[-1]}, expected {width}, as encode_images gives")
        if features is not None and (features.ndim != 3 or features.shape[1] != tokens):
            raise ValueError(
                f"image_features: shape {tuple(features.shape)}, expected (images, {tokens}, {width}), as encode_images gives"
            )
        images = 0 if features is None else features.shape[0]
        expected = images * tokens
        if self.training and is_image.device.type != "cpu":
            torch._assert_async(
                is_image.sum() == expected
            )  # no read-back from the device while it is busy with training
            return
        found = is_image.sum(1).tolist()
        if sum(found) != expected:
            raise ValueError(
                f"input_ids hold {sum(found)} image placeholders, but {images} images need {expected} "
                f"({images} x {tokens}); give as many images as there are <ImageHere> marks"
            )
        if any(count % tokens for count in found):
            raise ValueError(
                f"input_ids hold {found} image placeholders, row by row: not {tokens} for each image; use the processor's rows"
            )
        embeddings: Any = self.get_input_embeddings()
        check_ids(input_ids, is_image, len(embeddings.weight))

    # Text

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        return_logits: bool = True,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> MiniGPTOutput:
        """input_ids (batch, length) with `config.num_image_tokens` placeholders an image; pixel_values (images, 3, side, side) of all
        rows in reading order, or image_features (`encode_images` of them); labels (batch, length) with -100 where nothing is supervised.
        attention_mask: (batch, length), or who-sees-whom of (batch[, 1], length, length) for packed rows, with position_ids that restart.
        return_logits=False computes the head, and the last feed-forward, on supervised positions only. num_items_in_batch divides the
        loss instead of this batch's count.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids: give them, or inputs_embeds")
            inputs_embeds = self.embed(input_ids, pixel_values, image_features)
        check_shapes(inputs_embeds, attention_mask, labels, cached=kwargs.get("past_key_values") is not None)
        mask = attention_bias(attention_mask, inputs_embeds.dtype, self.language_model.config._attn_implementation)
        call: dict[str, Any] = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": mask,
            "position_ids": position_ids,
            **kwargs,
        }
        if return_logits or labels is None or not has_plain_head(self.config.text_config):
            out = self.language_model(**call)
            if labels is None:
                return MiniGPTOutput(logits=out.logits, past_key_values=out.past_key_values)
            rows_nV, targets_n = supervised_rows(out.logits, labels)
            loss = _mean(logits_loss(rows_nV, targets_n), len(targets_n), num_items_in_batch)
            return MiniGPTOutput(loss, out.logits if return_logits else None, out.past_key_values)
        decoder = self.language_model.get_decoder()
        if "key_sizes" in kwargs and takes_tails(decoder):
            call["tail"] = tail_of(labels.cpu(), kwargs["key_sizes"], inputs_embeds.device)
            labels = call["tail"].labels
        places = supervised_places(labels).to(inputs_embeds.device, non_blocking=True)
        with self._last_layer.only(decoder, places):
            hidden_BLD = decoder(**call, use_cache=False).last_hidden_state
        rows_nD, targets_n = supervised_rows(hidden_BLD, labels)
        total = head_loss(self.get_output_embeddings(), rows_nD, targets_n)
        return MiniGPTOutput(_mean(total, len(targets_n), num_items_in_batch))

    def loss_sum(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """(summed loss, supervised tokens) of a batch of `forward`'s arguments, both on the model's device: the loss of many workers is
        the sum of the first over the sum of the second, so it does not depend on how rows are spread.
        """
        labels = batch["labels"]
        count = labels[:, 1:].ne(-100).sum().to(self.device, non_blocking=True)
        total = self(**batch, return_logits=False, num_items_in_batch=1).loss
        if torch.is_grad_enabled() and not total.requires_grad:  # text alone, without LoRA: nothing trained takes part
            total = total + 0.0 * self.projection.bias.sum()
        return total, count

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """New token ids only, (batch, at most max_new_tokens), greedy unless asked otherwise. Padding may be at either end of a row.

        kwargs go to transformers' `generate` of the language model. Raises ValueError for a prompt beyond the model's positions.
        """
        embeds = self.embed(input_ids, pixel_values, image_features)
        if not embeds.shape[1]:
            raise ValueError("input_ids: no token to go on from; a prompt holds at least one")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        check_shapes(embeds, mask, None)
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is not None and embeds.shape[1] > limit:
            raise ValueError(
                f"input_ids: {embeds.shape[1]} tokens, more than the language model's {limit} positions; shorten the prompt"
            )
        embeds, mask = pad_left(embeds, mask)
        own = self.language_model.generation_config
        kwargs.setdefault("do_sample", False)
        kwargs.setdefault(
            "pad_token_id", own.pad_token_id if own.pad_token_id is not None else _first(own.eos_token_id)
        )
        generate: Any = self.language_model.generate
        return generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)


def _mean(total: torch.Tensor, count: int, items: torch.Tensor | int | None) -> torch.Tensor:
    return total / (max(count, 1) if items is None else items)


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def _random_parts(config: MiniGPTConfig) -> Parts:
    """Parts of the configured sizes with random weights: what `from_pretrained` fills."""
    vision: Any = vision_class(config.vision_config)
    build = getattr(vision, "from_config", None) or vision._from_config
    qformer = query_tokens = None
    if config.qformer_config is not None:
        qformer = Blip2QFormerModel._from_config(config.qformer_config)
        query_tokens = torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size)
    return Parts(
        build(config.vision_config), AutoModelForCausalLM.from_config(config.text_config), qformer, query_tokens
    )


AutoConfig.register(MiniGPTConfig.model_type, MiniGPTConfig)
for auto_class in (AutoModel, AutoModelForImageTextToText):
    auto_class.register(MiniGPTConfig, MiniGPTForConditionalGeneration)
