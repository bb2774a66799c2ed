"""Repair of generated descriptions, by an OpenAI-compatible endpoint where one is configured, and always by rules.

The prompt and the meaning of replies follow the MiniGPT-4 paper and the early script of its authors: the prompt is the
system message, the paragraph the user message, and a reply that contains "already correct" keeps the paragraph. The
paper's hand-written rules for what the endpoint misses are not published; the rules here are ours.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable

from mgpt.captioning.types import RepairedText
from mgpt.config.evaluation import RepairSettings
from mgpt.data.text_utils import is_ended, sentences, words

# Protocol: the paper's prompt, verbatim.
PROMPT = (
    "Fix the error in the given paragraph. "
    "Remove any repeating sentences, meaningless characters, not English sentences, and so on. "
    "Remove unnecessary repetition. Rewrite any incomplete sentences. "
    "Return directly the results without explanation. "
    "Return directly the input paragraph if it is already correct without explanation."
)
MIN_SENTENCE_WORDS = 3  # a shorter sentence is a fragment
MEANINGLESS_CHARACTERS = re.compile(r"[^\w\s.,;:!?'\"()\-–—/%&$€°’“”]+")
REPEATED_MARK = re.compile(r"([.,;:!?\-])(?:\s*\1)+")
REPEATED_WORD = re.compile(r"\b([^\W\d_]+)(?:\s+\1\b)+", re.IGNORECASE)
Repairer = Callable[[str], RepairedText]


def make_repairer(settings: RepairSettings) -> Repairer:
    """Returns the configured endpoint followed by the rules, or the rules alone without an endpoint."""
    return EndpointRepairer(settings) if settings.url else repair_by_rules


class EndpointRepairer:
    """Repairs by an OpenAI-compatible chat endpoint, then by the rules. May be called from several threads.

    The client retries connection errors and replies 408, 409, 429 and 5xx, `settings.attempts` attempts in all, and
    waits as long as the Retry-After header requires. No key is sent where `settings.key_variable` is unset or empty.
    """

    def __init__(self, settings: RepairSettings) -> None:
        import openai  # takes more than a second, and only endpoints need it

        self.openai = openai
        key = os.environ.get(settings.key_variable, "")
        self.settings = settings
        self.headers = None if key else {"Authorization": openai.Omit()}
        self.client = openai.OpenAI(
            base_url=settings.url,
            api_key=key or "none",  # the client requires one
            timeout=settings.timeout_seconds,
            max_retries=settings.attempts - 1,
        )

    def __call__(self, text: str) -> RepairedText:
        reply = parse_reply(text, self.complete(text))
        if reply.reject_reason:
            return reply
        ruled = repair_by_rules(reply.text)
        return RepairedText(ruled.text, (*reply.steps, *ruled.steps))

    def complete(self, paragraph: str) -> str:
        """Requests one chat completion.

        Raises:
            ValueError: the endpoint is not reachable, refuses the request, or does not reply as the protocol requires;
            names the address.
        """
        settings, openai = self.settings, self.openai
        try:
            completion = self.client.chat.completions.create(
                model=settings.model,
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                messages=[{"role": "system", "content": PROMPT}, {"role": "user", "content": paragraph}],
                extra_headers=self.headers,
            )
        except openai.APIConnectionError as error:
            raise self._error(f"{error} {error.__cause__ or ''}".strip()) from error
        except openai.APIStatusError as error:
            raise self._error(f"HTTP {error.status_code}: {error.message}") from error
        except (openai.OpenAIError, ValueError) as error:  # ValueError: the body is not JSON
            raise self._protocol_error(str(error)) from error
        try:
            content = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:  # the client does not validate replies
            raise self._protocol_error(str(completion)) from error
        if not isinstance(content, str):
            raise self._protocol_error(str(completion))
        return content

    def _error(self, detail: str) -> ValueError:
        settings = self.settings
        return ValueError(
            f"describe.repair.url: {settings.url} did not repair a description ({detail[:300]}); check the "
            f"address, the model '{settings.model}' and the key in {settings.key_variable}, or leave the url empty to "
            f"use the built-in rules"
        )

    def _protocol_error(self, reply: str) -> ValueError:
        return ValueError(
            f"describe.repair.url: {self.settings.url} replied without the text choices[0].message.content "
            f"({reply[:200]!r}); use the address of an OpenAI-compatible endpoint"
        )


def parse_reply(paragraph: str, reply: str) -> RepairedText:
    """Interprets a reply as the early script of the authors does.

    "already correct" keeps the paragraph, and together with "repetition" rejects it; "incomplete" rejects it; any
    other reply is the repaired text.
    """
    lowered = reply.lower()
    if "already correct" in lowered:
        return RepairedText(paragraph, (), "endpoint_repetition" if "repetition" in lowered else "")
    if "incomplete" in lowered:
        return RepairedText(paragraph, (), "endpoint_incomplete")
    return RepairedText(reply.strip(), ("endpoint",) if reply.strip() != paragraph else ())


def repair_by_rules(text: str) -> RepairedText:
    """Removes what is meaningless, repeated or unfinished, and gives sentences a capital and an end mark.

    Deterministic and idempotent.
    """
    steps: list[str] = []
    for name, step in (
        ("characters", _clean_characters),
        ("stutter", _drop_stutters),
        ("unfinished", _drop_unfinished),
        ("fragment", _drop_fragments),
        ("repetition", _drop_repetitions),
        ("form", _capitalise_and_end),
    ):
        changed = step(text)
        if changed != text:
            steps.append(name)
        text = changed
    return RepairedText(text, tuple(steps))


def _clean_characters(text: str) -> str:
    cleaned = REPEATED_MARK.sub(r"\1", MEANINGLESS_CHARACTERS.sub(" ", text.replace("#", " ")))
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(cleaned.split()))


def _drop_stutters(text: str) -> str:
    """Reduces a word repeated in a row to one occurrence."""
    return REPEATED_WORD.sub(r"\1", text)


def _drop_unfinished(text: str) -> str:
    """Removes a last sentence without an end mark, unless it is the only one."""
    found = sentences(text)
    return " ".join(found[:-1]) if len(found) > 1 and not is_ended(found[-1]) else text


def _drop_fragments(text: str) -> str:
    return " ".join(sentence for sentence in sentences(text) if len(words(sentence)) >= MIN_SENTENCE_WORDS)


def _drop_repetitions(text: str) -> str:
    """Removes later sentences with the words of an earlier one."""
    first: dict[str, str] = {}
    for sentence in sentences(text):
        first.setdefault(" ".join(words(sentence)), sentence)
    return " ".join(first.values())


def _capitalise_and_end(text: str) -> str:
    formed = [sentence[0].upper() + sentence[1:] for sentence in sentences(text)]
    bare = [sentence if is_ended(sentence) else sentence.rstrip(" ,;:-") for sentence in formed]
    return " ".join(sentence if is_ended(sentence) else f"{sentence}." for sentence in bare)


def changed_share(before: str, after: str) -> float:
    """Computes the share of words that did not survive in order: 0 where all did, 1 where none did."""
    first, second = words(before), words(after)
    if not first and not second:
        return 0.0
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    return 1.0 - sum(block.size for block in matcher.get_matching_blocks()) / max(len(first), len(second))
