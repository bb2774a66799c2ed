"""Settings of the training stages: `pretrain`, `multitask` and `instruct`, one per model below each.

Contract: a key here is a key of `params.yaml`, as `pretrain.minigpt-v2.learning_rate`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mgpt.config.base import Section, mistake


class WorkerSettings(Section):
    """The worker group of a training: says where the work runs, not what it is. More than `workers` up to `maximum_workers` join and
    leave while it runs."""

    workers: int = Field(default=2, gt=0)
    maximum_workers: int | None = Field(
        default=None, gt=0, description="elastic where set: Ray adds workers up to it as nodes come"
    )
    cpus_per_worker: float = Field(
        default=0.5, gt=0, description="CPUs that a worker reserves; a share of one on few cores"
    )
    cpus_per_feed: float = Field(default=1, gt=0, description="CPUs that one task of the feeding reserves")
    gpus_per_worker: float = Field(default=0, ge=0)
    threads: int = Field(
        default=1, gt=0, description="torch threads of a worker; fixed, since another number sums in another order"
    )
    parallelism: Literal["replicated", "fsdp"] = Field(
        default="replicated",
        description="whether each worker holds all frozen weights, or its share of them; the same training either way",
    )
    resize_seconds: float = Field(
        default=60, gt=0, description="how often an elastic group looks for more workers, or fewer"
    )
    deterministic: bool = Field(
        default=False,
        description="same bits in every run on GPUs too, 3 % slower or, in small batches, far more; on a CPU it is always so",
    )
    ledger: bool = Field(default=False, description="keeps, beside the curve, which samples each step consumed")
    profile: tuple[NonNegativeInt, PositiveInt] | None = Field(
        default=None,
        description="[first step, steps] to run torch's profiler over; the traces come to profile/ of the run",
    )
    failures: int = Field(default=3, ge=0, description="how often a lost worker group is started again")

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.maximum_workers is not None and self.maximum_workers < self.workers:
            raise mistake(
                f"at least workers ({self.workers})", "raise it, or leave it out for a fixed number", "maximum_workers"
            )
        return self


class TrainingSettings(Section):
    """How one model is trained in one stage. Counts are optimiser steps and samples; learning rates are per step."""

    format: str = Field(description="prompt format, one of PROMPT_FORMATS")
    mixture: dict[str, float] = Field(
        min_length=1, description="dataset name to sampling weight; weights need not add to one"
    )
    tasks: dict[str, str] = Field(
        default_factory=dict, description="dataset name to the task that renders it, instead of its samples' own"
    )
    steps: int = Field(gt=0)
    global_batch_size: int = Field(
        gt=0, description="samples an optimiser step sees over all workers; does not change with their number"
    )
    micro_batch_size: int = Field(
        gt=0, description="samples one forward pass sees at most; accumulation follows from it"
    )
    pack_tokens: int | None = Field(
        default=None, gt=0, description="packs samples into rows of so many tokens at most; null pads rows"
    )
    learning_rate: float = Field(gt=0)
    minimum_learning_rate: float = Field(default=0.0, ge=0)
    warmup_learning_rate: float = Field(default=0.0, ge=0, description="rate at step 0 of the warm-up")
    warmup_steps: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "original"] = "cosine"
    steps_per_epoch: int | None = Field(
        default=None, gt=0, description="only for `original`: its warm-up restarts with each epoch"
    )
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = Field(
        default=1.0, gt=0, description="largest gradient norm; null for none, as in the original code"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    features: bool | Literal["auto"] = Field(
        default="auto",
        description="whether the frozen tower's output is computed once an image and kept: on, off or auto",
    )
    features_above: float = Field(
        default=1.5, ge=1, description="auto keeps features when an image is shown more often than so"
    )
    features_gigabytes: float = Field(
        default=50, gt=0, description="auto keeps no features of a training that would fill more than so much"
    )
    features_dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="type in which features are kept"
    )
    seed: int = Field(default=42, ge=0)
    early_stop_rows: int | None = Field(
        default=None, gt=0, description="ends the run when so many rows of the curve brought no lower loss"
    )
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, weight in self.mixture.items():
            if weight <= 0:
                raise mistake("a weight above 0", "leave a dataset out to not use it", f"mixture.{name}")
        stray = sorted(set(self.tasks) - set(self.mixture))
        if stray:
            raise mistake(
                f"only datasets of the mixture ({', '.join(self.mixture)})",
                "correct the name or remove it",
                f"tasks.{stray[0]}",
            )
        if self.micro_batch_size > self.global_batch_size:
            raise mistake(f"at most global_batch_size ({self.global_batch_size})", "lower it", "micro_batch_size")
        if self.minimum_learning_rate > self.learning_rate:
            raise mistake(f"at most learning_rate ({self.learning_rate})", "lower it", "minimum_learning_rate")
        if self.warmup_steps >= self.steps:
            raise mistake(f"below steps ({self.steps})", "shorten the warm-up", "warmup_steps")
        if (self.schedule == "original") != (self.steps_per_epoch is not None):
            raise mistake("set with schedule `original`, and with no other", "set both or neither", "steps_per_epoch")
        return self
