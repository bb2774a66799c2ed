"""Checks before work starts, which take seconds and no GPU, and report everything that is wrong at once.

On this machine: the files behind a stage's inputs. On a cluster: the same Python and libraries on every node, store and
backbones within reach of each, the inputs as their manifests list them, and memory for what is planned.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from mgpt.config import Settings
from mgpt.pipeline.stages import Stage
from mgpt.planning.accelerators import ACCELERATORS
from mgpt.planning.stages import training_plan_memory
from mgpt.storage import Entry, Manifest, Store
from mgpt.storage.artifacts import ArtifactStore
from mgpt.storage.names import RUN_FILE, TRAINING_STAGES

# A difference in any of these between nodes changes results or breaks unpickling.
PACKAGES = ("ray", "torch", "transformers", "peft", "numpy", "pyarrow", "s3fs")
_SECONDS = 60.0  # how long a node may take to report
_HASHED_BYTES = 64 << 20  # of each manifest: all sizes are compared, and digests of about so much
_SHOWN = 10  # files that are named
_CONNECTIONS = 32  # requests to the store at a time


def preflight(stage: Stage, settings: Settings, project: Path, store: Store) -> list[dict[str, Any]]:
    """Checks the connected cluster and a stage's inputs; returns each node's report.

    Raises:
        ValueError: everything that would fail later, a line each, with its fix.
    """
    inputs = [one.entries(project) for one in stage.inputs if one.is_manifest]
    backbones = [entry for one in stage.inputs if one.holds_backbones for entry in one.entries(project)]
    reports = node_reports(store, [entry.uri for entry in backbones if entry.name.endswith("/config.json")])
    here = versions()
    wrong = [line for report in reports for line in node_problems(here, report)]
    wrong += [line for entries in inputs for line in input_problems(entries)]
    if stage.model_name is not None and stage.stage in TRAINING_STAGES:
        wrong += memory_problems(settings, stage.stage, stage.model_name, reports)
    if wrong:
        raise ValueError("preflight: nothing was started\n  " + "\n  ".join(wrong))
    return reports


def check_inputs(stage: Stage, project: Path, store: Store) -> None:
    """Checks size and presence of the files behind the inputs of a stage that runs here.

    The finished work of the stages whose files are gone or of another size is dropped, so that it is repeated.

    Raises:
        ValueError: names the first such files, and the command that makes them.
    """
    lines: list[str] = []
    stages: list[str] = []
    for one in stage.inputs:
        found = [line for line in _size_problems(one.entries(project)) if line]
        if found:
            record = json.loads((project / one.path).with_name(RUN_FILE).read_text(encoding="utf-8"))
            ArtifactStore(store).invalidate(record["fingerprint"])
            lines, stages = lines + found, [*stages, record["name"]]
    if lines:
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        what = (
            "files of earlier stages are not in the store as they were written; was it emptied or moved (storage.root)?"
        )
        listed = "\n  ".join([what, *lines[:_SHOWN], *more])
        raise ValueError(f"{listed}\n`dvc repro --force {' '.join(stages)}` makes them")


def versions() -> dict[str, str]:
    """Returns this process's Python and library versions; "missing" for a library that is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def node_reports(store: Store, configs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Returns every node's report: versions, what it cannot reach, and the memory of each of its GPUs and of itself in
    bytes.
    """
    import ray.util.scheduling_strategies

    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0)(_node_report)
    on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    placed = [on_node(node["NodeID"], soft=False) for node in nodes]
    tasks = [task.options(scheduling_strategy=strategy).remote(store, tuple(configs)) for strategy in placed]
    reports = ray.get(tasks, timeout=_SECONDS)
    return [{"node": node["NodeManagerAddress"], **report} for node, report in zip(nodes, reports, strict=True)]


def node_problems(here: Mapping[str, str], report: Mapping[str, Any]) -> list[str]:
    """Returns the problems of one node's report, a line each; `here` are the versions of the driver."""
    node, there = report["node"], report["versions"]
    lines = [
        f"{node}: {name} is {there.get(name)}, here {expected}; install the same, as constraints.txt has it"
        for name, expected in here.items()
        if there.get(name) != expected
    ]
    return lines + [f"{node}: {problem}" for problem in report["problems"]]


def input_problems(entries: Sequence[Entry]) -> list[str]:
    """Returns the files that are gone, of another size, or, in a sample, of another content."""
    found = list(zip(entries, _size_problems(entries), strict=True))
    lines = [line for _, line in found if line]
    try:
        Manifest(list(_sample([entry for entry, line in found if not line]))).verify()
    except ValueError as error:
        lines += [line.strip() for line in str(error).splitlines()[1:-1]]
    return [f"{line}; re-run the stage that made it (`mgpt verify` reads every byte)" for line in lines]


def memory_problems(settings: Settings, stage: str, model_name: str, reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the nodes on whose GPUs (without GPUs: in whose memory) a worker's plan does not fit.

    A model or data that cannot be planned is no problem here: `mgpt plan` reports it.
    """
    workers = settings.cluster.training
    # What CUDA takes next to tensors is much the same on every kind.
    gpu = ACCELERATORS["a100-80"]
    device = gpu if workers.gpus_per_worker else replace(gpu, name="cpu", reserve=0, slack=0.0)
    try:
        planned = training_plan_memory(settings, stage, model_name, device).total
    except ValueError:
        return []
    fix = f"lower micro_batch_size, set models.{model_name}.checkpoint_language, or take larger GPUs (`mgpt plan`)"
    lines = []
    for report in reports:
        available = min(report["gpus"], default=0) if workers.gpus_per_worker else report["memory"]
        if available and planned > available:
            owner = "its smallest GPU has" if workers.gpus_per_worker else "it has"
            sizes = f"{planned / 2**30:.1f} GiB a worker, and {owner} {available / 2**30:.1f}"
            lines.append(f"{report['node']}: {stage}@{model_name} is planned with {sizes}; {fix}")
    return lines


def _size_problems(entries: Sequence[Entry]) -> list[str]:
    """Returns a line for each file: empty where its size is right."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(_size_problem, entries))


def _size_problem(entry: Entry) -> str:
    try:
        size = Store(entry.uri.rsplit("/", 1)[0]).size(entry.uri)
    except FileNotFoundError:
        return f"{entry.name}: gone ({entry.uri})"
    return "" if size == entry.size else f"{entry.name}: {size} bytes, not {entry.size} ({entry.uri})"


def _sample(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yields entries of about `_HASHED_BYTES` in the order of their digests, which is unrelated to their content."""
    left = _HASHED_BYTES
    for entry in sorted(entries, key=lambda entry: (entry.sha256, entry.name)):
        if entry.size <= left:
            left -= entry.size
            yield entry


def _node_report(store: Store, configs: tuple[str, ...]) -> dict[str, Any]:
    problems = []
    try:
        store.check()
    except ValueError as error:
        problems.append(str(error))
    for uri in configs:
        try:
            Store(uri.rsplit("/", 1)[0]).read(uri)
        except Exception as error:  # every kind of store raises its own
            problem = f"backbones: {uri} cannot be read ({type(error).__name__})"
            problems.append(f"{problem}; give this node the store's AWS_* variables")
    memory = psutil.virtual_memory().total
    return {"versions": versions(), "problems": problems, "gpus": _gpu_memory(), "memory": memory}


def _gpu_memory() -> list[int]:
    """Returns the bytes of each GPU of this node, as its driver reports them: a task without a GPU sees none through
    CUDA.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return [int(line) << 20 for line in listed.stdout.split() if line.isdigit()]
