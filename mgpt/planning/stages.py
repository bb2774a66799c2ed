"""Plan of every stage of an experiment: parameters, memory, FLOPs, hours and cost from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from mgpt.config import Settings, section
from mgpt.config.evaluation import GenerationSettings
from mgpt.config.models import ModelSettings
from mgpt.config.training import TrainingSettings
from mgpt.models.presets import preset_parts
from mgpt.planning.accelerators import Accelerator
from mgpt.planning.datasets import mixture_lengths
from mgpt.planning.features import UNDECIDED, is_cached
from mgpt.planning.flops import Lengths, position_count, prefill_flops, training_flops
from mgpt.planning.memory import BYTES, BatchShape, Dtypes, Memory, StepOptions, inference_memory, training_memory
from mgpt.planning.sizes import ModelSizes, configs_from_folders, sizes_from_configs

_PUBLISHED = Path(__file__).with_name("published.yaml")
_PROMPT_TOKENS = 60  # text tokens of a prompt in generation, about


@dataclass(frozen=True)
class PublishedRun:
    """A published run of a stage, on A100s. `mfu`: used in place of the common value when planning this stage."""

    gpus: int | None
    hours: float | None
    score: str | None
    source: str
    mfu: float | None = None


@dataclass(frozen=True)
class StagePlan:
    """Resources of one stage; fields of a stage that needs no accelerator are zero or None.

    Attributes:
        tokens: of one sample.
        flops: of one sample, without recomputation.
        memory: of one worker.
        mfu: share of the device's peak at which the hours are planned.
        hours: of the whole stage.
        cost: of the whole stage, in dollars.
        assumption: made in place of something unknown.
    """

    name: str
    gpus: int
    samples: int
    sizes: ModelSizes | None = None
    tokens: float = 0.0
    flops: float = 0.0
    memory: Memory | None = None
    mfu: float = 0.0
    hours: float | None = None
    cost: float | None = None
    assumption: str = ""


@cache
def published_runs() -> dict[str, PublishedRun]:
    """Returns the published runs by stage name."""
    content = yaml.safe_load(_PUBLISHED.read_text(encoding="utf-8"))
    return {name: PublishedRun(**values) for name, values in content.items()}


@dataclass(frozen=True)
class Resources:
    """Device, MFU and workers of all training stages, with exceptions by stage name.

    `workers` None: as in the settings.
    """

    device: Accelerator
    mfu: float
    workers: int | None = None
    workers_by_stage: Mapping[str, int] = field(default_factory=dict)
    mfu_by_stage: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def as_published(cls, device: Accelerator, mfu: float) -> Resources:
        """Gives each stage as many workers as its published run had."""
        runs = published_runs()
        workers = {name: run.gpus for name, run in runs.items() if run.gpus}
        return cls(device, mfu, None, workers, {name: run.mfu for name, run in runs.items() if run.mfu})


def plan(settings: Settings, resources: Resources) -> list[StagePlan]:
    """Plans all stages, in their order. Raises ValueError where model sizes or text lengths are unknown."""
    stages = [StagePlan("download", 0, 0), StagePlan("curate", 0, 0)]
    stages += _training_plans(settings, "pretrain", resources)
    stages += _describe_plans(settings, resources)
    stages += _training_plans(settings, "multitask", resources) + _training_plans(settings, "instruct", resources)
    stages += _evaluation_plans(settings, resources)
    return stages + [StagePlan(f"promote@{model_name}", 0, 0) for model_name in settings.promote]


def _training_plans(settings: Settings, stage: str, resources: Resources) -> list[StagePlan]:
    return [training_plan(settings, stage, model_name, resources) for model_name in getattr(settings, stage)]


def training_plan(settings: Settings, stage: str, model_name: str, resources: Resources) -> StagePlan:
    """Plans one training stage of a model."""
    name, device = f"{stage}@{model_name}", resources.device
    training: TrainingSettings = section(settings, stage, model_name)
    model, sizes, lengths = _inputs(settings, training, model_name)
    cached = is_cached(settings, training, sizes)
    flops = training_flops(sizes, lengths, recompute=model.checkpoint_language, cached=cached)
    samples = training.steps * training.global_batch_size
    gpus = resources.workers or resources.workers_by_stage.get(name, settings.cluster.training.workers)
    mfu = resources.mfu_by_stage.get(name, resources.mfu)
    hours = flops.executed * samples / (gpus * device.flops[dtypes_of(model, training).compute] * mfu) / 3600
    return StagePlan(
        name,
        gpus,
        samples,
        sizes,
        position_count(sizes, lengths),
        flops.counted,
        training_plan_memory(settings, stage, model_name, device),
        mfu,
        hours,
        hours * gpus * device.price,
        UNDECIDED if training.features == "auto" and not cached else "",
    )


def training_plan_memory(settings: Settings, stage: str, model_name: str, device: Accelerator) -> Memory:
    """Computes the memory of one worker of a training stage."""
    training: TrainingSettings = section(settings, stage, model_name)
    model, sizes, lengths = _inputs(settings, training, model_name)
    workers = settings.cluster.training
    shards = workers.workers if workers.parallelism == "fsdp" else 1
    features = training.features_dtype if is_cached(settings, training, sizes) else None
    attention = _attention(model, training)
    options = StepOptions(attention, model.checkpoint_language, features, device.name != "cpu")
    batch, dtypes = longest_batch(sizes, lengths, training), dtypes_of(model, training)
    return training_memory(sizes, batch, dtypes, options, shards=shards, device=device)


def _inputs(
    settings: Settings, training: TrainingSettings, model_name: str
) -> tuple[ModelSettings, ModelSizes, Lengths]:
    return settings.models[model_name], model_sizes(settings, model_name), mixture_lengths(settings, training)


def _attention(model: ModelSettings, training: TrainingSettings) -> str:
    """Returns the attention of a training: SDPA by default, and for padded rows, which `varlen` does not take."""
    chosen = model.attn_implementation or "sdpa"
    return "sdpa" if chosen == "varlen" and training.pack_tokens is None else chosen


def dtypes_of(model: ModelSettings, training: TrainingSettings) -> Dtypes:
    """Returns the number formats of a stage: it computes in bf16 under autocast, else in the backbones' format."""
    return Dtypes(model.precision, model.quantization, "bf16" if training.precision == "bf16" else model.precision)


def longest_batch(sizes: ModelSizes, lengths: Lengths, training: TrainingSettings) -> BatchShape:
    """Returns the largest forward pass: a micro-batch of the longest samples, or packed rows filled with them."""
    row = lengths.longest + (sizes.image_tokens if lengths.images else 0)
    rows = samples = training.micro_batch_size
    length = row
    if training.pack_tokens is not None:
        rows = max(1, training.micro_batch_size * row // training.pack_tokens)  # as mgpt.training.batch.cut_packed
        length = min(training.pack_tokens, training.global_batch_size * row)
        samples = max(1, rows * length // row)
    return BatchShape(rows, length, samples, samples * lengths.longest_answer, samples if lengths.images else 0)


def model_sizes(settings: Settings, model_name: str) -> ModelSizes:
    """Returns a model's sizes: from its backbones if they are on this machine, else from its preset.

    Raises:
        ValueError: there is neither.
    """
    model = settings.models[model_name]
    folders = [
        _local_folder(settings, name) if name else None for name in (model.vision, model.language, model.qformer)
    ]
    vision, language, qformer = folders
    if vision is not None and language is not None and (qformer is not None or model.qformer is None):
        configs: Mapping[str, Any] = configs_from_folders(vision, language, qformer)
    elif model.preset is not None:
        configs = preset_parts(model.preset)
        configs = configs if model.qformer else {**configs, "qformer_config": None}
    else:
        raise ValueError(
            f"models.{model_name}: the backbones {model.vision} and {model.language} are not on this machine, so their "
            f"sizes are unknown; set models.{model_name}.preset to the published model of the same sizes"
        )
    return sizes_from_configs(configs, model.merge, model.lora, model.image_size)


def _local_folder(settings: Settings, name: str) -> Path | None:
    """Returns the local folder of a backbone `SOURCE/FOLDER`, where a location of its source has its `config.json`."""
    source, _, below = name.partition("/")
    for location in settings.sources[source].locations if source in settings.sources else ():
        if location.startswith("package://"):
            package, _, inside = location.removeprefix("package://").partition("/")
            root = Path(str(files(package))) / inside
        elif "://" in location:
            continue
        else:
            root = Path(location).expanduser()
        if (root / below / "config.json").is_file():
            return root / below
    return None


@dataclass(frozen=True)
class _Generation:
    """The work of a stage that generates. `answers`: pairs of a number of answers and their maximum of new tokens."""

    name: str
    model_name: str
    settings: GenerationSettings
    answers: tuple[tuple[int, int], ...]


def _describe_plans(settings: Settings, resources: Resources) -> list[StagePlan]:
    describe = settings.describe
    if describe is None:
        return []
    tokens = describe.max_new_tokens * (2 if describe.continue_below else 1)
    work = _Generation("describe", "minigpt4", describe.generation, ((describe.images, tokens),))
    return [_generation_plan(settings, work, resources, "every answer has its maximum length, and is continued once")]


def _evaluation_plans(settings: Settings, resources: Resources) -> list[StagePlan]:
    plans = []
    for model_name, evaluate in settings.evaluate.items():
        earlier = len(evaluate.checkpoints) - 1
        answers = tuple(
            (task.examples + earlier * task.early_examples, task.max_new_tokens) for task in evaluate.tasks.values()
        )
        work = _Generation(f"evaluate@{model_name}", model_name, evaluate.generation, answers)
        plans.append(_generation_plan(settings, work, resources, "every answer has its maximum length"))
    return plans


def _generation_plan(settings: Settings, work: _Generation, resources: Resources, assumption: str) -> StagePlan:
    """Plans prompts at the device's FLOP/s, and new tokens at its bandwidth: each reads the weights once per batch."""
    options, device, sizes = work.settings, resources.device, model_sizes(settings, work.model_name)
    length = sizes.image_tokens + _PROMPT_TOKENS + max(tokens for _, tokens in work.answers)
    samples, peak = sum(count for count, _ in work.answers), device.flops[options.precision]
    read = (sizes.frozen * BYTES[options.precision] + sizes.trainable * 4) / device.bandwidth
    reading = read * sum(-(-count // options.batch_size) * tokens for count, tokens in work.answers)
    decoding = sum(count * tokens for count, tokens in work.answers) * 2 * sizes.language.linear / peak
    flops = prefill_flops(sizes, sizes.image_tokens + _PROMPT_TOKENS)
    hours = (samples * flops / peak + max(reading, decoding)) / (options.workers * resources.mfu) / 3600
    dtypes = Dtypes(options.precision, None, options.precision)
    memory = inference_memory(sizes, options.batch_size, length, dtypes, device)
    cost = hours * options.workers * device.price
    return StagePlan(
        work.name, options.workers, samples, sizes, length, flops, memory, resources.mfu, hours, cost, assumption
    )
