"""Requests, results and file names of jobs and trainings. Imports neither ray, torch nor mlflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mgpt.config.training import TrainingSettings, WorkerSettings
from mgpt.models.loading import ModelSpec
from mgpt.storage import Manifest

# Below a run's URI: the loss curve as it grows, the samples of each step, and the record of a finished run.
CURVE, SAMPLE_LOG, FINISHED = "curve.csv", "sample_log.json", "finished.json"
STARTED = "started.json"  # written by the driver: a worker that does not see it has another store
WEIGHTS = "weights"  # folder of a stage's results that holds the trained weights
# Environment variable that gives a job the digests of its inputs by path, as JSON.
JOB_INPUTS = "MGPT_JOB_INPUTS"


@dataclass(frozen=True)
class JobSpec:
    """A stage as a Ray job. `name` is the stage's name in dvc.yaml; `inputs` are its declared input paths."""

    name: str
    stage: str
    model_name: str | None
    fingerprint: str
    inputs: tuple[str, ...]

    @property
    def submission_id(self) -> str:
        """The job's id: readable, and the same for the same work."""
        return f"{self.name.replace('@', '-')}-{self.fingerprint}"


class TrackerProtocol(Protocol):
    """The part of `mgpt.tracking.runs.Tracker` that training uses."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None: ...


@dataclass(frozen=True)
class TrainRequest:
    """One training stage.

    Args:
        manifest: curated data.
        backbones: folders or URIs of the backbones by part (`vision`, `language`, `qformer`).
        store_root: root of the store that receives the trained weights.
        run_uri: folder of the run's checkpoints and records; its last part is the stage's fingerprint.
        out: existing local folder that receives `weights/` and `curve.csv`.
        weights: local folder of the weights to start from; None for a newly initialised model.
        init: keywords of `MiniGPTForConditionalGeneration.from_backbones` for a newly initialised model.
        loading: how the model is held in memory, as in `mgpt.models.loading`.
        task_files: task definitions besides the built-in ones.
        features: URI of the feature cache; None for no cache, whatever the settings say.
    """

    settings: TrainingSettings
    workers: WorkerSettings
    manifest: Manifest
    backbones: dict[str, str]
    store_root: str
    run_uri: str
    out: Path
    weights: Path | None = None
    init: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    tracker: TrackerProtocol | None = None
    task_files: tuple[str, ...] = ()
    features: str | None = None


@dataclass(frozen=True)
class WorkerArgs:
    """Arguments of a training worker. `model` is where the model starts from."""

    settings: TrainingSettings
    workers: WorkerSettings
    model: ModelSpec
    store_root: str
    run_uri: str


@dataclass(frozen=True)
class CacheReport:
    """Use and cost of the feature cache in one training.

    Args:
        folder: URI of the cached features; None where the cache is off and nothing was computed.
        shows: images shown in all steps.
        images: distinct images among them.
        size: bytes of all features.
        computed: images computed by this run; the others were cached before.
        seconds: wall time of the computation, process start included.
        work_seconds: wall time for which processes computed in parallel.
        image_seconds: time of one process for one image.
        processes: number of training workers.
    """

    folder: str | None
    shows: int
    images: int
    size: int = 0
    computed: int = 0
    seconds: float = 0.0
    work_seconds: float = 0.0
    image_seconds: float = 0.0
    processes: int = 1

    def estimate(self) -> str:
        """Returns how often images are shown, which decides whether the cache pays."""
        if not self.images:
            return "off"
        shown = f"{self.shows} images shown, {self.images} of them distinct ({self.shows / self.images:.1f} times each)"
        size = f", {self.size / 1e6:.0f} MB of features" if self.size else ""
        return f"{'on' if self.folder else 'off'}: {shown}{size}"

    def effect(self, step_seconds: float, steps: int) -> str:
        """Returns the estimate, the cost of the cache, and the time saved in `steps` steps of `step_seconds`."""
        if self.folder is None:
            return self.estimate()
        saved_per_step = self.image_seconds * self.shows / steps / self.processes
        cost = f"computed {self.computed} in {self.seconds:.1f} s, {self.images - self.computed} were cached"
        without = f"a step without it about {step_seconds + saved_per_step:.3f} s"
        return f"{self.estimate()}; {cost}; {without}, so {saved_per_step * steps:.0f} s saved in {steps} steps"


@dataclass(frozen=True)
class TrainResult:
    """Result of a training stage.

    Args:
        weights: local folder of the trained weights, below the request's `out`.
        digest: digest of that folder in the artifact store.
        curve: rows of the loss curve.
        steps: all steps of the run.
        resumed_from: step at which this call started; equal to `steps` if the run was finished.
        sha256: hash of `trainable.safetensors`.
        stalls: seconds for which each checkpoint since the last start of the workers blocked training.
        cached: use of the feature cache; None if none was requested.
    """

    weights: Path
    digest: str
    curve: list[dict[str, float]]
    steps: int
    resumed_from: int
    sha256: str
    stalls: tuple[float, ...] = ()
    cached: CacheReport | None = None
