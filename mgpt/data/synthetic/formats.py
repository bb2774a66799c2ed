"""The files of the shapes world, in the published formats of the real datasets, for the real readers.

`write_world` writes all datasets; their bytes are a function of seed and counts. As in real data some records are
flawed, and curation must find them: one in `FLAW_INTERVAL` of the web pairs for each of four flaws, of RefCOCO's boxes
and of VQAv2's images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mgpt.data.synthetic import write_captions, write_grounding, write_vqa
from mgpt.data.synthetic.world import Split
from mgpt.data.synthetic.writer import SPLITS, SceneImage, WorldWriter

# Training images of each pool as a share of the split's count. The order decides the scenes of a pool: append new ones.
SHARES: dict[str, float] = {
    "coco": 1.0,
    "laion": 1.0,
    "cc_sbu": 0.5,
    "flickr": 1 / 3,
    "grit": 0.1,
    "textcaps": 0.1,
    "visual_genome": 0.1,
    "gqa": 0.1,
    "ocrvqa": 0.1,
    "cc_sbu_align": 0.1,
}


@dataclass(frozen=True)
class Location:
    """Folders of a dataset below the world's root: its annotation files and its images."""

    root: str
    images: str


def _coco(root: str) -> Location:
    return Location(root, "coco")


# All datasets of the world by the name of their reader.
DATASETS: dict[str, Location] = {
    "laion": Location("laion", "laion"),
    "cc_sbu": Location("cc_sbu", "cc_sbu"),
    "grit_refer": Location("grit", "grit/images"),
    "grit_identify": Location("grit", "grit/images"),
    "grit_grounding": Location("grit", "grit/images"),
    "coco_caption": _coco("coco/annotations"),
    "textcaps": Location("textcaps", "textcaps/train_images"),
    "visual_genome": Location("visual_genome", "visual_genome"),
    "refcoco": _coco("refcoco/refcoco"),
    "refcocop": _coco("refcoco/refcoco+"),
    "refcocog": _coco("refcoco/refcocog"),
    "invrefcoco": _coco("refcoco/refcoco"),
    "invrefcocop": _coco("refcoco/refcoco+"),
    "invrefcocog": _coco("refcoco/refcocog"),
    "vqav2": _coco("vqav2"),
    "okvqa": _coco("okvqa"),
    "aokvqa": _coco("aokvqa"),
    "gqa": Location("gqa", "gqa/images"),
    "ocrvqa": Location("ocrvqa", "ocrvqa/images"),
    "flickr_grounded_caption": Location("flickr30k", "flickr30k/images"),
    "flickr_caption_to_phrase": Location("flickr30k", "flickr30k/images"),
    "flickr_phrase_to_box": Location("flickr30k", "flickr30k/images"),
    "flickr30k_entities_grounded_caption": Location("flickr30k_entities", "flickr30k/images"),
    "flickr30k_entities_caption_to_phrase": Location("flickr30k_entities", "flickr30k/images"),
    "flickr30k_entities_phrase_to_box": Location("flickr30k_entities", "flickr30k/images"),
    "llava_conversation": _coco("llava"),
    "llava_detail": _coco("llava"),
    "llava_reason": _coco("llava"),
    "multitask_conversation": _coco("multitask_conversation"),
    "unnatural_instructions": Location("unnatural_instructions", "unnatural_instructions"),
    "cc_sbu_align": Location("cc_sbu_align", "cc_sbu_align"),
    "refcoco_evaluation": _coco("refcoco/evaluation"),
    "refcocop_evaluation": _coco("refcoco/evaluation"),
    "refcocog_evaluation": _coco("refcoco/evaluation"),
    "okvqa_evaluation": _coco("okvqa_evaluation"),
    "vsr": _coco("vsr"),
    "iconvqa": Location("iconvqa", "iconvqa"),
    "vizwiz": Location("vizwiz", "vizwiz/images"),
    "hateful_memes": Location("hateful_memes", "hateful_memes"),
}


def write_world(root: str | Path, seed: int, counts: Mapping[Split, int]) -> None:
    """Writes all datasets of the shapes world below `root`.

    Args:
        root: a folder; files of an earlier world in it are overwritten.
        seed: seed of the scenes and their texts.
        counts: scenes of the COCO pool by split (train, validation, test); the other pools are sized by `SHARES`.

    Raises:
        ValueError: a split is unknown or a count is negative.
    """
    wrong = [f"{split}: {count}" for split, count in counts.items() if split not in SPLITS or count < 0]
    if wrong:
        raise ValueError(f"counts: {', '.join(wrong)}; give scenes >= 0 for {', '.join(SPLITS)}")
    world = WorldWriter(Path(root), seed, counts)
    # All evaluation sets share the held-out scenes, which are expensive: nine of ten draws fall into another split.
    held_out = {split: world.take(split) for split in SPLITS if split != "train"}
    pools = {pool: {"train": world.take("train", share), **held_out} for pool, share in SHARES.items()}
    for write, pool in _WRITERS:
        write(world, pools[pool])
    write_captions.write_pairs(world, "laion", pools["laion"]["train"], pools["coco"]["test"])
    write_captions.write_pairs(world, "cc_sbu", pools["cc_sbu"]["train"], [])


Writer = Callable[[WorldWriter, Mapping[Split, list[SceneImage]]], None]

_WRITERS: tuple[tuple[Writer, str], ...] = (
    (write_captions.write_coco, "coco"),
    (write_captions.write_textcaps, "textcaps"),
    (write_captions.write_align, "cc_sbu_align"),
    (write_grounding.write_refcoco, "coco"),
    (write_grounding.write_flickr, "flickr"),
    (write_grounding.write_entities, "flickr"),
    (write_grounding.write_visual_genome, "visual_genome"),
    (write_grounding.write_grit, "grit"),
    (write_vqa.write_vqa, "coco"),
    (write_vqa.write_gqa, "gqa"),
    (write_vqa.write_ocrvqa, "ocrvqa"),
    (write_vqa.write_llava, "coco"),
    (write_vqa.write_multitask, "coco"),
    (write_vqa.write_instructions, "coco"),
    (write_vqa.write_statements, "coco"),
    (write_vqa.write_small_evaluations, "coco"),
)
