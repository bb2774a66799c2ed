"""Prompt formats: the exact text around a question that the released weights were trained with.

The strings must not change. Sources are named at each entry of `PROMPT_FORMATS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

IMAGE_MARK = "<ImageHere>"
IMAGE_TEXT = f"<Img>{IMAGE_MARK}</Img>"
LLAMA_EOS = "</s>"
_ONLY_IMAGES = re.compile(rf"(\s|<Img>|</Img>|{IMAGE_MARK})*")


@dataclass(frozen=True)
class PromptFormat:
    """The text around user messages and after answers.

    Attributes:
        template: wraps one user message at "{}"; None without a prompt (MiniGPT-4 pretraining: the image, then the
            caption).
        end: closes an answer.
        question_space: whether a training question ends with one space before the template continues. The original's
            data loaders append it; its inference text has none.
        open_bos: whether a prompt for generation starts with a second `<s>`: the original's conversation text holds
            one, and the tokenizer adds its own.
    """

    name: str
    template: str | None
    end: str
    question_space: bool = False
    open_bos: bool = False

    def for_tokenizer(self, eos: str | None) -> PromptFormat:
        """Returns the format with `eos` in place of LLaMA's `</s>`, which is no token of other models."""
        return replace(self, end=eos) if eos and self.end == LLAMA_EOS else self

    def wrap(self, content: str, training: bool) -> str:
        """Returns the prompt text of one user message. Text that already has the template is returned as it is.

        Raises ValueError for words in a user message if the format has no prompt.
        """
        if self.template is None:
            if not _ONLY_IMAGES.fullmatch(content):
                raise ValueError(
                    f"format {self.name!r} has no prompt, so a user message may hold only {IMAGE_TEXT}; "
                    f"got {content!r}. "
                    "Use another format for questions."
                )
            return IMAGE_MARK * content.count(IMAGE_MARK)
        before, after = self.template.split("{}")
        if content.startswith(before) and content.endswith(after):
            return content
        question = content.removesuffix(" ") if self.question_space else content
        return before + question + (" " if self.question_space and training else "") + after


# minigpt4-caption: minigpt_base.py:234-237 with minigpt4.py:40-41. minigpt4, minigpt4-llama2:
# train_configs/*_stage2_finetune.yaml. minigpt-v2: minigpt_v2.py:33 with the data loaders' trailing space,
# conversation.py:130-137 for inference.
PROMPT_FORMATS: dict[str, PromptFormat] = {
    entry.name: entry
    for entry in (
        PromptFormat("minigpt4-caption", None, "\n"),
        PromptFormat("minigpt4", "###Human: {} ###Assistant: ", "###"),
        PromptFormat("minigpt4-llama2", "[INST] {} [/INST] ", LLAMA_EOS),
        PromptFormat("minigpt-v2", "[INST] {} [/INST]", LLAMA_EOS, question_space=True, open_bos=True),
    )
}


def prompt_format(value: str | PromptFormat) -> PromptFormat:
    """Returns a format by name, or as it is. Raises ValueError for an unknown name."""
    if isinstance(value, PromptFormat):
        return value
    if value not in PROMPT_FORMATS:
        raise ValueError(f"format: {value!r} is unknown; choose one of {', '.join(PROMPT_FORMATS)}")
    return PROMPT_FORMATS[value]
