"""The model: frozen vision tower → Q-Former or token merge → trained projection → language model with optional LoRA.

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
    AutoModelForImageTextToText,
    GenerationConfig,
)
from transformers.initialization import no_init_weights
from transformers.utils import ModelOutput

from mgpt.models import weights
from mgpt.models.backbones import (
    Backbones,
    check_backbones,
    config_from_backbones,
    load_backbones,
    random_backbones,
)
from mgpt.models.compat import MiniGPTPreTrainedModel, attention_implementation
from mgpt.models.configuration_minigpt import BackboneReference, LoraSpec, MiniGPTConfig
from mgpt.models.input_checks import check_images, check_shapes
from mgpt.models.language import (
    convert_attention_mask,
    has_plain_head,
    head_loss,
    logits_loss,
    pad_left,
    repair_generation_config,
    scatter_image_features,
    supervised_positions,
    supervised_rows,
)
from mgpt.models.last_layer import FeedForwardPruning, can_prune, positions_to_keep
from mgpt.models.lora import add_lora
from mgpt.models.trainable_parameters import FreezeReport, freeze_report
from mgpt.models.vision import encode_frozen, set_ln_vision_eps


@dataclass
class MiniGPTOutput(ModelOutput):
    """loss: mean over supervised tokens, None without labels. logits: (batch, length, vocabulary) or None."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None


class MiniGPTForConditionalGeneration(MiniGPTPreTrainedModel):
    """MiniGPT-4, its LLaMA-2 variant and MiniGPT-v2; they differ in their configuration only."""

    config_class = MiniGPTConfig
    main_input_name = "input_ids"
    config: MiniGPTConfig
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True

    def __init__(self, config: MiniGPTConfig, backbones: Backbones | None = None) -> None:
        super().__init__(config)
        parts = random_backbones(config) if backbones is None else backbones
        self.vision_tower = parts.vision
        set_ln_vision_eps(self.vision_tower)
        self.qformer = parts.qformer
        if parts.query_tokens is not None:
            self.query_tokens = nn.Parameter(parts.query_tokens)
        self.projection = nn.Linear(config.projection_inputs, config.hidden_size)
        self.language_model = parts.language
        repair_generation_config(self.language_model.generation_config)
        with no_init_weights():  # backbones are loaded or initialised; the projection keeps torch's initialisation
            self.post_init()
        if (lora := LoraSpec.of(config.lora)) is not None:
            add_lora(self.language_model, lora)
        self._feed_forward_pruning = FeedForwardPruning(self.language_model.get_decoder())
        self._freeze()

    def _freeze(self) -> None:
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("projection.") or ".lora_" in name)
        self.train(self.training)

    # Loading and saving

    @classmethod
    def from_backbones(
        cls,
        vision: str | Path,
        language: str | Path,
        qformer: str | Path | None = None,
        *,
        merge: int = 4,
        lora: Any = None,
        seed: int = 0,
        image_size: int | None = None,
        prompt_format: str | None = None,
        references: Mapping[str, BackboneReference] | None = None,
        **loading: Any,
    ) -> MiniGPTForConditionalGeneration:
        """Builds a newly initialised projection (and LoRA) on frozen backbone folders, in evaluation mode.

        Args:
            merge: consecutive vision tokens in one image token; without effect with a Q-Former.
            lora: LoraSpec, a mapping, or None.
            seed: of the new weights.
            image_size: pixels, by default the tower's own.
            references: id and revision of each backbone by name, by default the folder's name.
            loading: `dtype`, `quantization` and `attn_implementation`, see `load_backbones`.

        Raises ValueError when a folder cannot be read or the backbones do not fit together.
        """
        folders = {"vision": vision, "language": language} | ({} if qformer is None else {"qformer": qformer})
        config = config_from_backbones(
            **folders,
            merge=merge,
            lora=lora,
            image_size=image_size,
            prompt_format=prompt_format,
            references=references,
        )
        backbones = load_backbones(folders, image_size=image_size, **loading)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, backbones).eval()

    @classmethod
    def from_trainable(
        cls, folder: str | Path, backbones: Mapping[str, str | Path], **loading: Any
    ) -> MiniGPTForConditionalGeneration:
        """Loads trained weights of `save_trainable` on the backbones they were trained on, in evaluation mode.

        loading: `dtype`, `quantization` and `attn_implementation`, see `load_backbones`.
        Raises ValueError for other backbones (both hashes are named), a file that cannot be read, or weights that do
        not fit.
        """
        config = weights.read_config(folder)
        check_backbones(config.backbones, backbones)
        parts = load_backbones(backbones, image_size=config.image_size, **loading)
        with torch.random.fork_rng(devices=[]):
            model = cls(config, parts).eval()
        model.load_trainable(weights.read_tensors(Path(folder) / weights.TRAINABLE_FILE))
        return model

    def save_trainable(self, folder: str | Path, processor: Any = None) -> None:
        """Writes trainable.safetensors, config.json, a model card and the processor's files; all of them or none."""
        weights.save_trainable(self, self.trainable_parameters(), folder, processor)

    def load_trainable(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copies trained weights in.

        Raises ValueError on a missing or unexpected name, another shape, or a non-finite value.
        """
        weights.copy_trainable(self.trainable_parameters(), state)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Loads the whole model.

        Raises ValueError for a folder that cannot be read, and where transformers only warns: missing, unexpected or
        mismatched weights.
        """
        return_info = kwargs.pop("output_loading_info", False)
        loaded: Any = weights.load_whole_model(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        model._freeze()
        weights.load_generation_config(model, pretrained_model_name_or_path, kwargs.get("revision"))
        return (model, info) if return_info else model

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Writes the whole model with a model card, ready for `push_to_hub`."""
        super().save_pretrained(save_directory, **kwargs)
        weights.write_model_card(self.config, save_directory)

    # Training

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the parameters that take gradients, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def freeze_report(self) -> FreezeReport:
        """Returns which parameters are frozen and which are trained: names, counts and the trained share."""
        return freeze_report(self)

    def train(self, mode: bool = True) -> MiniGPTForConditionalGeneration:
        """Sets the training mode of the language model, for its LoRA dropout.

        The frozen tower and Q-Former stay in evaluation mode, as in the original (minigpt4.py:57-73): a Q-Former with
        dropout changes the features by up to 0.8.
        """
        super().train(mode)
        self.vision_tower.eval()
        if self.qformer is not None:
            self.qformer.eval()
        return self

    def set_activation_checkpointing(self, *, vision: bool = False, language: bool = False) -> None:
        """Recomputes activations in the backward pass, of the tower and the language model separately.

        A frozen tower keeps no activations, so this saves nothing there.
        """
        for enabled, module in ((vision, self.vision_tower), (language, self.language_model)):
            if enabled:
                module.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                module.gradient_checkpointing_disable()

    def loss_sum(self, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (summed loss, supervised tokens) of a batch of `forward`'s arguments, both on the model's device.

        The loss of many workers is the sum of the first over the sum of the second, so it does not depend on how rows
        are distributed.
        """
        labels = batch["labels"]
        count = labels[:, 1:].ne(-100).sum().to(self.device, non_blocking=True)
        total = self(**batch, return_logits=False, num_items_in_batch=1).loss
        if torch.is_grad_enabled() and not total.requires_grad:  # text only, without LoRA: no trained parameter is used
            total = total + 0.0 * self.projection.bias.sum()
        return total, count

    # Generation settings and embeddings, which are the language model's

    @classmethod
    def can_generate(cls) -> bool:
        """Returns True: transformers' pipelines check this, and generation goes through the language model."""
        return True

    @property
    def generation_config(self) -> GenerationConfig:
        """The language model's generation settings."""
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        if hasattr(self, "language_model"):  # PreTrainedModel sets one before the language model exists
            self.language_model.generation_config = value

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes (images, 3, side, side) to (images, image tokens, projection inputs): the frozen part of the model.

        Training never changes these features, so they can be cached. Raises ValueError for another shape.
        """
        side = self.config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise ValueError(
                f"pixel_values: expected (images, 3, {side}, {side}), got {tuple(pixel_values.shape)}; "
                "use the processor's images"
            )
        queries = None if self.qformer is None else self.query_tokens
        return encode_frozen(
            self.vision_tower, pixel_values, self.config.num_patches, self.config.merge, self.qformer, queries
        )

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encodes (images, 3, side, side) to image token embeddings (images, image tokens, language model width)."""
        return self._project(self.encode_images(pixel_values))

    def _project(self, features_BLD: torch.Tensor) -> torch.Tensor:
        return self.projection(features_BLD.to(self.projection.weight.dtype))

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns token embeddings (batch, length, width), with image features at the placeholders in reading order.

        Raises ValueError when placeholders and images do not match; both counts are named.
        """
        is_image = input_ids == self.config.image_token_id
        if pixel_values is not None and image_features is not None:
            raise ValueError("pixel_values and image_features: features replace pixels; give one of them")
        features = (
            self.encode_images(pixel_values) if pixel_values is not None and pixel_values.shape[0] else image_features
        )
        embeddings: Any = self.get_input_embeddings()
        check_images(input_ids, is_image, features, self.config, len(embeddings.weight), wait=not self.training)
        embeds_BLD = embeddings(input_ids.masked_fill(is_image, 0))
        if features is None or not features.shape[0]:
            return embeds_BLD
        image_embeds = self._project(features).to(embeds_BLD.dtype)
        return scatter_image_features(embeds_BLD, is_image, image_embeds.flatten(0, 1))

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
        """Computes loss and logits.

        Args:
            input_ids: (batch, length), with `config.num_image_tokens` placeholders per image.
            attention_mask: (batch, length), or (batch[, 1], length, length) by query and key for packed rows, with
                position_ids that restart at each sample.
            pixel_values: (images, 3, side, side) of all rows in reading order.
            labels: (batch, length), -100 where nothing is supervised.
            image_features: `encode_images` of the pixels, instead of pixel_values.
            return_logits: False computes the head, and the last feed-forward layer, at supervised positions only.
            num_items_in_batch: divides the loss, instead of the number of supervised tokens in this batch.
        """
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids: give them, or inputs_embeds")
            inputs_embeds = self.embed(input_ids, pixel_values, image_features)
        check_shapes(inputs_embeds, attention_mask, labels, cached=kwargs.get("past_key_values") is not None)
        implementation = attention_implementation(self.language_model.config)
        call = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": convert_attention_mask(attention_mask, inputs_embeds.dtype, implementation),
            "position_ids": position_ids,
            **kwargs,
        }
        if labels is not None and not return_logits and has_plain_head(self.config.text_config):
            return MiniGPTOutput(self._supervised_loss(call, labels, num_items_in_batch))
        out = self.language_model(**call)
        if labels is None:
            return MiniGPTOutput(logits=out.logits, past_key_values=out.past_key_values)
        rows_nV, targets_n = supervised_rows(out.logits, labels)
        loss = _mean(logits_loss(rows_nV, targets_n), len(targets_n), num_items_in_batch)
        return MiniGPTOutput(loss, out.logits if return_logits else None, out.past_key_values)

    def _supervised_loss(
        self, call: dict[str, Any], labels: torch.Tensor, items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Computes the loss without logits or last-layer outputs at positions that are not supervised."""
        decoder, device = self.language_model.get_decoder(), call["inputs_embeds"].device
        if "key_sizes" in call and can_prune(decoder):
            kept = positions_to_keep(labels.cpu(), call["key_sizes"], device)
            call["last_layer_kept"], labels = kept, kept.labels
        positions = supervised_positions(labels).to(device, non_blocking=True)
        with self._feed_forward_pruning.only(decoder, positions):
            hidden_BLD = decoder(**call, use_cache=False).last_hidden_state
        rows_nD, targets_n = supervised_rows(hidden_BLD, labels)
        return _mean(head_loss(self.get_output_embeddings(), rows_nD, targets_n), len(targets_n), items)

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Returns new token ids only, (batch, at most max_new_tokens); greedy by default. Padding may be at either end.

        kwargs go to `generate` of the language model. Raises ValueError for a prompt beyond the model's positions.
        """
        embeds = self.embed(input_ids, pixel_values, image_features)
        if not embeds.shape[1]:
            raise ValueError("input_ids: the prompt is empty; it needs at least one token")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        check_shapes(embeds, mask, None)
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is not None and embeds.shape[1] > limit:
            raise ValueError(
                f"input_ids: {embeds.shape[1]} tokens, more than the language model's {limit} positions; "
                "shorten the prompt"
            )
        embeds, mask = pad_left(embeds, mask)
        own = self.language_model.generation_config
        eos = own.eos_token_id[0] if isinstance(own.eos_token_id, (list, tuple)) else own.eos_token_id
        kwargs.setdefault("do_sample", False)
        kwargs.setdefault("pad_token_id", own.pad_token_id if own.pad_token_id is not None else eos)
        generate: Any = self.language_model.generate
        return generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)


def _mean(total: torch.Tensor, count: int, items: torch.Tensor | int | None) -> torch.Tensor:
    return total / (max(count, 1) if items is None else items)


AutoConfig.register(MiniGPTConfig.model_type, MiniGPTConfig)
for auto_class in (AutoModel, AutoModelForImageTextToText):
    auto_class.register(MiniGPTConfig, MiniGPTForConditionalGeneration)
