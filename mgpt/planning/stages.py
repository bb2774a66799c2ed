"""The plan of every stage of an experiment: from settings to parameters, memory, FLOPs, hours and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from mgpt.config import Settings
from mgpt.config.evaluation import GenerationSettings
from mgpt.config.models import ModelSettings
from mgpt.config.training import TrainingSettings
from mgpt.models.presets import preset_parts
from mgpt.planning.accelerators import Accelerator
from mgpt.planning.datasets import lengths
from mgpt.planning.features import UNKNOWN, is_cached
from mgpt.planning.memory import BYTES, Kinds, Memory, Rows, Way, inference_memory, training_memory
from mgpt.planning.sizes import Sizes, parts_of_folders, sizes_of
from mgpt.planning.work import Lengths, position_count, prefill_flops, training_flops

_PUBLISHED = Path(__file__).with_name("published.yaml")
_PROMPT = 60  # text tokens of a prompt in generation, about


@dataclass(frozen=True)
class Published:
    """A published run of a stage, on A100."""

    gpus: int | None
    hours: float | None
    score: str | None
    source: str
    mfu: float | None = None


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs. `flops` and `tokens` are of one sample, `memory` of one worker, `hours` of the whole stage at `mfu`, the share
    of the device's peak; those of a stage that needs no accelerator are None.
    """

    name: str
    gpus: int
    samples: int
    sizes: Sizes | None = None
    tokens: float = 0.0
    flops: float = 0.0
    memory: Memory | None = None
    mfu: float = 0.0
    hours: float | None = None
    cost: float | None = None
    assumption: str = ""


@cache
def published() -> dict[str, Published]:
    """Published runs by stage."""
    return {
        name: Published(**values) for name, values in yaml.safe_load(_PUBLISHED.read_text(encoding="utf-8")).items()
    }


@dataclass(frozen=True)
class Means:
    """What the stages run on: workers and MFU of all training stages, and those that differ, by stage. `workers` None: as many as the
    settings say."""

    device: Accelerator
    mfu: float
    workers: int | None = None
    workers_of: Mapping[str, int] = field(default_factory=dict)
    mfu_of: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def as_published(cls, device: Accelerator, mfu: float) -> Means:
        """Each stage on as many workers as its published run."""
        known = published()
        workers = {name: one.gpus for name, one in known.items() if one.gpus}
        return cls(device, mfu, None, workers, {name: one.mfu for name, one in known.items() if one.mfu})


def plan(settings: Settings, means: Means) -> list[StagePlan]:
    """The plan of all stages, in their order. Raises ValueError where sizes or lengths are not known."""
    stages = [StagePlan("download", 0, 0), StagePlan("curate", 0, 0)]
    stages += _trainings(settings, "pretrain", means)
    stages += _describe(settings, means)
    stages += _trainings(settings, "multitask", means) + _trainings(settings, "instruct", means)
    stages += _evaluations(settings, means)
    return stages + [StagePlan(f"promote@{model_name}", 0, 0) for model_name in settings.promote]


def _trainings(settings: Settings, stage: str, means: Means) -> list[StagePlan]:
    return [training_plan(settings, stage, model_name, means) for model_name in getattr(settings, stage)]


def training_plan(settings: Settings, stage: str, model_name: str, means: Means) -> StagePlan:
    """The plan of one training stage of a model."""
    name, device = f"{stage}@{model_name}", means.device
    training: TrainingSettings = getattr(settings, stage)[model_name]
    model, sizes, sample = settings.models[model_name], sizes_for(settings, model_name), lengths(settings, training)
    cached = is_cached(settings, training, sizes)
    flops = training_flops(sizes, sample, recomputed=model.checkpoint_language, cached=cached)
    samples, kinds = training.steps * training.global_batch_size, kinds_of(model, training)
    gpus = means.workers or means.workers_of.get(name, settings.cluster.training.workers)
    mfu = means.mfu_of.get(name, means.mfu)
    hours = flops.executed * samples / (gpus * device.flops[kinds.computed] * mfu) / 3600
    memory = training_plan_memory(settings, stage, model_name, device)
    tokens, cost = position_count(sizes, sample), hours * gpus * device.price
    assumption = UNKNOWN if training.features == "auto" and not cached else ""
    return StagePlan(name, gpus, samples, sizes, tokens, flops.counted, memory, mfu, hours, cost, assumption)


def training_plan_memory(settings: Settings, stage: str, model_name: str, device: Accelerator) -> Memory:
    """Memory of one worker of a training stage."""
    training: TrainingSettings = getattr(settings, stage)[model_name]
    model, sizes, sample = settings.models[model_name], sizes_for(settings, model_name), lengths(settings, training)
    workers = settings.cluster.training
    shards = workers.workers if workers.parallelism == "fsdp" else 1
    features = training.features_dtype if is_cached(settings, training, sizes) else None
    way = Way(_attention(model, training), model.checkpoint_language, features, device.name != "cpu")
    return training_memory(
        sizes, longest_rows(sizes, sample, training), kinds_of(model, training), way, shards=shards, device=device
    )


def _attention(model: ModelSettings, training: TrainingSettings) -> str:
    """Of padded rows `varlen` knows no bounds: it is SDPA there, which is transformers' choice too."""
    padded = training.pack_tokens is None
    return (
        model.attn_implementation
        if model.attn_implementation and not (padded and model.attn_implementation == "varlen")
        else "sdpa"
    )


def kinds_of(model: ModelSettings, training: TrainingSettings) -> Kinds:
    """How numbers are held: under autocast in bf16, else in the backbones' own type."""
    return Kinds(model.precision, model.quantization, "bf16" if training.precision == "bf16" else model.precision)


def longest_rows(sizes: Sizes, sample: Lengths, training: TrainingSettings) -> Rows:
    """The fullest forward pass: a micro-batch of the longest samples. Packed rows are as long as they may be, and full of those."""
    length = sample.longest + (sizes.image_tokens if sample.images else 0)
    rows, samples, row = training.micro_batch_size, training.micro_batch_size, length
    if training.pack_tokens is not None:
        rows = max(1, training.micro_batch_size * length // training.pack_tokens)  # as mgpt.training.batch.cut_packed
        row = min(training.pack_tokens, training.global_batch_size * length)
        samples = max(1, rows * row // length)
    return Rows(rows, row, samples, samples * sample.longest_answer, samples if sample.images else 0)


def sizes_for(settings: Settings, model_name: str) -> Sizes:
    """Sizes of a model's model: of its backbones where their source lies on this machine, else of the published model that it names.

    Raises ValueError where there is neither.
    """
    model = settings.models[model_name]
    folders = [_folder(settings, name) if name else None for name in (model.vision, model.language, model.qformer)]
    vision, language, qformer = folders
    if vision is not None and language is not None and (qformer is not None or model.qformer is None):
        parts: Mapping[str, Any] = parts_of_folders(vision, language, qformer)
    elif model.preset is not None:
        parts = preset_parts(model.preset)
        parts = parts if model.qformer else {**parts, "qformer_config": None}
    else:
        raise ValueError(
            f"models.{model_name}: the backbones {model.vision} and {model.language} are not on this machine, so their sizes are unknown; "
            f"name the published model whose sizes they have in models.{model_name}.preset"
        )
    return sizes_of(parts, model.merge, model.lora, model.image_size)


def _folder(settings: Settings, name: str) -> Path | None:
    """The local folder of a base `SOURCE/FOLDER`, where its source has one with a `config.json`."""
    source, _, below = name.partition("/")
    for location in settings.sources[source].locations if source in settings.sources else ():
        if location.startswith("package://"):
            package, _, inside = location.removeprefix("package://").partition("/")
            root = Path(str(resources.files(package))) / inside
        elif "://" in location:
            continue
        else:
            root = Path(location).expanduser()
        if (root / below / "config.json").is_file():
            return root / below
    return None


def _describe(settings: Settings, means: Means) -> list[StagePlan]:
    section = settings.describe
    if section is None:
        return []
    tokens = section.max_new_tokens * (2 if section.continue_below else 1)
    work = _Generation("describe", "minigpt4", section.generation, ((section.images, tokens),))
    return [_generation(settings, work, means, "every answer as long as it may be, and continued once")]


def _evaluations(settings: Settings, means: Means) -> list[StagePlan]:
    plans = []
    for model_name, section in settings.evaluate.items():
        earlier = len(section.checkpoints) - 1
        asked = tuple((task.examples + earlier * task.early_examples, task.max_new_tokens) for task in section.tasks.values())
        work = _Generation(f"evaluate@{model_name}", model_name, section.generation, asked)
        plans.append(_generation(settings, work, means, "every answer as long as it may be"))
    return plans


@dataclass(frozen=True)
class _Generation:
    """A stage that generates. `asked`: how many answers of at most how many tokens."""

    name: str
    model_name: str
    settings: GenerationSettings
    asked: tuple[tuple[int, int], ...]


def _generation(settings: Settings, work: _Generation, means: Means, assumption: str) -> StagePlan:
    """Prompts run at the device's FLOPs; each new token of a batch reads the weights once, at its bandwidth."""
    how, device, sizes = work.settings, means.device, sizes_for(settings, work.model_name)
    prompt, longest = sizes.image_tokens + _PROMPT, max(tokens for _, tokens in work.asked)
    samples, peak = sum(count for count, _ in work.asked), device.flops[how.precision]
    reading = (sizes.frozen * BYTES[how.precision] + sizes.trainable * 4) / device.bandwidth
    readings = sum(-(-count // how.batch_size) * tokens for count, tokens in work.asked)
    decoding = sum(count * tokens for count, tokens in work.asked) * 2 * sizes.language.linear / peak
    flops = prefill_flops(sizes, prompt)
    hours = (samples * flops / peak + max(readings * reading, decoding)) / (how.workers * means.mfu) / 3600
    memory = inference_memory(
        sizes, how.batch_size, prompt + longest, Kinds(how.precision, None, how.precision), device
    )
    cost = hours * how.workers * device.price
    return StagePlan(
        work.name, how.workers, samples, sizes, prompt + longest, flops, memory, means.mfu, hours, cost, assumption
    )
