"""Looks before work starts: on this machine at the files behind a stage's inputs; on a cluster for the same Python and libraries on every
node, store and base weights within reach of each, the inputs as their manifests say, and memory for what is planned. It takes seconds and
no GPU, and tells everything that is wrong at once.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mgpt.config import Settings, load_settings, section
from mgpt.pipeline.fingerprint import RESULTS, declaration
from mgpt.storage import Entry, Manifest, Store
from mgpt.storage.artifacts import RECORD, ArtifactStore

# A difference in any of these between nodes changes results or breaks unpickling.
PACKAGES = ("ray", "torch", "transformers", "peft", "numpy", "pyarrow", "s3fs")
TRAINING = ("pretrain", "multitask", "instruct")
_SECONDS = 60.0
_HASHED_BYTES = 64 << 20  # of each manifest: all sizes are compared, and digests of about so much
_SHOWN = 10  # files that are named
_AT_ONCE = 32  # requests to the store


@dataclass(frozen=True)
class Needed:
    """What a stage needs to find: files of backbones and of data that its manifests name."""

    backbones: tuple[Entry, ...] = ()
    data: tuple[Entry, ...] = ()
    configs: tuple[str, ...] = ()  # URIs of the backbones' configurations, for every node to read


def preflight(stage: str, model_name: str | None, project: Path, store: Store) -> list[dict[str, Any]]:
    """Looks at the connected cluster and at a stage's inputs; returns each node's report.

    Raises:
        ValueError: everything that would fail later, a line each, with its fix.
    """
    settings = load_settings(project / "params.yaml")
    needed = needed_by(stage, model_name, project, settings)
    reports = look(store, needed.configs)
    wrong = [line for report in reports for line in differences(versions(), report)]
    wrong += input_problems(needed)
    if model_name is not None and stage in TRAINING:
        wrong += memory_problems(settings, stage, model_name, reports)
    if wrong:
        raise ValueError("preflight: nothing was started\n  " + "\n  ".join(wrong))
    return reports


def check_inputs(stage: str, model_name: str | None, project: Path, store: Store) -> None:
    """Of a stage that runs here: looks for the files behind its inputs, and forgets the finished work of those stages whose files are gone
    or of another size.

    Raises:
        ValueError: with the first such files, and what makes them again.
    """
    needed = needed_by(stage, model_name, project, load_settings(project / "params.yaml"))
    entries = [*needed.backbones, *needed.data]
    wrong = {entry.uri: line for entry, line in zip(entries, _size_problems(entries), strict=True) if line}
    if not wrong:
        return
    made = []
    for path, manifest in _manifests(stage, model_name, project).items():
        if any(entry.uri in wrong for entry in manifest.entries):
            record = json.loads((project / path).with_name(RECORD).read_text(encoding="utf-8"))
            ArtifactStore(store).invalidate(record["fingerprint"])
            made.append(record["name"])
    shown = [*list(wrong.values())[:_SHOWN], *([f"and {len(wrong) - _SHOWN} more"] if len(wrong) > _SHOWN else [])]
    what = "files that earlier stages wrote are not in the store as they were; was it emptied, or moved (storage.root)?"
    raise ValueError("\n  ".join([what, *shown]) + f"\n`dvc repro --force {' '.join(made)}` makes them again")


def versions() -> dict[str, str]:
    """This process's Python and library versions; "missing" where a library is not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def needed_by(stage: str, model_name: str | None, project: Path, settings: Settings) -> Needed:
    """The files behind a stage's declared inputs: of the backbones those of its model, of data those that it reads."""
    manifests = _manifests(stage, model_name, project)
    download = manifests.pop(f"{RESULTS}/download/manifest.json", None)
    data = [entry for manifest in manifests.values() for entry in manifest.entries]
    read = _datasets(stage, model_name, settings)
    data = [entry for entry in data if read is None or entry.meta.get("dataset") in read]
    if download is None:
        return Needed(data=tuple(data))
    if stage == "curate":
        return Needed(data=tuple(download.entries))
    backbones = _backbones(settings, model_name or "minigpt4", download)
    return Needed(
        tuple(backbones), tuple(data), tuple(entry.uri for entry in backbones if entry.name.endswith("/config.json"))
    )


def _datasets(stage: str, model_name: str | None, settings: Settings) -> Collection[str] | None:
    """The datasets that a stage reads, by name; None for all."""
    if stage in TRAINING and model_name is not None:
        mixture: Mapping[str, float] = section(settings, stage, model_name).mixture
        return mixture
    if stage in ("describe", "evaluate"):
        datasets: Collection[str] = section(settings, stage, model_name).datasets
        return datasets
    return None


def _manifests(stage: str, model_name: str | None, project: Path) -> dict[str, Manifest]:
    named = [path for path in declaration(project, stage, model_name).inputs if path.endswith("manifest.json")]
    return {path: Manifest.load(project / path) for path in named}


def _backbones(settings: Settings, model_name: str, download: Manifest) -> list[Entry]:
    model = settings.models[model_name]
    names = [name for name in (model.vision, model.language, model.qformer) if name]
    return [entry for name in names for entry in download.entries if entry.name.startswith(f"{name}/")]


def look(store: Store, configs: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every node's report: its versions, what it cannot reach, and the memory of each of its GPUs and of itself, in bytes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    task = ray.remote(num_cpus=0)(_look)
    placed = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [task.options(scheduling_strategy=strategy).remote(store, tuple(configs)) for strategy in placed]
    answers = ray.get(asked, timeout=_SECONDS)
    return [{"node": node["NodeManagerAddress"], **answer} for node, answer in zip(nodes, answers, strict=True)]


def differences(here: Mapping[str, str], report: Mapping[str, Any]) -> list[str]:
    """What is wrong with one node's report, a line each."""
    lines = [
        f"{report['node']}: {name} is {report['versions'].get(name)}, here {wanted}; install the same, as constraints.txt has it"
        for name, wanted in here.items()
        if report["versions"].get(name) != wanted
    ]
    return lines + [f"{report['node']}: {problem}" for problem in report["problems"]]


def input_problems(needed: Needed) -> list[str]:
    """Files that are gone, of another size, or, in a sample of each manifest, of another content."""
    lines: list[str] = []
    for entries in (needed.backbones, needed.data):
        found = list(zip(entries, _size_problems(entries), strict=True))
        lines += [line for _, line in found if line]
        try:
            Manifest(list(_sample([entry for entry, line in found if not line]))).verify()
        except ValueError as error:
            lines += [line.strip() for line in str(error).splitlines()[1:-1]]
    return [f"{line}; run the stage that made it again (`mgpt verify` reads every byte)" for line in lines]


def memory_problems(settings: Settings, stage: str, model_name: str, reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nodes on whose GPUs (or, without GPUs, in whose memory) a worker's plan does not fit. A model or data that cannot be planned are no
    problem: that is told when the plan is asked for."""
    from mgpt.planning.accelerators import KINDS
    from mgpt.planning.stages import training_plan_memory

    workers = settings.cluster.training
    # What CUDA takes beside tensors is much the same on every kind.
    device = (
        KINDS["a100-80"] if workers.gpus_per_worker else replace(KINDS["a100-80"], name="cpu", reserve=0, slack=0.0)
    )
    try:
        wanted = training_plan_memory(settings, stage, model_name, device).total
    except ValueError:
        return []
    lines = []
    for report in reports:
        there = min(report["gpus"], default=0) if workers.gpus_per_worker else report["memory"]
        if there and wanted > there:
            place = "its smallest GPU has" if workers.gpus_per_worker else "it has"
            what = f"{report['node']}: {stage}@{model_name} is planned with {wanted / 2**30:.1f} GiB a worker, and {place} {there / 2**30:.1f}"
            lines.append(
                f"{what}; lower micro_batch_size, set models.{model_name}.checkpoint_language, or take larger GPUs (`mgpt plan`)"
            )
    return lines


def _size_problems(entries: Sequence[Entry]) -> list[str]:
    """What is wrong with each file's size; empty where nothing is."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(_size_problem, entries))


def _size_problem(entry: Entry) -> str:
    try:
        size = Store(entry.uri.rsplit("/", 1)[0]).size(entry.uri)
    except FileNotFoundError:
        return f"{entry.name}: gone ({entry.uri})"
    return "" if size == entry.size else f"{entry.name}: {size} bytes, not {entry.size} ({entry.uri})"


def _sample(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Entries of about `_HASHED_BYTES`, in the order of their digests, which has nothing to do with their content's."""
    left = _HASHED_BYTES
    for entry in sorted(entries, key=lambda entry: (entry.sha256, entry.name)):
        if entry.size <= left:
            left -= entry.size
            yield entry


def _look(store: Store, configs: tuple[str, ...]) -> dict[str, Any]:
    import psutil

    problems = []
    try:
        store.check()
    except ValueError as error:
        problems.append(str(error))
    for uri in configs:
        try:
            Store(uri.rsplit("/", 1)[0]).read(uri)
        except Exception as error:  # every kind of store raises its own
            problems.append(
                f"base weights: {uri} cannot be read ({type(error).__name__}); give this node the store's AWS_* variables"
            )
    return {
        "versions": versions(),
        "problems": problems,
        "gpus": _gpu_memory(),
        "memory": psutil.virtual_memory().total,
    }


def _gpu_memory() -> list[int]:
    """Bytes of each GPU of this node, as its driver says: a task that asked for no GPU sees none through CUDA."""
    if shutil.which("nvidia-smi") is None:
        return []
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return [int(line) << 20 for line in answer.stdout.split() if line.isdigit()]
