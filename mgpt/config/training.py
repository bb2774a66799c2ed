"""Settings of the training stages `pretrain`, `multitask` and `instruct`, keyed by model
(`pretrain.minigpt-v2.steps`).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from mgpt.config.base import Section, rule_error


class WorkerSettings(Section):
    """The worker group of a training stage; no setting here changes what is trained.

    A group with `maximum_workers` is elastic: workers beyond `workers` join and leave during the run.
    """

    workers: int = Field(default=2, gt=0)
    maximum_workers: int | None = Field(
        default=None, gt=0, description="makes the group elastic: Ray adds workers up to this number as nodes join"
    )
    cpus_per_worker: float = Field(default=0.5, gt=0, description="CPUs that a worker reserves; below 1 on few cores")
    cpus_per_feed: float = Field(default=1, gt=0, description="CPUs that one data feeding task reserves")
    gpus_per_worker: float = Field(default=0, ge=0)
    threads: int = Field(
        default=1, gt=0, description="torch threads of a worker; another number sums in another order, so it is fixed"
    )
    parallelism: Literal["data_parallel", "fsdp"] = Field(
        default="data_parallel", description="each worker holds all frozen weights, or (fsdp) a shard; same results"
    )
    resize_seconds: float = Field(default=60, gt=0, description="interval at which an elastic group is resized")
    deterministic: bool = Field(
        default=False,
        description="bit-identical runs on GPUs too; costs 3 %, and far more with small batches. CPU runs always are",
    )
    sample_log: bool = Field(default=False, description="logs which samples each step consumed, next to the metrics")
    profile: tuple[NonNegativeInt, PositiveInt] | None = Field(
        default=None, description="[first step, steps] of torch's profiler; traces go to profile/ of the run"
    )
    failures: int = Field(default=3, ge=0, description="how often a lost worker group is restarted")

    @model_validator(mode="after")
    def _range_is_ascending(self) -> Self:
        if self.maximum_workers is not None and self.maximum_workers < self.workers:
            fix = "raise it, or remove it for a fixed number"
            raise rule_error(f"at least workers ({self.workers})", fix, "maximum_workers")
        return self


class TrainingSettings(Section):
    """Training of one model in one stage. Steps are optimizer steps, counts are samples, learning rates are per
    step.
    """

    format: str = Field(description="prompt format, a key of mgpt.models.prompt_formats.PROMPT_FORMATS")
    mixture: dict[str, float] = Field(
        min_length=1, description="sampling weight by dataset; weights need not sum to one"
    )
    tasks: dict[str, str] = Field(
        default_factory=dict, description="task that renders a dataset, in place of its samples' own, by dataset"
    )
    steps: int = Field(gt=0)
    global_batch_size: int = Field(gt=0, description="samples of an optimizer step over all workers, however many")
    micro_batch_size: int = Field(gt=0, description="most samples of one forward pass; gradients are accumulated")
    pack_tokens: int | None = Field(
        default=None, gt=0, description="packs samples into rows of at most this many tokens; null pads rows"
    )
    learning_rate: float = Field(gt=0)
    minimum_learning_rate: float = Field(default=0.0, ge=0)
    warmup_learning_rate: float = Field(default=0.0, ge=0, description="rate at step 0 of the warm-up")
    warmup_steps: int = Field(default=0, ge=0)
    lr_scheduler: Literal["cosine", "original"] = "cosine"
    steps_per_epoch: int | None = Field(
        default=None, gt=0, description="for lr_scheduler `original` only: its warm-up restarts with each epoch"
    )
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float | None = Field(
        default=1.0, gt=0, description="largest gradient norm; null for none, as in the original code"
    )
    precision: Literal["fp32", "bf16"] = "fp32"
    features: bool | Literal["auto"] = Field(
        default="auto", description="caches the frozen vision tower's output of each image"
    )
    features_above: float = Field(
        default=1.5, ge=1, description="auto: caches when an image is seen more often than this, on average"
    )
    features_gigabytes: float = Field(
        default=50, gt=0, description="auto: caches nothing where the cache would be larger"
    )
    features_dtype: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="dtype of cached features")
    seed: int = Field(default=42, ge=0)
    early_stop_rows: int | None = Field(
        default=None, gt=0, description="stops after this many rows of logged metrics without a lower loss"
    )
    log_every: int = Field(default=10, gt=0)
    checkpoint_every: int = Field(default=100, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for name, weight in self.mixture.items():
            if weight <= 0:
                raise rule_error("a weight above 0", "remove a dataset that is not to be used", f"mixture.{name}")
        stray = sorted(set(self.tasks) - set(self.mixture))
        if stray:
            rule = f"only datasets of the mixture ({', '.join(self.mixture)})"
            raise rule_error(rule, "correct the name, or remove it", f"tasks.{stray[0]}")
        if self.micro_batch_size > self.global_batch_size:
            raise rule_error(f"at most global_batch_size ({self.global_batch_size})", "lower it", "micro_batch_size")
        if self.minimum_learning_rate > self.learning_rate:
            raise rule_error(f"at most learning_rate ({self.learning_rate})", "lower it", "minimum_learning_rate")
        if self.warmup_steps >= self.steps:
            raise rule_error(f"below steps ({self.steps})", "shorten the warm-up", "warmup_steps")
        if (self.lr_scheduler == "original") != (self.steps_per_epoch is not None):
            rule = "set with lr_scheduler `original`, and with no other"
            raise rule_error(rule, "set both or neither", "steps_per_epoch")
        return self
