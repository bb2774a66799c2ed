"""The processor: images and conversations → the model's input tensors, with exactly the original's token ids.

Every text segment around an image is tokenised on its own (minigpt_base.py:72-120), so that each gets SentencePiece's
leading space; joined text would give other ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoImageProcessor, AutoProcessor, ProcessorMixin
from transformers.image_processing_base import BatchFeature

from mgpt.models.chat_template import Segment, images_in, split_into_segments, to_conversations
from mgpt.models.configuration_minigpt import MiniGPTConfig
from mgpt.models.image_processing_minigpt import MiniGPTImageProcessor
from mgpt.models.presets import original_config
from mgpt.models.prompt_formats import PromptFormat, prompt_format
from mgpt.models.tokenizer import build_tokenizer, load_tokenizer, save_tokenizer

IGNORE_INDEX = -100
_FILE = "processor_config.json"


class MiniGPTProcessor(ProcessorMixin):
    """Image processor, tokenizer and prompt format of a model.

    Args:
        image_token_id, num_image_tokens: as in the model's configuration.
        format: default prompt format.
        max_length: tokens of a row that the model takes, None for no limit.
        max_answer_tokens: an answer is cut to this many, its end symbol kept (the original's max_txt_len); None for
            no limit.
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
        """Builds the processor of a model's configuration, with the tokenizer of the language model folder."""
        return cls._from_tokenizer(config, load_tokenizer(language))

    @classmethod
    def from_original(cls, model_name: str, llm: str | Path, sizes: dict[str, Any] | None = None) -> MiniGPTProcessor:
        """Builds the processor of a published model: "minigpt4", "minigpt4-llama2" or "minigpt-v2".

        llm: folder of the original language model. sizes: see `mgpt.models.presets.original_config`.
        Raises ValueError for an unknown model or a folder that cannot be read.
        """
        return cls._from_tokenizer(original_config(model_name, llm, sizes), build_tokenizer(llm))

    @classmethod
    def _from_tokenizer(cls, config: Any, tokenizer: Any) -> MiniGPTProcessor:
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
        """Returns the model's inputs.

        Args:
            images: of all conversations in reading order, flat or as one list (or None) per conversation, each in a
                form that MiniGPTImageProcessor takes. None leaves pixel_values out.
            conversations: lists of {"role", "content"}, or one such list, with `<Img><ImageHere></Img>` where an
                image stands. A string is a whole prompt in the original's form, for generation.
            labels: True for training (answers are supervised), False for generation; by default True if every
                conversation ends with an answer.
            padding_side: by default right for training and left for generation.

        Returns:
            input_ids, attention_mask (batch, length), pixel_values (images, 3, side, side) and, for training, labels
            (batch, length) with -100 where nothing is supervised.

        Raises:
            ValueError: roles do not alternate, images and marks do not match, or a row is too long; names the
            conversation.
        """
        parsed = to_conversations(conversations)
        prompt_format = self._prompt_format(format)
        training = _all_answered(parsed) if labels is None else labels
        bos = self.tokenizer.bos_token or ""  # opens every row; some tokenizers have none
        rows = [
            split_into_segments(conversation, prompt_format, training, bos, f"conversations[{number}]")
            for number, conversation in enumerate(parsed)
        ]
        batch = self._pad(
            self._tokenize(rows, prompt_format), training, padding_side or ("right" if training else "left")
        )
        if images is not None:
            flat, counts = _flatten(images)
            _check_images(rows, len(flat), counts)
            batch["pixel_values"] = self.image_processor(flat).pixel_values
        return BatchFeature(batch)

    def apply_chat_template(self, conversation: Any, *_: Any, **__: Any) -> BatchFeature:  # type: ignore[override]
        """Returns the inputs of `generate` for messages that carry their images, as transformers' pipelines call it.

        The template is the prompt format. Rendering and tokenising are one step here, since each text segment is
        tokenised on its own.
        """
        is_batch = conversation and isinstance(conversation[0], (list, tuple))
        conversations = conversation if is_batch else [conversation]
        images = [images_in(one) for one in conversations]
        return self(images if any(images) else None, conversations, labels=False)

    def answers(self, ids: torch.Tensor, format: str | PromptFormat | None = None) -> list[tuple[str, bool]]:
        """Decodes rows to (text, finished): cut at the end symbol, without special tokens and outer spaces."""
        end = self._prompt_format(format).end
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
        """Writes processor_config.json, tokenizer.json and tokenizer_config.json."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(self.tokenizer, folder)
        (folder / _FILE).write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return [str(folder / _FILE)]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of processor_config.json."""
        own = {
            name: getattr(self, name)
            for name in ("image_token_id", "num_image_tokens", "format", "max_length", "max_answer_tokens")
        }
        return {"processor_class": type(self).__name__, **own, "image_processor": self.image_processor.to_dict()}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> MiniGPTProcessor:  # type: ignore[override]
        """Loads a saved processor from a folder or the hub.

        Raises ValueError when files are missing or cannot be read.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
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

    def _prompt_format(self, format: str | PromptFormat | None) -> PromptFormat:
        return prompt_format(self.format if format is None else format).for_tokenizer(self.tokenizer.eos_token)

    def _tokenize(self, rows: list[list[Segment]], prompt_format: PromptFormat) -> list[tuple[list[int], list[int]]]:
        """Returns (ids, labels) of each row; all segments of the batch are tokenised in one call."""
        texts = [segment.text for row in rows for segment in row if segment.text]
        tokenized = iter(self.tokenizer(texts, add_special_tokens=False).input_ids if texts else ())
        done = []
        for number, row in enumerate(rows):
            ids: list[int] = []
            labels: list[int] = []
            for segment in row:
                new = self._segment_ids(segment, next(tokenized) if segment.text else [], prompt_format)
                ids += new
                labels += new if segment.supervised else [IGNORE_INDEX] * len(new)
            if self.max_length is not None and len(ids) > self.max_length:
                raise ValueError(
                    f"conversations[{number}]: {len(ids)} tokens, more than max_length {self.max_length}; shorten it"
                )
            done.append((ids, labels))
        return done

    def _segment_ids(self, segment: Segment, ids: list[int], prompt_format: PromptFormat) -> list[int]:
        if segment.is_image:
            return [self.image_token_id] * self.num_image_tokens
        if segment.supervised and self.max_answer_tokens is not None and len(ids) > self.max_answer_tokens:
            word, closed = self.tokenizer(["a", "a" + prompt_format.end], add_special_tokens=False).input_ids
            end = closed[len(word) :]  # ids of the end symbol after a word
            return ids[: self.max_answer_tokens - len(end)] + end
        return ids

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


def _check_images(rows: list[list[Segment]], images: int, counts: list[int] | None) -> None:
    """Raises ValueError unless images match the marks. counts: images of each conversation, if they were given so."""
    marks = [sum(segment.is_image for segment in row) for row in rows]
    if sum(marks) != images or (counts is not None and counts != marks):
        given = images if counts is None else f"{images} (per conversation: {counts})"
        raise ValueError(
            f"images: {given} given, but the conversations hold {sum(marks)} <ImageHere> marks "
            f"(per conversation: {marks})"
        )


def _all_answered(conversations: list[Any]) -> bool:
    return all(not isinstance(one, str) and bool(one) and one[-1]["role"] == "assistant" for one in conversations)


def _flatten(images: Any) -> tuple[list[Any], list[int] | None]:
    """Returns all images in reading order, and the count per conversation if they are given by conversation."""
    if isinstance(images, torch.Tensor) and images.ndim == 4:
        return list(images), None
    if not isinstance(images, (list, tuple)):
        return [images], None
    grouped = [entry if isinstance(entry, (list, tuple)) else [] if entry is None else [entry] for entry in images]
    nested = any(entry is None or isinstance(entry, (list, tuple)) for entry in images)
    return [image for group in grouped for image in group], [len(group) for group in grouped] if nested else None


AutoProcessor.register(MiniGPTConfig, MiniGPTProcessor)
AutoImageProcessor.register(MiniGPTConfig, MiniGPTImageProcessor)
