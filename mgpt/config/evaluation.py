"""Settings of the `describe` and `evaluate` sections: writing and filtering descriptions, and measuring checkpoints."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mgpt.config.base import ExistingPath, Section, rule_error
from mgpt.config.environment import REPAIR_API_KEY

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class GenerationSettings(Section):
    """Generation of answers: greedily, by `workers` actors of one CPU (and `gpus_per_worker` GPUs) each."""

    workers: Count = 2
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    batch_size: Count = 64
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the frozen backbones


class RepairSettings(Section):
    """Repair of descriptions by deterministic rules, after an OpenAI-compatible endpoint if `url` is set."""

    url: str = ""  # up to and including the version: https://HOST/v1
    model: str = ""
    key_variable: str = REPAIR_API_KEY  # environment variable of the API key; no key is sent where it is unset or empty
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7  # early script of the original authors
    max_tokens: Count = 200  # early script of the original authors
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    attempts: Count = 3

    @model_validator(mode="after")
    def _endpoint_is_complete(self) -> RepairSettings:
        if self.url and not self.url.startswith(("http://", "https://")):
            fix = "use http(s)://HOST:PORT/v1, or leave it empty for the built-in rules"
            raise rule_error("the address of an HTTP endpoint", fix, "url")
        if self.url and not self.model:
            raise rule_error("an endpoint needs the name of a model", "set the model that the endpoint serves", "model")
        return self


class FilterSettings(Section):
    """Conditions that a repaired description must meet. Reject reasons in the report have these names."""

    minimum_characters: Annotated[int, Field(ge=0)] = 50  # early script of the original authors rejects shorter replies
    maximum_characters: Count = 2000
    minimum_sentences: Annotated[int, Field(ge=0)] = 1
    maximum_change: Share = 0.8  # share of the original words that repair may remove or replace
    maximum_foreign: Share = 0.1  # share of letters outside the Latin alphabet
    maximum_same: Count = 1_000_000  # images that may get the same description
    # Share of the objects named by the image's (first) caption that the description must name too. Where captions are
    # true, it replaces the paper's manual review. `vocabulary` says what an object is: shapes, coco, or the path of a
    # YAML file.
    minimum_named: Share = 0.0
    vocabulary: str = ""

    @model_validator(mode="after")
    def _has_vocabulary(self) -> FilterSettings:
        if self.minimum_named and not self.vocabulary:
            fix = "set shapes, coco, or the path of a YAML file"
            raise rule_error("minimum_named needs a vocabulary", fix, "vocabulary")
        return self


class DescribeSettings(Section):
    """The `describe` section.

    The paper describes 5,000 images, of which about 3,500 remain, and continues where the text has at most 80 tokens.
    """

    # The datasets whose training images are described; the paper used Conceptual Captions.
    datasets: Annotated[tuple[str, ...], Field(min_length=1)] = ("cc_sbu",)
    images: Count = 5000
    seed: Annotated[int, Field(ge=0)] = 0
    format: Literal["minigpt4", "minigpt4-llama2"] = "minigpt4"
    prompt: Annotated[str, Field(min_length=1)] = (
        "Describe this image in detail. Give as many details as possible. Say everything you see."
    )
    # New tokens; a description of at most this many gets the "Continue" turn. 0 switches it off.
    continue_below: Annotated[int, Field(ge=0)] = 80
    max_new_tokens: Count = 200
    generation: GenerationSettings = GenerationSettings()
    repair: RepairSettings = RepairSettings()
    filters: FilterSettings = FilterSettings()
    # The reviewed copy of results/describe/review.csv. Empty: not reviewed.
    review: ExistingPath = ""
    accept_unreviewed: bool = True
    minimum_survivors: Annotated[int, Field(ge=0)] = 1  # the stage fails with fewer: too little to train on
    shard_rows: Count = 1000

    @model_validator(mode="after")
    def _accepts_some(self) -> DescribeSettings:
        if not self.accept_unreviewed and not self.review:
            rule = "without a review every description would be rejected"
            fix = "set describe.review to the reviewed file, or accept_unreviewed: true"
            raise rule_error(rule, fix, "accept_unreviewed")
        return self


class GenerationTaskSettings(Section):
    """One task of an evaluation."""

    examples: Count = 400  # held-out examples for the last checkpoint
    early_examples: Count = 200  # examples for earlier checkpoints: the first of the same examples
    # Original eval_configs. 20 is too few for a box where each digit is a token.
    max_new_tokens: Count = 20

    @model_validator(mode="after")
    def _early_is_subset(self) -> GenerationTaskSettings:
        if self.early_examples > self.examples:
            raise rule_error(f"at most examples ({self.examples})", "lower it, or raise examples", "early_examples")
        return self


class ModelEvaluationSettings(Section):
    """Evaluation of one model's checkpoints."""

    format: Annotated[str, Field(min_length=1)]  # prompt format
    checkpoints: Annotated[tuple[Literal["untrained", "pretrain", "multitask", "instruct"], ...], Field(min_length=1)]
    tasks: Annotated[dict[str, GenerationTaskSettings], Field(min_length=1)]  # of mgpt.evaluation.metrics.TASKS
    datasets: tuple[str, ...] = ()  # empty: all curated datasets
    splits: Annotated[tuple[str, ...], Field(min_length=1)] = ("test",)
    ranked_datasets: tuple[str, ...] = ("iconvqa",)  # answered with the most likely of the record's choices
    vocabulary: Annotated[str, Field(min_length=1)] = "shapes"  # shapes, coco, or the path of a YAML file
    # Largest share of the image by size class, ascending; the last class holds the rest.
    size_limits: dict[str, Share] = Field(default={"small": 0.07, "large": 1.0})
    resamples: Annotated[int, Field(ge=100)] = 1000  # of the bootstrap
    seed: Annotated[int, Field(ge=0)] = 0
    images: Annotated[int, Field(ge=0)] = 12  # of the grid, one row a task
    generation: GenerationSettings = GenerationSettings()

    @field_validator("size_limits")
    @classmethod
    def _is_ascending(cls, limits: dict[str, float]) -> dict[str, float]:
        shares = list(limits.values())
        if not shares or shares != sorted(shares) or shares[-1] != 1.0:
            rule = "shares of the image in ascending order that end with 1.0"
            raise rule_error(rule, "for instance {small: 0.01, medium: 0.1, large: 1.0}")
        return limits
