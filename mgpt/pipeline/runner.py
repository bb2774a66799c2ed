"""Runs one stage of the pipeline: fingerprint, "already finished", local Ray or a Ray job, the MLflow run, time, summary, and the outputs in
one step.

A flow hands `run` a body that does the stage's work; everything around the work is here, once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mgpt.config import JOB_FINGERPRINT, Settings, load, section
from mgpt.config.restricted_view import DeclaredView
from mgpt.execution.types import JOB_INPUTS, JobSpec
from mgpt.pipeline.fingerprint import RESULTS, Declaration, declaration, declared_values, identify, input_digests
from mgpt.storage import Store, is_remote, write_atomic
from mgpt.storage.artifacts import RECORD, ArtifactStore, replace_folder

if TYPE_CHECKING:
    from mgpt.tracking.runs import Tracker

SUMMARY, TIMING = "summary.txt", "timing.json"


@dataclass
class Clock:
    """Seconds of a stage: those inside `work` blocks are work, the rest of the process's life is orchestration."""

    started: float = field(default_factory=lambda: _process_started())
    work: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the block's time to the named work."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - begun)

    def add(self, name: str, seconds: float) -> None:
        """Adds to the named work."""
        self.work[name] = self.work.get(name, 0.0) + seconds

    def reading(self) -> dict[str, Any]:
        """Seconds until now, as they go into `timing.json`."""
        now = time.time()
        return {"started": self.started, "ended": now, "seconds": now - self.started, "work": dict(self.work)}


@dataclass(frozen=True)
class StageContext:
    """What a stage's body is given.

    `settings` shows the keys that dvc.yaml declares for the stage; another read raises. `run_uri` is where live checkpoints lie, outside
    DVC. `out` is a staging folder: what the body writes there becomes the stage's results in one step, when all is done.
    """

    stage: str
    model_name: str | None
    settings: Settings
    fingerprint: str
    project: Path
    store: Store
    run_uri: str
    out: Path
    tracker: Tracker
    clock: Clock

    @property
    def section(self) -> Any:
        """The settings of this stage (and model)."""
        return section(self.settings, self.stage, self.model_name)

    @contextmanager
    def work(self, name: str) -> Iterator[None]:
        """Time inside is work; the rest is orchestration."""
        with self.clock.measure(name):
            yield

    def worked(self, name: str, seconds: float) -> None:
        """Work that was measured elsewhere, in workers for instance."""
        self.clock.add(name, seconds)

    def result(self, stage: str, model_name: str | None = None) -> Path:
        """The results folder of an input stage. Raises ValueError where it is not there."""
        folder = self.project / RESULTS / stage / (model_name or "")
        if not folder.is_dir():
            raise ValueError(
                f"{folder} is not there; run `dvc repro {stage}{'@' + model_name if model_name else ''}` first"
            )
        return folder

    @contextmanager
    def ray(self) -> Iterator[None]:
        """Connects to Ray for the block: the local one that stages share, or the cluster whose job this is, looked at first.

        Raises ValueError where inputs are not as their manifests say, or the cluster is not fit for the stage.
        """
        from mgpt.execution.session import connect, inside_job
        from mgpt.pipeline.preflight import check_inputs, preflight

        if not inside_job():
            check_inputs(self.stage, self.model_name, self.project, self.store)
        with connect(self.settings.cluster, self.project):
            if inside_job():
                preflight(self.stage, self.model_name, self.project, self.store)
            yield

    def warm_ray(self) -> None:
        """Lets the local Ray come up meanwhile, for the stages that follow."""
        from mgpt.execution.session import inside_job, start

        if not inside_job():
            start(self.settings.cluster, self.project)


Body = Callable[[StageContext], Mapping[str, object]]


def run(
    stage: str, model_name: str | None, body: Body, *, extra: Mapping[str, str] | None = None, dry: bool = False
) -> None:
    """Runs one stage, or brings back what the same work gave before.

    Args:
        body: does the work and returns the rows of the summary.
        extra: digests of inputs that dvc.yaml cannot name; part of the fingerprint.
        dry: only says what would happen.

    Raises:
        ValueError: settings, inputs or the store are not as they must be; nothing was started.
    """
    project, clock = Path.cwd(), Clock()
    settings = load(project / "params.yaml")
    declared = declaration(project, stage, model_name)
    store = Store(settings.storage.root)
    if JOB_INPUTS in os.environ:
        _fetch_inputs(store, project)
    fingerprint = os.environ.get(JOB_FINGERPRINT) or identify(project, declared, settings, extra)
    if dry:
        print(describe(declared, fingerprint, settings, store))
        return
    with _alone(store, fingerprint):
        if ArtifactStore(store).outputs(fingerprint) is None:
            if settings.cluster.address and JOB_FINGERPRINT not in os.environ:
                from mgpt.execution.jobs import follow

                follow(_job(declared, fingerprint), settings, store, project)
            else:
                _execute(declared, fingerprint, settings, store, project, body, clock)
                return
        _bring_back(declared, fingerprint, store, project)


def describe(declared: Declaration, fingerprint: str, settings: Settings, store: Store) -> str:
    """What `--dry` prints: the fingerprint, and whether its work is done, runs, or is to be done."""
    if ArtifactStore(store).outputs(fingerprint) is not None:
        state = "finished: the outputs are in the store"
    elif settings.cluster.address:
        from mgpt.execution.jobs import job_state

        state = job_state(_job(declared, fingerprint), settings.cluster)
    else:
        state = "would run here, on a local Ray" + (
            ", from the last checkpoint" if store.exists(store.uri("runs", fingerprint)) else ""
        )
    return f"{declared.name}  {fingerprint}  {state}"


def _job(declared: Declaration, fingerprint: str) -> JobSpec:
    return JobSpec(declared.name, declared.stage, declared.model_name, fingerprint, tuple(declared.inputs))


def _execute(
    declared: Declaration, fingerprint: str, settings: Settings, store: Store, project: Path, body: Body, clock: Clock
) -> None:
    """Does the work: MLflow run, body, record, results."""
    store.check()
    print(f"{declared.name}: fingerprint {fingerprint}, store {store.root}", flush=True)
    staging = project / RESULTS / ".staging" / fingerprint
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    with _tracked(declared, fingerprint, settings, store, project) as tracker:
        view = cast(Settings, DeclaredView(settings, declared.params, declared.name))
        run_uri = store.uri("runs", fingerprint)
        context = StageContext(
            declared.stage, declared.model_name, view, fingerprint, project, store, run_uri, staging, tracker, clock
        )
        rows = dict(body(context))
        _write_record(declared, fingerprint, settings, project, staging)
        text = summary(declared, rows, clock, tracker)
        write_atomic(staging / SUMMARY, text.encode())
        tracker.log_artifact(staging / SUMMARY)
        _check_outputs(declared, staging)
        timing = clock.reading()
        write_atomic(staging / TIMING, (json.dumps(timing, indent=1, sort_keys=True) + "\n").encode())
        tracker.log_metrics({"seconds": timing["seconds"], "work_seconds": sum(timing["work"].values())})
        ArtifactStore(store).commit(fingerprint, staging, [path.name for path in staging.iterdir()])
    replace_folder(staging, project / declared.folder)
    print(text, flush=True)


def summary(declared: Declaration, rows: Mapping[str, object], clock: Clock, tracker: Tracker) -> str:
    """One screen: what the stage did, how long it took, where things are."""
    reading = clock.reading()
    worked = sum(reading["work"].values())
    shares = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in clock.work.items())
    table = {
        **rows,
        "time": f"{reading['seconds']:.1f} s, of which orchestration {reading['seconds'] - worked:.1f} s"
        + (f" ({shares})" if shares else ""),
        "results": declared.folder,
        "MLflow run": tracker.run_id,
    }
    width = max(len(name) for name in table)
    lines = [f"  {name:<{width}}  {_cell(value, width + 4)}" for name, value in table.items()]
    return "\n".join([f"== {declared.name} ".ljust(100, "="), *lines, ""])


def _cell(value: object, indent: int) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return ("\n" + " " * indent).join(text.splitlines())


@contextmanager
def _tracked(
    declared: Declaration, fingerprint: str, settings: Settings, store: Store, project: Path
) -> Iterator[Tracker]:
    """The stage's MLflow run; it ends as FAILED when the block raises."""
    from mgpt.tracking.runs import Tracker

    tracker = Tracker.open(
        settings.tracking,
        stage=declared.stage,
        model_name=declared.model_name,
        fingerprint=fingerprint,
        project=project,
        artifacts=store.uri("mlflow"),
        inputs=input_digests(project, declared),
    )
    tracker.log_params(declared_values(declared, settings))
    try:
        yield tracker
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish()


@contextmanager
def _alone(store: Store, fingerprint: str) -> Iterator[None]:
    """Holds the fingerprint's lock: killing `dvc` leaves its stage running, and a second one must wait for it, not work beside it.

    With a store on S3 this covers the processes of one machine; between machines a job's submission id does. A job's client holds the lock
    for it.
    """
    from mgpt.execution.session import state_folder

    if JOB_FINGERPRINT in os.environ:
        yield
        return
    folder = state_folder(Path.cwd()) if is_remote(store.root) else Path(store.uri("stages"))
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        lock = stack.enter_context(open(folder / f"{fingerprint}.lock", "ab"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"the same work ({fingerprint}) is under way in another process; waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _bring_back(declared: Declaration, fingerprint: str, store: Store, project: Path) -> None:
    outputs = ArtifactStore(store).outputs(fingerprint)
    if outputs is None:
        raise RuntimeError(f"{declared.name} ended without a record of {fingerprint} in {store.root}; see its log")
    ArtifactStore(store).restore(
        fingerprint, outputs, project / RESULTS / ".staging" / fingerprint, project / declared.folder
    )
    print((project / declared.folder / SUMMARY).read_text(encoding="utf-8"))
    print(f"{declared.name}: this work ({fingerprint}) is finished; its outputs are in {declared.folder}")


def _fetch_inputs(store: Store, project: Path) -> None:
    """In a job: puts the inputs, which the client kept in the store, where the stage looks for them."""
    for path, digest in json.loads(os.environ[JOB_INPUTS]).items():
        ArtifactStore(store).get(digest, project / path)


def _write_record(declared: Declaration, fingerprint: str, settings: Settings, project: Path, staging: Path) -> None:
    """Writes run.json: the fingerprint, what it is made of, and the fingerprints of all stages before it. The same work gives the same bytes."""
    lineage: dict[str, str] = {}
    for path in declared.inputs:
        record = _record_of(project / path)
        lineage |= record["lineage"] | {record["name"]: record["fingerprint"]}
    content = {
        "name": declared.name,
        "fingerprint": fingerprint,
        "params": declared_values(declared, settings),
        "inputs": input_digests(project, declared),
        "lineage": lineage,
    }
    write_atomic(staging / RECORD, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def _record_of(path: Path) -> dict[str, Any]:
    """The run.json of the stage whose results a path is part of."""
    file = next((folder / RECORD for folder in path.parents if (folder / RECORD).is_file()), None)
    if file is None:
        raise ValueError(
            f"{path} has no {RECORD} beside it, so it is not known where it comes from; run the stage that makes it"
        )
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _check_outputs(declared: Declaration, staging: Path) -> None:
    later = {TIMING}
    names = [Path(path).relative_to(declared.folder).as_posix() for path in declared.outputs]
    missing = [name for name in names if name not in later and not (staging / name).exists()]
    assert not missing, f"{declared.name} did not write {', '.join(missing)}, which dvc.yaml declares"


def _process_started() -> float:
    import psutil

    return float(psutil.Process().create_time())
