"""Readers of published dataset formats, by name in `READERS`. `base` describes how to add one."""

from mgpt.data.datasets.base import Card, Part, Reader, RejectedRecord
from mgpt.data.datasets.benchmarks import HatefulMemes, IconVqa, OkVqaEvaluation, VizWiz, Vsr
from mgpt.data.datasets.captions import CcSbuAlign, CocoCaptions, TextCaps, WebDatasetCaptions
from mgpt.data.datasets.cards import CARDS
from mgpt.data.datasets.conversations import (
    LlavaConversation,
    LlavaFirstTurn,
    MultitaskConversation,
    UnnaturalInstructions,
)
from mgpt.data.datasets.flickr30k import FlickrEntities, FlickrGrounded
from mgpt.data.datasets.grit import Grit
from mgpt.data.datasets.own_data import OwnData
from mgpt.data.datasets.referring import RefCoco, RefCocoEvaluation, VisualGenomeRegions
from mgpt.data.datasets.vqa import AOkVqa, Gqa, OcrVqa, Vqa

READERS: dict[str, Reader] = {
    reader.card.name: reader
    for reader in (
        WebDatasetCaptions(CARDS["laion"]),
        WebDatasetCaptions(CARDS["cc_sbu"]),
        Grit(CARDS["grit_refer"], "refer"),
        Grit(CARDS["grit_identify"], "identify"),
        Grit(CARDS["grit_grounding"], "grounding"),
        CocoCaptions(CARDS["coco_caption"]),
        TextCaps(CARDS["textcaps"]),
        VisualGenomeRegions(CARDS["visual_genome"]),
        RefCoco(CARDS["refcoco"], "refer", "refcoco"),
        RefCoco(CARDS["refcocop"], "refer", "refcoco+"),
        RefCoco(CARDS["refcocog"], "refer", "refcocog"),
        RefCoco(CARDS["invrefcoco"], "identify", "refcoco"),
        RefCoco(CARDS["invrefcocop"], "identify", "refcoco+"),
        RefCoco(CARDS["invrefcocog"], "identify", "refcocog"),
        Vqa(CARDS["vqav2"], ("vqa_*.json",)),
        Vqa(CARDS["okvqa"], ("okvqa_train.json",)),
        AOkVqa(CARDS["aokvqa"]),
        Gqa(CARDS["gqa"]),
        OcrVqa(CARDS["ocrvqa"]),
        FlickrGrounded(CARDS["flickr_grounded_caption"], "grounding"),
        FlickrGrounded(CARDS["flickr_caption_to_phrase"], "caption"),
        FlickrGrounded(CARDS["flickr_phrase_to_box"], "phrase"),
        FlickrEntities(CARDS["flickr30k_entities_grounded_caption"], "grounding"),
        FlickrEntities(CARDS["flickr30k_entities_caption_to_phrase"], "caption"),
        FlickrEntities(CARDS["flickr30k_entities_phrase_to_box"], "phrase"),
        LlavaConversation(CARDS["llava_conversation"], ("conversation_*.json",)),
        LlavaFirstTurn(CARDS["llava_detail"], ("detail_*.json",)),
        LlavaFirstTurn(CARDS["llava_reason"], ("complex_reasoning_*.json",)),
        MultitaskConversation(CARDS["multitask_conversation"]),
        UnnaturalInstructions(CARDS["unnatural_instructions"]),
        CcSbuAlign(CARDS["cc_sbu_align"]),
        RefCocoEvaluation(CARDS["refcoco_evaluation"], ("refcoco_*.json",)),
        RefCocoEvaluation(CARDS["refcocop_evaluation"], ("refcoco+_*.json", "refcocop_*.json")),
        RefCocoEvaluation(CARDS["refcocog_evaluation"], ("refcocog_*.json",)),
        OkVqaEvaluation(CARDS["okvqa_evaluation"]),
        Vsr(CARDS["vsr"]),
        IconVqa(CARDS["iconvqa"]),
        VizWiz(CARDS["vizwiz"]),
        HatefulMemes(CARDS["hateful_memes"]),
        OwnData(CARDS["jsonl"]),
    )
}

__all__ = ["READERS", "Card", "Part", "Reader", "RejectedRecord"]
