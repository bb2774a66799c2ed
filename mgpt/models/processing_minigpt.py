"""The processor: images and conversations → the tensors the model takes, with exactly the original's token ids.

Every text segment around an image is tokenised on its own (minigpt_base.py:72-120), so that each gets SentencePiece's leading space; joined
text would give other ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoProcessor, ProcessorMixin
from transformers.image_processing_base import BatchFeature

from mgpt.models.chat_template import Piece, as_conversations, images_in, lay_out
from mgpt.models.configuration_minigpt import MiniGPTConfig
from mgpt.models.image_processing_minigpt import MiniGPTImageProcessor
from mgpt.models.prompt_formats import PromptFormat, prompt_format
from mgpt.models.tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

IGNORE_INDEX = -100
_FILE = "processor_config.json"


class MiniGPTProcessor(ProcessorMixin):
    """image_processor, tokenizer: the two halves. image_token_id, num_image_tokens: as in the model's configuration.
    format: default prompt format. max_length: tokens of a row that the model takes, or None.
    max_answer_tokens: an answer is cut to this many, its end symbol kept; None cuts nothing (the original's max_txt_len).
    """

    def __init__(
        self,
        image_processor: MiniGPTImageProcessor,
        tokenizer: Any,
        image_token_id: int = 0,
        num_image_tokens: int = 0,
        format: str = "minigpt-v2",
        max_length: int | None = None,
        max_answer_tokens: int | None = None,
        **_: Any,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.chat_template = None
        self.image_token_id = image_token_id
        self.num_image_tokens = num_image_tokens
        self.format = prompt_format(format).name
        self.max_length = max_length
        self.max_answer_tokens = max_answer_tokens

    @classmethod
    def from_config(cls, config: Any, language: str | Path) -> MiniGPTProcessor:
        """The processor of a model's configuration, with the tokenizer of the language model folder."""
        return cls._of(config, load_tokenizer(language))

    @classmethod
    def from_original(cls, model_name: str, llm: str | Path, sizes: dict[str, Any] | None = None) -> MiniGPTProcessor:
        """The processor of a published model ("minigpt4", "minigpt4-llama2", "minigpt-v2") with the original language model's folder.

        sizes: only for non-standard sizes, see `mgpt.models.presets.original_config`. Raises ValueError for an unknown model or a bad
        folder.
        """
        from mgpt.models.presets import original_config

        return cls._of(original_config(model_name, llm, sizes), build_tokenizer(llm))

    @classmethod
    def _of(cls, config: Any, tokenizer: Any) -> MiniGPTProcessor:
        return cls(
            MiniGPTImageProcessor(config.image_size, config.image_mean, config.image_std),
            tokenizer,
            config.image_token_id,
            config.num_image_tokens,
            config.prompt_format,
            getattr(config.text_config, "max_position_embeddings", None),
        )

    def __call__(
        self,
        images: Any = None,
        conversations: Any = None,
        format: str | PromptFormat | None = None,
        labels: bool | None = None,
        padding_side: str | None = None,
        return_tensors: str = "pt",
        **_: Any,
    ) -> BatchFeature:
        """images: of all conversations in reading order, flat or one list (or None) a conversation; see MiniGPTImageProcessor for what
        counts as an image. None leaves pixel_values out. conversations: lists of {"role", "content"} with `<Img><ImageHere></Img>` where
        an image stands, or one such list; a string is taken as a whole original prompt, open for generation.
        labels: True for training (the answers are supervised), False for a prompt that is open for generation; default: True when every
        conversation ends with an answer. padding_side: default right for training, left for generation.

        Returns input_ids, attention_mask (batch, length), pixel_values (images, 3, side, side) and, for training, labels with -100
        elsewhere. Raises ValueError, naming the conversation, when roles do not alternate, images and marks do not match, or a row is too
        long.
        """
        talks = as_conversations(conversations)
        chosen = self._chosen(format)
        training = _ends_answered(talks) if labels is None else labels
        plans = [
            lay_out(talk, chosen, training, self._bos, f"conversations[{place}]") for place, talk in enumerate(talks)
        ]
        batch = self._pad(self._rows(plans, chosen), training, padding_side or ("right" if training else "left"))
        if images is not None:
            flat, each = _flat(images)
            _check_images(plans, len(flat), each)
            batch["pixel_values"] = self.image_processor(flat).pixel_values
        return BatchFeature(batch)

    def apply_chat_template(self, conversation: Any, *_: Any, **__: Any) -> BatchFeature:  # type: ignore[override]
        """transformers' call for messages that carry their images, `{"type": "image", "image": ...}`, as its pipelines make it: the inputs
        of `generate`. The template is the prompt format; what transformers would render and tokenise in two steps is one here, since each
        text segment is tokenised on its own.
        """
        talks = conversation if conversation and isinstance(conversation[0], (list, tuple)) else [conversation]
        images = [images_in(talk) for talk in talks]
        return self(images if any(images) else None, talks, labels=False)

    def answers(self, ids: torch.Tensor, format: str | PromptFormat | None = None) -> list[tuple[str, bool]]:
        """(text, finished) of each generated row: cut at the end symbol, special tokens and outer spaces removed."""
        end = self._chosen(format).end
        found = []
        for row in ids.tolist():
            text = self.tokenizer.decode(row, skip_special_tokens=False)
            eos = self.tokenizer.eos_token or end
            finished = end in text or eos in text
            text = text.split(end)[0].split(eos)[0]
            for special in self.tokenizer.all_special_tokens:
                text = text.replace(special, "")
            found.append((text.strip(), finished))
        return found

    def save_pretrained(self, save_directory: Any, **_: Any) -> list[str]:  # type: ignore[override]
        """Write processor_config.json, tokenizer.json and tokenizer_config.json."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(self.tokenizer, folder)
        (folder / _FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return [str(folder / _FILE)]

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds."""
        own = {
            name: getattr(self, name)
            for name in ("image_token_id", "num_image_tokens", "format", "max_length", "max_answer_tokens")
        }
        return {"processor_class": type(self).__name__, **own, "image_processor": self.image_processor.to_dict()}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> MiniGPTProcessor:  # type: ignore[override]
        """The processor that `save_pretrained` wrote; a folder, or a repository on the hub. ValueError when files are absent or broken."""
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            patterns = [_FILE, "tokenizer*"]
            folder = Path(
                snapshot_download(
                    str(pretrained_model_name_or_path), revision=kwargs.get("revision"), allow_patterns=patterns
                )
            )
        try:
            own = json.loads((folder / _FILE).read_text())
            image = {
                name: value
                for name, value in own.pop("image_processor").items()
                if name.startswith("image_") and name != "image_processor_type"
            }
        except (OSError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder / _FILE}: cannot be read as a processor ({error})") from error
        return cls(MiniGPTImageProcessor(**image), load_tokenizer(folder), **own)

    def _chosen(self, format: str | PromptFormat | None) -> PromptFormat:
        return prompt_format(self.format if format is None else format).for_tokenizer(self.tokenizer.eos_token)

    @property
    def _bos(self) -> str:
        """The token that opens every row; nothing for a tokenizer that has none."""
        return self.tokenizer.bos_token or ""

    def _rows(self, plans: list[list[Piece]], chosen: PromptFormat) -> list[tuple[list[int], list[int]]]:
        """(ids, labels) of each plan; all segments of the batch are tokenised in one call."""
        texts = [piece.text for plan in plans for piece in plan if piece.text]
        known = iter(self.tokenizer(texts, add_special_tokens=False).input_ids if texts else ())
        rows = []
        for place, plan in enumerate(plans):
            ids: list[int] = []
            labels: list[int] = []
            for piece in plan:
                new = self._piece_ids(piece, next(known) if piece.text else [], chosen)
                ids += new
                labels += new if piece.supervised else [IGNORE_INDEX] * len(new)
            if self.max_length is not None and len(ids) > self.max_length:
                raise ValueError(
                    f"conversations[{place}]: {len(ids)} tokens, more than max_length {self.max_length}; shorten it"
                )
            rows.append((ids, labels))
        return rows

    def _piece_ids(self, piece: Piece, ids: list[int], chosen: PromptFormat) -> list[int]:
        if piece.is_image:
            return [self.image_token_id] * self.num_image_tokens
        if piece.supervised and self.max_answer_tokens is not None and len(ids) > self.max_answer_tokens:
            end = self._end_ids(chosen)
            return ids[: self.max_answer_tokens - len(end)] + end
        return ids

    def _end_ids(self, chosen: PromptFormat) -> list[int]:
        """Ids of the end symbol as it stands after a word."""
        word, closed = self.tokenizer(["a", "a" + chosen.end], add_special_tokens=False).input_ids
        return closed[len(word) :]

    def _pad(self, rows: list[tuple[list[int], list[int]]], training: bool, side: str) -> dict[str, torch.Tensor]:
        if side not in ("left", "right"):
            raise ValueError(f"padding_side: {side!r}; choose left or right")
        width = max(len(ids) for ids, _ in rows)
        eos = self.tokenizer.eos_token_id
        fill = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (0 if eos is None else eos)

        def padded(values: list[int], value: int) -> list[int]:
            gap = [value] * (width - len(values))
            return values + gap if side == "right" else gap + values

        batch = {
            "input_ids": torch.tensor([padded(ids, fill) for ids, _ in rows]),
            "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in rows]),
        }
        if training:
            batch["labels"] = torch.tensor([padded(labels, IGNORE_INDEX) for _, labels in rows])
        return batch


def _check_images(plans: list[list[Piece]], images: int, each: list[int] | None) -> None:
    """each: images of each conversation, where they were given so."""
    marks = [sum(piece.is_image for piece in plan) for plan in plans]
    if sum(marks) != images or (each is not None and each != marks):
        given = images if each is None else f"{images} (one by one: {each})"
        raise ValueError(
            f"images: {given} given, but the conversations hold {sum(marks)} <ImageHere> marks (one by one: {marks})"
        )


def _ends_answered(talks: list[Any]) -> bool:
    return all(not isinstance(talk, str) and bool(talk) and talk[-1]["role"] == "assistant" for talk in talks)


def _flat(images: Any) -> tuple[list[Any], list[int] | None]:
    """All images in reading order; and how many each conversation has, where they are given as one list (or None) a conversation."""
    if isinstance(images, torch.Tensor) and images.ndim == 4:
        return list(images), None
    if not isinstance(images, (list, tuple)):
        return [images], None
    grouped = [entry if isinstance(entry, (list, tuple)) else [] if entry is None else [entry] for entry in images]
    nested = any(entry is None or isinstance(entry, (list, tuple)) for entry in images)
    return [image for group in grouped for image in group], [len(group) for group in grouped] if nested else None


AutoProcessor.register(MiniGPTConfig, MiniGPTProcessor)
AutoImageProcessor.register(MiniGPTConfig, MiniGPTImageProcessor)
