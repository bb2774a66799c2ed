"""Runs one stage: fingerprint, finished work, local Ray or a Ray job, the MLflow run, times, summary, and the outputs
in one step.

A flow hands `run` a body that does the stage's work; everything around the work is here, once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mgpt.config import JOB_FINGERPRINT, Settings, load_settings, section
from mgpt.config.restricted_view import DeclaredView
from mgpt.execution import jobs
from mgpt.execution.session import connect, inside_job, start, state_folder
from mgpt.execution.types import JOB_INPUTS, JobSpec
from mgpt.pipeline.check import load_checked_settings
from mgpt.pipeline.dvc_yaml import check_dvc_yaml
from mgpt.pipeline.fingerprint import Fingerprints, input_digests, param_values
from mgpt.pipeline.preflight import check_inputs, preflight
from mgpt.pipeline.stages import Stage, find_stage
from mgpt.pipeline.timing import Clock
from mgpt.storage import Manifest, Store, is_remote, write_atomic
from mgpt.storage.artifacts import ArtifactStore, replace_folder
from mgpt.storage.names import (
    DATA_STAGES,
    FINISHED_STAGES,
    MLFLOW_ARTIFACTS,
    PARAMS_FILE,
    RESULTS,
    RUN_FILE,
    RUNS,
    STAGING,
    SUMMARY_FILE,
    TIMING_FILE,
    WEIGHTS,
    stage_name,
)
from mgpt.tracking.runs import Tracker

_WIDTH = 100  # columns of the summary


@dataclass(frozen=True)
class Work:
    """A stage's work in a project: the declared stage, its settings and store, and the fingerprint of all that."""

    stage: Stage
    fingerprint: str
    settings: Settings
    store: Store
    project: Path

    @property
    def artifacts(self) -> ArtifactStore:
        """The artifacts of the store."""
        return ArtifactStore(self.store)

    @property
    def staging(self) -> Path:
        """The folder of outputs until all of them are written."""
        return self.project / RESULTS / STAGING / self.fingerprint

    @property
    def job(self) -> JobSpec:
        """The work as a Ray job: the inputs, and the run file of each that says where it comes from."""
        paths = {one.path for one in self.stage.inputs}
        files = [_run_file(self.project, path) for path in paths]
        paths |= {file.relative_to(self.project).as_posix() for file in files if file is not None}
        stage = self.stage
        return JobSpec(stage.name, stage.stage, stage.model_name, self.fingerprint, tuple(sorted(paths)))


@dataclass(frozen=True)
class StageContext:
    """Inputs of a stage's body.

    `settings` shows the keys that the stage declares; another read raises. `run_uri` is the folder of live checkpoints,
    outside DVC. `out` is a staging folder: what the body writes there becomes the stage's results in one step, when all
    is done.
    """

    declared: Stage
    settings: Settings
    fingerprint: str
    project: Path
    store: Store
    run_uri: str
    out: Path
    tracker: Tracker
    clock: Clock

    @property
    def stage(self) -> str:
        """The stage's name without the model."""
        return self.declared.stage

    @property
    def model_name(self) -> str:
        """The model of a stage that runs once per model."""
        assert self.declared.model_name is not None, self.declared.name
        return self.declared.model_name

    @property
    def section(self) -> Any:
        """The settings of this stage (and model)."""
        return section(self.settings, self.stage, self.declared.model_name)

    @contextmanager
    def work(self, name: str) -> Iterator[None]:
        """Counts the block's time as work; the rest of the stage's time is orchestration."""
        with self.clock.measure(name):
            yield

    def worked(self, name: str, seconds: float) -> None:
        """Counts work that was measured elsewhere, in workers for instance."""
        self.clock.add(name, seconds)

    def result(self, stage: str, model_name: str | None = None) -> Path:
        """Returns the results folder of an input stage. Raises ValueError where it is not there."""
        folder = self.project / RESULTS / stage / (model_name or "")
        if not folder.is_dir():
            raise ValueError(f"{folder} is not there; run `dvc repro {stage_name(stage, model_name)}` first")
        return folder

    def manifest(self, *stages: str) -> Manifest:
        """Returns the files that this stage uses of what the named stages list, those among them that it reads."""
        inputs = [one for one in self.declared.inputs if one.is_manifest and one.path.split("/")[1] in stages]
        return Manifest([entry for one in inputs for entry in one.entries(self.project)])

    def weights(self) -> dict[str, Path]:
        """Returns the folders of trained weights among the inputs by training stage, in the order of training."""
        paths = [one.path for one in self.declared.inputs if one.path.endswith(f"/{WEIGHTS}")]
        return {path.split("/")[1]: self.project / path for path in paths}

    @contextmanager
    def ray(self) -> Iterator[None]:
        """Connects to Ray for the block: the local one that stages share, or the cluster whose job this is.

        Raises ValueError where inputs are not as their manifests list them, or the cluster is not fit for the stage.
        """
        if not inside_job():
            check_inputs(self.declared, self.project, self.store)
        with connect(self.settings.cluster, self.project):
            if inside_job():
                preflight(self.declared, load_settings(self.project / PARAMS_FILE), self.project, self.store)
            yield

    def warm_ray(self) -> None:
        """Starts the local Ray without waiting for it, for the stages that follow."""
        if not inside_job():
            start(self.settings.cluster, self.project)


Body = Callable[[StageContext], Mapping[str, object]]


def run(stage: str, model_name: str | None, body: Body, *, dry: bool = False) -> None:
    """Runs one stage, or restores what the same work gave before.

    Args:
        body: does the work and returns the rows of the summary.
        dry: only prints the fingerprint, and what would happen.

    Raises:
        ValueError: settings, inputs or the store are not as they must be; nothing was started.
    """
    project = Path.cwd()
    clock = Clock(project)
    settings = load_checked_settings(project / PARAMS_FILE)
    declared = find_stage(settings, stage, model_name)
    store = Store(settings.storage.root)
    ArtifactStore(store).check_format(create=not dry)
    if JOB_INPUTS in os.environ:
        _fetch_inputs(store, project)
    in_job = JOB_FINGERPRINT in os.environ
    if not in_job:
        check_dvc_yaml(settings, project)
    fingerprints = Fingerprints.of(project, settings)
    fingerprint = os.environ[JOB_FINGERPRINT] if in_job else fingerprints.fingerprint(declared)
    work = Work(declared, fingerprint, settings, store, project)
    if dry:
        print(f"{declared.name}  {fingerprint}  {_state(work, fingerprints)}")
        return
    with _alone(work):
        if work.artifacts.outputs(fingerprint) is None:
            if in_job or not settings.cluster.address:
                _execute(work, body, clock)
                return
            jobs.follow(work.job, settings, store, project)
        _restore(work)


def _state(work: Work, fingerprints: Fingerprints) -> str:
    """Returns what `--dry` prints: the work is finished, runs, or is to be done."""
    changed = fingerprints.changed_before(work.stage)
    if certain := [name for name in changed if name not in DATA_STAGES]:
        return f"would run after {', '.join(certain)}, whose results are of other work"
    if work.artifacts.outputs(work.fingerprint) is not None:
        after = f", unless {' and '.join(changed)}, still to run, changes the data" if changed else ""
        return f"finished: the outputs are in the store{after}"
    if work.settings.cluster.address:
        return jobs.job_state(work.job, work.settings.cluster)
    begun = work.store.exists(work.store.uri(RUNS, work.fingerprint))
    return "would run here, on a local Ray" + (", from the last checkpoint" if begun else "")


def _execute(work: Work, body: Body, clock: Clock) -> None:
    """Does the work: MLflow run, body, records, results."""
    stage, store, staging = work.stage, work.store, work.staging
    store.check()
    print(f"{stage.name}: fingerprint {work.fingerprint}, store {store.root}", flush=True)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with _tracked(work) as tracker:
        view = cast(Settings, DeclaredView(work.settings, stage.params, stage.name))
        run_uri = store.uri(RUNS, work.fingerprint)
        context = StageContext(stage, view, work.fingerprint, work.project, store, run_uri, staging, tracker, clock)
        rows = dict(body(context))
        _write_json(staging / RUN_FILE, _record(work))
        text = _summary(stage, rows, clock, tracker)
        write_atomic(staging / SUMMARY_FILE, text.encode())
        tracker.log_artifact(staging / SUMMARY_FILE)
        timing = clock.reading()
        _write_json(staging / TIMING_FILE, timing)
        missing = [name for name in stage.written if not (staging / name).exists()]
        assert not missing, f"{stage.name} did not write {', '.join(missing)}, which it declares"
        names = ("seconds", "cpu_seconds")
        tracker.log_metrics({name: timing[name] for name in names} | {"work_seconds": sum(timing["work"].values())})
        work.artifacts.commit(work.fingerprint, staging, [path.name for path in staging.iterdir()])
    replace_folder(staging, work.project / stage.folder)
    print(text, flush=True)


def _restore(work: Work) -> None:
    outputs = work.artifacts.outputs(work.fingerprint)
    if outputs is None:
        raise RuntimeError(
            f"{work.stage.name} ended without a record of {work.fingerprint} in {work.store.root}; see its log"
        )
    folder = work.project / work.stage.folder
    work.artifacts.restore(work.fingerprint, outputs, work.staging, folder)
    print((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    print(f"{work.stage.name}: this work ({work.fingerprint}) is finished; its outputs are in {work.stage.folder}")


@contextmanager
def _tracked(work: Work) -> Iterator[Tracker]:
    """Opens the stage's MLflow run; it ends as FAILED when the block raises."""
    tracker = Tracker.open(
        work.settings.tracking,
        stage=work.stage.stage,
        model_name=work.stage.model_name,
        fingerprint=work.fingerprint,
        project=work.project,
        artifacts=work.store.uri(MLFLOW_ARTIFACTS),
        inputs=input_digests(work.project, work.stage),
    )
    tracker.log_params(param_values(work.stage, work.settings))
    try:
        yield tracker
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish()


@contextmanager
def _alone(work: Work) -> Iterator[None]:
    """Holds the fingerprint's lock: killing `dvc` leaves its stage running, and a second one must wait for it.

    With a remote store this covers the processes of one machine; between machines a job's submission id does. A job's
    client holds the lock for it.
    """
    if JOB_FINGERPRINT in os.environ:
        yield
        return
    folder = state_folder(work.project) if is_remote(work.store.root) else Path(work.store.uri(FINISHED_STAGES))
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{work.fingerprint}.lock", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"the same work ({work.fingerprint}) runs in another process; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_inputs(store: Store, project: Path) -> None:
    """In a job: puts the inputs, which the client kept in the store, where the stage reads them."""
    for path, digest in json.loads(os.environ[JOB_INPUTS]).items():
        ArtifactStore(store).get(digest, project / path)


def _record(work: Work) -> dict[str, Any]:
    """Returns the content of run.json: the fingerprint, its parts, and the fingerprints of all stages before; equal for
    equal work.
    """
    lineage: dict[str, str] = {}
    for one in work.stage.inputs:
        file = _run_file(work.project, one.path)
        if file is None:
            raise ValueError(
                f"{one.path} has no {RUN_FILE} next to it, so its origin is not known; run the stage that makes it"
            )
        record = json.loads(file.read_text(encoding="utf-8"))
        lineage |= record["lineage"] | {record["name"]: record["fingerprint"]}
    return {
        "name": work.stage.name,
        "fingerprint": work.fingerprint,
        "params": param_values(work.stage, work.settings),
        "inputs": input_digests(work.project, work.stage),
        "lineage": lineage,
    }


def _run_file(project: Path, path: str) -> Path | None:
    """Returns the run file of the stage whose results a path is part of."""
    return next((folder / RUN_FILE for folder in (project / path).parents if (folder / RUN_FILE).is_file()), None)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def _summary(stage: Stage, rows: Mapping[str, object], clock: Clock, tracker: Tracker) -> str:
    """Returns one screen: what the stage did, how long it took, where its results are."""
    reading = clock.reading()
    orchestration = reading["seconds"] - sum(reading["work"].values())
    shares = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in clock.work.items())
    wall = f"{reading['seconds']:.1f} s, of which orchestration {orchestration:.1f} s"
    table = {
        **rows,
        "time": f"{wall} ({shares})" if shares else wall,
        "CPU time": f"{reading['cpu_seconds']:.1f} s",
        "results": stage.folder,
        "MLflow run": tracker.run_id,
    }
    width = max(len(name) for name in table)
    lines = [f"  {name:<{width}}  {_cell(value, width + 4)}" for name, value in table.items()]
    return "\n".join([f"== {stage.name} ".ljust(_WIDTH, "="), *lines, ""])


def _cell(value: object, indent: int) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return ("\n" + " " * indent).join(text.splitlines())
