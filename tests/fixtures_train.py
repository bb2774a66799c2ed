"""Small real inputs of training tests: random bases of a few thousand parameters, and curated shards of the shapes world."""

import io
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sentencepiece
import torch
from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM

from mgpt.data.sample import SCHEMA, Sample, Turn
from mgpt.data.scenes import language
from mgpt.data.scenes.world import draw, scenes
from mgpt.model.bases import save_base
from mgpt.model.tokenizer import build_tokenizer
from mgpt.storage import Manifest, Store


def make_bases(folder: Path) -> dict[str, str]:
    """A random tower (64 px, patch 16) and a random language model, as base folders."""
    torch.manual_seed(0)
    tower = Blip2VisionModel(
        Blip2VisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
            hidden_act="gelu",
            qkv_bias=True,
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(_tokenizer())
    tokenizer = build_tokenizer(folder / "tokenizer.model")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    save_base(folder / "vision", tower)
    save_base(folder / "language", model, tokenizer=tokenizer)
    return {"vision": str(folder / "vision"), "language": str(folder / "language")}


def _tokenizer() -> bytes:
    model = io.BytesIO()
    words = [
        "a",
        "red",
        "green",
        "blue",
        "circle",
        "square",
        "triangle",
        "is",
        "left",
        "of",
        "the",
        "picture",
        "what",
        "where",
        "describe",
        "this",
    ]
    rng = random.Random(0)
    lines = [" ".join(rng.choices(words, k=6)) for _ in range(500)] + ["{<1><2><30><99>}", "[INST] [/INST]", "###Human: ###Assistant:"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_data(store: Store, count: int = 48) -> Manifest:
    """Two datasets: captioned scenes in two shards, and text without pictures in one."""
    captions = [_caption(scene) for scene in scenes("train", count, 3)]
    texts = [
        Sample.create(
            dataset="chat",
            split="train",
            task="text",
            image=None,
            width=0,
            height=0,
            licence="",
            source=f"made#{number}",
            turns=(Turn("user", f"count to {number}"), Turn("assistant", " ".join(map(str, range(number % 9))) + " .")),
        )
        for number in range(count // 2)
    ]
    half = count // 2
    entries = [_shard(store, "scenes", number, part) for number, part in enumerate((captions[:half], captions[half:]))]
    return Manifest([*entries, _shard(store, "chat", 0, texts)])


def _caption(scene) -> Sample:
    image = io.BytesIO()
    draw(scene).save(image, "PNG")
    text = language.caption(scene, np.random.default_rng(scene.index))
    return Sample.create(
        dataset="scenes",
        split="train",
        task="caption",
        image=image.getvalue(),
        width=64,
        height=64,
        licence="",
        source=f"scene#{scene.index}",
        turns=(Turn("user", ""), Turn("assistant", text)),
    )


def _shard(store: Store, dataset: str, number: int, samples: list[Sample]):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([sample.to_row() for sample in samples], schema=SCHEMA), sink, row_group_size=8)
    uri = store.uri("data", dataset, "train", f"{number}.parquet")
    store.write(uri, sink.getvalue())
    return store.entry(f"{dataset}/train/{number}.parquet", uri, dataset=dataset, split="train", rows=len(samples))
