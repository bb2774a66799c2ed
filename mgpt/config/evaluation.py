"""Settings of the `describe` and `evaluate` sections: how the pretrained model writes descriptions and which survive, and what is asked of
every checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from mgpt.config.base import ExistingPath, Section, mistake

TASKS = ("rec", "reg", "vqa", "captioning", "grounded_captioning", "description")  # of mgpt.evaluation.metrics
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def _is_there(vocabulary: str) -> str:
    if vocabulary not in ("", "shapes", "coco") and not Path(vocabulary).is_file():
        raise mistake("a vocabulary that is there", "name shapes, coco, or the path of a YAML file")
    return vocabulary


VocabularyName = Annotated[str, AfterValidator(_is_there)]  # of mgpt.data.vocabulary; empty where none is needed


class GenerationSettings(Section):
    """How answers are generated: greedy, by `workers` actors of one CPU (and `gpus_per_worker` GPUs) each."""

    workers: Count = 2
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Count = 64
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the frozen backbones


class RepairSettings(Section):
    """Who mends a description. Without a `url`, deterministic rules do; with one, an OpenAI-compatible chat endpoint, and the rules after
    it.
    """

    url: str = ""  # up to and with the version: https://HOST/v1
    model: str = ""
    key_variable: str = "MGPT_REPAIR_API_KEY"  # environment variable that holds the key; unset or empty: no key is sent
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7  # early script of the original authors
    max_tokens: Count = 200  # early script of the original authors
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    attempts: Count = 3

    @model_validator(mode="after")
    def _endpoint_is_whole(self) -> RepairSettings:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise mistake(
                "the address of an HTTP endpoint",
                "write http(s)://HOST:PORT/v1, or leave it empty for the built-in rules",
                "url",
            )
        if self.url and not self.model:
            raise mistake("an endpoint needs the name of a model", "name the model that the endpoint serves", "model")
        return self


class FilterSettings(Section):
    """What a mended description must be to survive. Reasons in the report carry these names."""

    minimum_characters: Annotated[int, Field(ge=0)] = (
        50  # early script of the original authors: shorter replies were rejected
    )
    maximum_characters: Count = 2000
    minimum_sentences: Annotated[int, Field(ge=0)] = 1
    maximum_change: Share = 0.8  # share of the words of the original that repair may remove or replace
    maximum_foreign: Share = 0.1  # share of letters that are not of the Latin alphabet
    maximum_same: Count = 1_000_000  # how many images may get the same description
    # Share of the objects named by the (first) caption of the image which the description must name too: in place of the paper's reading
    # of each by hand, where captions are true. What an object is says `vocabulary`: shapes, coco, or the path of a YAML file.
    minimum_named: Share = 0.0
    vocabulary: VocabularyName = ""

    @model_validator(mode="after")
    def _objects_are_known(self) -> FilterSettings:
        if self.minimum_named and not self.vocabulary:
            raise mistake("a vocabulary says what an object is", "name one: shapes, coco, or a YAML file", "vocabulary")
        return self


class DescribeSettings(Section):
    """The `describe` section. Numbers of the paper: 5,000 images, of which about 3,500 survive; continue where the text has at most 80
    tokens.
    """

    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "cc_sbu",
    )  # whose training images; the paper: Conceptual Captions
    images: Count = 5000
    seed: Annotated[int, Field(ge=0)] = 0
    format: Literal["minigpt4", "minigpt4-llama2"] = "minigpt4"
    prompt: Annotated[str, Field(min_length=1)] = (
        "Describe this image in detail. Give as many details as possible. Say everything you see."
    )
    # new tokens; a description of this many or fewer gets the "Continue" turn; 0 switches it off
    continue_below: Annotated[int, Field(ge=0)] = 80
    max_new_tokens: Count = 200
    generation: GenerationSettings = GenerationSettings()
    repair: RepairSettings = RepairSettings()
    filters: FilterSettings = FilterSettings()
    # The reviewed copy of results/describe/review.csv. Empty: nobody reviewed.
    review: ExistingPath = ""
    accept_unreviewed: bool = True
    minimum_survivors: Annotated[int, Field(ge=0)] = 1  # the stage fails below this: too little to train on
    shard_rows: Count = 1000

    @model_validator(mode="after")
    def _somebody_accepts(self) -> DescribeSettings:
        if not self.accept_unreviewed and not self.review:
            raise mistake(
                "without a review nothing could survive",
                "name the reviewed file in describe.review, or set accept_unreviewed: true",
                "accept_unreviewed",
            )
        return self


class AskSettings(Section):
    """One task of an evaluation: `items` held-out items of the last checkpoint, `early_items` of the earlier ones (a part of the same
    items).
    """

    items: Count = 400
    early_items: Count = 200
    max_new_tokens: Count = (
        20  # original eval_configs; the original's 20 is tight for a box where digits are single tokens
    )

    @model_validator(mode="after")
    def _early_is_a_part(self) -> AskSettings:
        if self.early_items > self.items:
            raise mistake(
                f"early_items is at most items ({self.items})", "lower early_items or raise items", "early_items"
            )
        return self


class ModelEvaluationSettings(Section):
    """What is asked of one model's checkpoints."""

    format: Annotated[str, Field(min_length=1)]
    checkpoints: Annotated[tuple[Literal["untrained", "pretrain", "multitask", "instruct"], ...], Field(min_length=1)]
    tasks: Annotated[dict[str, AskSettings], Field(min_length=1)]  # of TASKS
    datasets: tuple[str, ...] = ()  # empty: all that are curated
    splits: Annotated[tuple[str, ...], Field(min_length=1)] = ("test",)
    ranked_datasets: tuple[str, ...] = ("iconvqa",)  # answered by the most likely of the record's choices
    vocabulary: Annotated[VocabularyName, Field(min_length=1)] = "shapes"  # shapes, coco, or a YAML file
    # name -> largest share of the image, ascending; the last holds the rest
    size_limits: dict[str, Share] = Field(default={"small": 0.07, "large": 1.0})
    resamples: Annotated[int, Field(ge=100)] = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    images: Annotated[int, Field(ge=0)] = 12  # in the grid, a task a row
    generation: GenerationSettings = GenerationSettings()

    @field_validator("tasks")
    @classmethod
    def _have_metrics(cls, tasks: dict[str, AskSettings]) -> dict[str, AskSettings]:
        unknown = [name for name in tasks if name not in TASKS]
        if unknown:
            raise mistake(f"a task has metrics; {', '.join(unknown)} has none", f"use {', '.join(TASKS)}")
        return tasks

    @field_validator("size_limits")
    @classmethod
    def _ascending(cls, limits: dict[str, float]) -> dict[str, float]:
        if not limits or list(limits.values()) != sorted(limits.values()) or list(limits.values())[-1] != 1.0:
            raise mistake(
                "shares of the image in ascending order that end with 1.0",
                "for instance {small: 0.01, medium: 0.1, large: 1.0}",
            )
        return limits


class EvaluateSettings(Section):
    """Section `evaluate`."""

    minigpt4: ModelEvaluationSettings
    minigpt_v2: Annotated[ModelEvaluationSettings, Field(alias="minigpt-v2")]
