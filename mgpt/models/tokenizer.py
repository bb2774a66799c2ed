"""A tokenizer with exactly the original's ids.

The original is transformers 4.30's slow LLaMA tokenizer: SentencePiece puts "▁" before every separately tokenised
segment and before the text after each special token, and keeps every space. transformers 5 reads the same file
differently. Here the fast backend is built from the SentencePiece pieces with the original behaviour.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerFast

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_SPACE = "▁"
_PROBE = "  The 2 quick\tfoxes, {<12><7>}###\né 日本 ﬁ!? "


def build_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Builds the tokenizer from a SentencePiece BPE `tokenizer.model` (the file, or its folder).

    `tokenizer(segment, add_special_tokens=False).input_ids` are the original's ids; `add_special_tokens=True`
    prepends one `<s>`. Raises ValueError when the file is missing or not a SentencePiece model.
    """
    path = Path(source)
    path = path / "tokenizer.model" if path.is_dir() else path
    # The padding token is <unk>, LLaMA's id 0, not the original's "$$": a special token splits the text around it.
    return PreTrainedTokenizerFast(
        tokenizer_object=_backend(path),
        padding_side="right",
        pad_token="<unk>",
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def load_tokenizer(folder: str | Path) -> Any:
    """Loads the tokenizer of a language model folder.

    This is `build_tokenizer`'s for LLaMA's SentencePiece model, one saved by `save_tokenizer`, or the one that another
    language model declares. Raises ValueError when there is none or it cannot be read.
    """
    folder = Path(folder)
    has_pieces = (folder / "tokenizer.model").is_file()
    if not has_pieces and not (folder / "tokenizer.json").is_file():
        raise ValueError(
            f"{folder}: no tokenizer.json and no tokenizer.model; a language model folder needs one of them"
        )
    declared = _declared_class(folder / "tokenizer_config.json")
    if has_pieces and declared in (None, "LlamaTokenizer", "LlamaTokenizerFast"):
        return build_tokenizer(folder)
    own = declared in (None, "PreTrainedTokenizerFast", "TokenizersBackend")
    try:
        return (PreTrainedTokenizerFast if own else AutoTokenizer).from_pretrained(folder)
    except Exception as error:  # tokenizers and each tokenizer class raise their own
        raise ValueError(f"{folder}: its tokenizer cannot be loaded ({type(error).__name__}: {error})") from error


def _declared_class(settings: Path) -> str | None:
    """Returns the class that tokenizer_config.json names, if any."""
    try:
        return json.loads(settings.read_text()).get("tokenizer_class") if settings.is_file() else None
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(f"{settings}: not a JSON object ({error})") from error


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, from which `load_tokenizer` and AutoTokenizer give the same ids.

    Raises ValueError for the original's padding, `$$`, as pad_token: a special token would split the text around it.
    """
    if tokenizer.pad_token == "$$":
        raise ValueError(
            "tokenizer.pad_token: '$$' is ordinary text to the released weights, not a special token; use '<unk>'"
        )
    tokenizer.save_pretrained(folder)


def _backend(path: Path) -> Tokenizer:
    original = _sentencepiece(path)
    backend = Tokenizer(_bpe(original))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", left=1)]
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS.values()])
    bos = SPECIAL_TOKENS["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 1)]
    )
    if backend.encode(_PROBE, add_special_tokens=False).ids != original.encode(_PROBE):
        raise ValueError(
            f"{path}: this SentencePiece model is not rebuilt exactly; it must be of type bpe, without text "
            "normalisation "
            "(train it with model_type=bpe, normalization_rule_name=identity, remove_extra_whitespaces=false, "
            "byte_fallback=true)"
        )
    return backend


def _sentencepiece(path: Path) -> SentencePieceProcessor:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the language model's SentencePiece tokenizer.model")
    try:
        original = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path}: not a SentencePiece model, or cut short ({error})") from error
    first = [original.id_to_piece(index) for index in range(min(3, len(original)))]
    if first != ["<unk>", "<s>", "</s>"]:
        raise ValueError(f"{path}: the first pieces must be <unk>, <s>, </s>; found {first}")
    return original


def _bpe(original: SentencePieceProcessor) -> BPE:
    pieces = [(original.id_to_piece(index), original.get_score(index)) for index in range(len(original))]
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    return BPE(vocabulary, _merges(pieces, vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True)


def _merges(pieces: list[tuple[str, float]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Returns all pairs of pieces that join into a third, best score first, as SentencePiece merges them."""
    ranked = []
    for index, (piece, score) in enumerate(pieces):
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-score, index, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(ranked)]
