"""Prompt formats: the exact text around a question, as the released weights were trained on it.

Every string here is protocol. Sources: the original configurations and conversation code; each entry names its own.
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
    """template: wraps one user message at "{}"; None when the system has no prompt (v1 pretraining: the image, then the caption).
    end: closes an answer. question_space: a training question ends with one space before the template goes on (the original data loaders
    append it; its inference text has none). open_bos: a prompt that is open for generation starts with a second `<s>`, which is in the
    original's conversation text besides the tokenizer's own.
    """

    name: str
    template: str | None
    end: str
    question_space: bool = False
    open_bos: bool = False

    def for_tokenizer(self, eos: str | None) -> PromptFormat:
        """The format of a language model whose end of text is `eos`: LLaMA's `</s>` is no token, and stops nothing, elsewhere."""
        return replace(self, end=eos) if eos and self.end == LLAMA_EOS else self

    def wrap(self, content: str, training: bool) -> str:
        """The prompt text of one user message. Text that already carries the template is kept as it is.

        Raises ValueError for words in the user message of a format without a prompt.
        """
        if self.template is None:
            if not _ONLY_IMAGES.fullmatch(content):
                raise ValueError(
                    f"format {self.name!r} has no prompt, so a user message may hold only {IMAGE_TEXT}; got {content!r}. "
                    "Use another format for questions."
                )
            return IMAGE_MARK * content.count(IMAGE_MARK)
        before, after = self.template.split("{}")
        if content.startswith(before) and content.endswith(after):
            return content
        question = content.removesuffix(" ") if self.question_space else content
        return before + question + (" " if self.question_space and training else "") + after


# minigpt4-caption: minigpt_base.py:234-237 with minigpt4.py:40-41. minigpt4, minigpt4-llama2: train_configs/*_stage2_finetune.yaml.
# minigpt-v2: minigpt_v2.py:33 with the data loaders' trailing space, conversation.py:130-137 for inference.
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
    """A format by name, or itself; ValueError names the known ones."""
    if isinstance(value, PromptFormat):
        return value
    if value not in PROMPT_FORMATS:
        raise ValueError(f"format: {value!r} is unknown; choose one of {', '.join(PROMPT_FORMATS)}")
    return PROMPT_FORMATS[value]
