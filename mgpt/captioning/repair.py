"""Mending a generated description: by a language model behind an OpenAI-compatible endpoint where one is configured, and always by
deterministic rules.

The prompt and the reading of the reply follow the MiniGPT-4 paper and the early script of its authors: the prompt is the model message,
the paragraph the user message; a reply that says "already correct" keeps the paragraph. The paper's hand-written rules for what the
endpoint misses are not published; the rules here are ours.
"""

from __future__ import annotations

import difflib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from mgpt.config.evaluation import RepairSettings
from mgpt.data.text_utils import is_ended, sentences, words

# Protocol: the paper's prompt, verbatim.
PROMPT = (
    "Fix the error in the given paragraph. Remove any repeating sentences, meaningless characters, not English sentences, and so on. "
    "Remove unnecessary repetition. "
    "Rewrite any incomplete sentences. Return directly the results without explanation. Return directly the input paragraph if it is "
    "already correct without explanation."
)
FEWEST_WORDS = 3  # of a sentence that says something
ODD_LETTERS = re.compile(r"[^\w\s.,;:!?'\"()\-–—/%&$€°’“”]+")
REPEATED_MARK = re.compile(r"([.,;:!?\-])(?:\s*\1)+")
Repairer = Callable[[str], "Repaired"]


@dataclass(frozen=True)
class Repaired:
    """`rejected`: why the endpoint gave the text up, empty where it did not. `steps`: what was done to it, in order."""

    text: str
    steps: tuple[str, ...] = ()
    rejected: str = ""


def repair_by_rules(text: str) -> Repaired:
    """Meaningless characters, stutters, repeated sentences, fragments and a cut last sentence go; sentences get capitals and full stops.

    Deterministic, and the fingerprint on its own results.
    """
    steps: list[str] = []
    for name, step in (
        ("characters", _clean_characters),
        ("stutter", _without_stutter),
        ("unfinished", _cut_unfinished),
        ("fragment", _without_fragments),
        ("repetition", _without_repeats),
        ("form", _well_formed),
    ):
        changed = step(text)
        if changed != text:
            steps.append(name)
        text = changed
    return Repaired(text, tuple(steps))


def _clean_characters(text: str) -> str:
    cleaned = REPEATED_MARK.sub(r"\1", ODD_LETTERS.sub(" ", text.replace("#", " ")))
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(cleaned.split()))


def _without_stutter(text: str) -> str:
    """A word said two or more times in a row is said once."""
    return re.sub(r"\b([^\W\d_]+)(?:\s+\1\b)+", r"\1", text, flags=re.IGNORECASE)


def _cut_unfinished(text: str) -> str:
    """A last sentence without its end goes, unless it is all there is."""
    spoken = sentences(text)
    return " ".join(spoken[:-1]) if len(spoken) > 1 and not is_ended(spoken[-1]) else text


def _without_fragments(text: str) -> str:
    return " ".join(sentence for sentence in sentences(text) if len(words(sentence)) >= FEWEST_WORDS)


def _without_repeats(text: str) -> str:
    seen: set[str] = set()
    kept = []
    for sentence in sentences(text):
        said = " ".join(words(sentence))
        if said not in seen:
            kept.append(sentence)
        seen.add(said)
    return " ".join(kept)


def _well_formed(text: str) -> str:
    """Each sentence begins with a capital and ends with a mark."""
    formed = [sentence[0].upper() + sentence[1:] for sentence in sentences(text)]
    bare = [sentence if is_ended(sentence) else sentence.rstrip(" ,;:-") for sentence in formed]
    return " ".join(sentence if is_ended(sentence) else f"{sentence}." for sentence in bare)


def change(before: str, after: str) -> float:
    """How far a text was changed: the share of its words that did not survive in order, 0 (all kept) to 1."""
    first, second = words(before), words(after)
    kept = sum(
        block.size for block in difflib.SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    )
    return 1.0 - kept / max(len(first), len(second)) if first or second else 0.0


def repairer(settings: RepairSettings) -> Repairer:
    """The endpoint and then the rules where an endpoint is configured, else the rules alone."""
    if not settings.url:
        return repair_by_rules

    def mend(text: str) -> Repaired:
        reply = read_reply(text, ask_endpoint(settings, text))
        if reply.rejected:
            return reply
        ruled = repair_by_rules(reply.text)
        return Repaired(ruled.text, (*reply.steps, *ruled.steps))

    return mend


def read_reply(paragraph: str, reply: str) -> Repaired:
    """What a reply means (early script of the authors): "already correct" keeps the paragraph, and with "repetition" gives it up;
    "incomplete" gives it up.
    """
    said = reply.lower()
    if "already correct" in said:
        return Repaired(paragraph, (), "endpoint_repetition" if "repetition" in said else "")
    if "incomplete" in said:
        return Repaired(paragraph, (), "endpoint_incomplete")
    return Repaired(reply.strip(), ("endpoint",) if reply.strip() != paragraph else ())


def ask_endpoint(settings: RepairSettings, paragraph: str) -> str:
    """One chat completion. Trouble of the network and replies 429 and 5xx are tried again, `attempts` times in all.

    Raises ValueError that names the address and what it said: wrong address, wrong key, or a reply without a text.
    """
    for attempt in range(settings.attempts):
        try:
            return _completion(settings, paragraph)
        except urllib.error.HTTPError as error:
            detail = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
            if error.code != 429 and error.code < 500:
                break
        except (OSError, http.client.HTTPException) as error:
            detail = str(error)
        if attempt + 1 < settings.attempts:
            time.sleep(min(30.0, 0.5 * 2**attempt))
    raise ValueError(
        f"describe.repair.url: {settings.url} did not mend a description ({detail}); check the address, the model '{settings.model}' and "
        f"the key in "
        f"{settings.key_variable}, or leave the url empty to use the built-in rules"
    )


def _completion(settings: RepairSettings, paragraph: str) -> str:
    body = {
        "model": settings.model,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "messages": [{"role": "system", "content": PROMPT}, {"role": "user", "content": paragraph}],
    }
    headers = {"Content-Type": "application/json"}
    key = os.environ.get(settings.key_variable, "")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        settings.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=settings.timeout_seconds) as response:
        reply = response.read()
    try:
        return str(json.loads(reply)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"describe.repair.url: {settings.url} answered without choices[0].message.content: {reply[:200]!r}; is it OpenAI-compatible?"
        ) from error
