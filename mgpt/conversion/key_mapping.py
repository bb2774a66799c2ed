"""Maps parameter names between the original code and ours, and reads the original's files.

Sources of the original names: eva_vit.py, Qformer.py, minigpt4.py, minigpt_v2.py, and peft 0.2.0's wrappers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

# (ours, original), applied in order to the start and the middle of a name.
_VISION = (
    ("vision_tower.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_tower.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_tower.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
    ("vision_tower.post_layernorm.", "ln_vision."),
    ("vision_tower.encoder.layers.", "visual_encoder.blocks."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.projection.", ".attn.proj."),
    (".self_attn.qkv.", ".attn.qkv."),
)
_QFORMER = (
    ("qformer.layernorm.", "Qformer.bert.embeddings.LayerNorm."),
    ("qformer.encoder.", "Qformer.bert.encoder."),
    ("ttention.attention.", "ttention.self."),  # attention and crossattention
)
_QKV_BIAS = ".attn.qkv.bias"
# Buffers that the original saves and transformers computes: dropped when reading, added when converting back.
DROPPABLE_BUFFERS = ("rotary_emb.inv_freq", "Qformer.bert.embeddings.position_ids")


def original_name(ours: str, lora: bool) -> str:
    """Returns the original's name of one of our parameters. lora: whether its language model is wrapped by peft.

    A tower's query-key-value bias becomes `...attn.qkv.bias`, which `split_bias` divides as the original stores it.
    """
    if ours.startswith("vision_tower."):
        return _replace(ours, _VISION)
    if ours.startswith("qformer."):
        return _replace(ours, _QFORMER)
    if ours.startswith("projection."):
        return ours.replace("projection.", "llama_proj.", 1)
    if not ours.startswith("language_model."):
        return ours  # query_tokens
    name = ours.removeprefix("language_model.").replace(".base_layer.", ".").replace(".default.", ".")
    if not lora:
        return f"llama_model.{name}"
    # peft 0.2.0 wraps the head in a Sequential (base_model.py:190-199).
    return "llama_model.base_model.model." + name.replace("lm_head.", "lm_head.0.", 1)


def to_original_state(ours: Mapping[str, torch.Tensor], lora: bool) -> dict[str, torch.Tensor]:
    """Renames our tensors to the original's names."""
    return split_bias({original_name(name, lora): tensor for name, tensor in ours.items()})


def to_our_state(original: Mapping[str, torch.Tensor], ours: Iterable[str], lora: bool) -> dict[str, torch.Tensor]:
    """Renames the original's tensors to our names.

    ours: the names expected. Raises ValueError that lists missing and unexpected names.
    """
    names = {original_name(name, lora): name for name in ours}
    given = join_bias(original)
    missing = [name for name in names if name not in given]
    unexpected = [name for name in given if name not in names]
    if missing or unexpected:
        raise ValueError(_fault(missing, unexpected))
    return {names[name]: tensor for name, tensor in given.items()}


def split_bias(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Splits each query-key-value bias into q_bias and v_bias; its key part is zero (eva_vit.py:118-124)."""
    out = {}
    for name, tensor in state.items():
        if name.endswith(_QKV_BIAS):
            stem = name.removesuffix("qkv.bias")
            out[f"{stem}q_bias"], _, out[f"{stem}v_bias"] = (part.clone() for part in tensor.chunk(3))
        else:
            out[name] = tensor
    return out


def join_bias(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inverts `split_bias`. A q_bias or v_bias without its counterpart is kept, and so reported as unexpected."""
    out = dict(state)
    for name in state:
        stem = name.removesuffix("q_bias")
        if stem != name and f"{stem}v_bias" in state:
            query, value = out.pop(name), out.pop(f"{stem}v_bias")
            out[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return out


def eva_state(path: str | Path, depth: int) -> dict[str, torch.Tensor]:
    """Returns the vision tower's tensors by their names in the whole original model.

    Drops the final norm, the head and blocks beyond `depth`, as the original does (BLIP-2 reads the last block but
    one).
    """
    state = {}
    for name, tensor in tensors_of(path).items():
        block = re.match(r"blocks\.(\d+)\.", name)
        if name.startswith(("norm.", "fc_norm.", "head.")) or (block and int(block[1]) >= depth):
            continue
        state[f"visual_encoder.{name}"] = tensor
    return state


def blip2_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Returns Q-Former, query tokens and ln_vision of the BLIP-2 file.

    Drops its text layers, heads and T5 projection, as the original does (minigpt4.py:101-106).
    """
    dropped = re.compile(
        r"Qformer\.cls\.|t5_proj\.|Qformer\.bert\.embeddings\.(word|position)_embeddings\.|"
        r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\."
    )
    return {
        name: tensor
        for name, tensor in tensors_of(path).items()
        if not dropped.match(name) and not name.endswith(DROPPABLE_BUFFERS)
    }


def released_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Returns the trained parameters in a checkpoint of the original runner.

    Also reads peft's later `lora_A.default.weight`.
    """
    state = {name: tensor for name, tensor in tensors_of(path).items() if not name.endswith(DROPPABLE_BUFFERS)}
    renamed = {name.replace(".default.weight", ".weight"): tensor for name, tensor in state.items()}
    if len(renamed) != len(state):
        twice = [name for name in state if ".default." in name and name.replace(".default.weight", ".weight") in state]
        raise ValueError(f"{path}: both spellings of one weight: {', '.join(twice)}; remove one of them")
    return renamed


def tensors_of(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a `.pth` file, those under the key "model" if there is one.

    Only tensors and plain containers are unpickled, so that a file cannot run code. Raises ValueError for a file that
    is absent, truncated or of another kind, and for values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than tensors, which could run code when unpickled, or it is not a pickle"
        raise ValueError(f"{path}: refused, since {reason} ({error})") from error
    except Exception as error:  # zip, pickle and torch's reader each raise their own for a truncated file
        raise ValueError(
            f"{path}: cannot be read; is the download complete? ({type(error).__name__}: {error})"
        ) from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(_is_weight(*entry) for entry in state.items()):
        raise ValueError(f"{path}: expected a dict of tensors, or one under the key 'model'; found {_found(state)}")
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{path}: values that are not finite (NaN or infinite) in {', '.join(broken)}")
    return state


def _is_weight(name: object, tensor: object) -> bool:
    return (
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and tensor.layout is torch.strided
        and not tensor.is_meta
    )


def _found(state: object) -> str:
    """Describes what was found in place of a dict of tensors."""
    if not isinstance(state, dict) or not state:
        return f"{type(state).__name__} of {len(state)}" if isinstance(state, (list, dict)) else type(state).__name__
    name, value = next(entry for entry in state.items() if not _is_weight(*entry))
    if isinstance(value, torch.Tensor):
        return f"{name!r}: a {value.layout} tensor on {value.device}"
    return f"{name!r}: {type(value).__name__}"


def _replace(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for ours, original in rules:
        name = name.replace(ours, original, 1)
    return name


def _fault(missing: list[str], unexpected: list[str]) -> str:
    found = [f"missing: {', '.join(missing)}"] if missing else []
    return "; ".join(found + ([f"unexpected: {', '.join(unexpected)}"] if unexpected else []))
