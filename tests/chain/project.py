"""A copy of this project with the smallest experiment that still goes through every stage, in a git repository of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# MiniGPT-4's pretraining is long enough for words: the shipped language model answers tokens of an untrained projection with numbers alone.
STEPS = {"pretrain": 40, "multitask": 4, "instruct": 4}
# Long enough to be killed in its middle.
LONGER = {"steps": 48, "checkpoint_every": 4, "global_batch_size": 16, "micro_batch_size": 8}
# Of that one, so that one can be killed. A second worker and what feeds it cost every other training seconds.
TWO_WORKERS = {"MGPT_CLUSTER__TRAINING__WORKERS": "2"}
MIXTURES = {
    "pretrain": {"minigpt4": ("laion", "cc_sbu"), "minigpt-v2": ("laion", "coco_caption", "refcoco", "photographs")},
    "multitask": {"minigpt-v2": ("coco_caption", "refcoco", "vqav2")},
    "instruct": {"minigpt4": ("described",), "minigpt-v2": ("coco_caption", "refcoco", "llava_conversation", "unnatural_instructions")},
}
EVALUATED = ("coco_caption", "refcoco", "invrefcoco", "vqav2", "flickr_grounded_caption")
# A user's own pictures, as the documentation has them: two photographs that scikit-learn ships, and nothing but an entry in the params.
PHOTOGRAPHS = (
    {"image": "china.jpg", "caption": "A temple behind trees.", "licence": "CC BY 4.0"},
    {
        "image": "flower.jpg",
        "licence": "CC BY 4.0",
        "conversations": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A dahlia."}],
    },
)


@dataclass
class Project:
    """A project folder, and the variables that its commands see beside this process's."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    first_output: str = ""  # what the first `dvc repro` printed

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment of a command."""
        fixed = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **fixed, **self.variables}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command in the project to its end."""
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, (
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        )
        return done

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Starts a command in a process group of its own, so that a test can kill all of it."""
        with open(log, "ab") as sink:
            return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=sink, stderr=sink, start_new_session=True)

    def repro(self, *arguments: str) -> str:
        """`dvc repro`; its output."""
        return self.run("dvc", "repro", *arguments).stdout

    def params(self) -> dict[str, Any]:
        """The params file's content."""
        content: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return content

    def set(self, dotted: str, value: Any) -> None:
        """Changes one key of the params file."""
        content = self.params()
        *above, last = dotted.split(".")
        place = content
        for part in above:
            place = place[part]
        place[last] = value
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def copy(self, folder: Path) -> Project:
        """Another folder with the same files."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, dict(self.variables))

    def elsewhere(self, **variables: str) -> Project:
        """The same folder, with other variables: another store, say."""
        return Project(self.folder, {**self.variables, **variables})

    def identity(self, stage: str, *system: str) -> str:
        """The identity of a stage's work now."""
        return self.run("python", "-m", "flows", stage, *system, "--dry").stdout.split()[1]


def make(folder: Path) -> Project:
    """The project's files as git has or would have them, without tests, with a small experiment."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for name in listed:
        if name and not name.startswith(("tests/", "docs/", "benchmarks/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    write_photographs(folder / "photographs")
    project = Project(folder)
    (folder / "params.yaml").write_text(yaml.safe_dump(shrink(project.params()), sort_keys=False))
    for command in (("init", "-q"), ("add", "-A"), ("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "small")):
        project.run("git", *command)
    return project


def write_photographs(folder: Path) -> None:
    """The photographs and their JSON Lines."""
    folder.mkdir()
    for record in PHOTOGRAPHS:
        (folder / str(record["image"])).write_bytes((files("sklearn.datasets") / "images" / str(record["image"])).read_bytes())
    (folder / "mine.jsonl").write_text("".join(json.dumps(record) + "\n" for record in PHOTOGRAPHS))


def shrink(params: dict[str, Any]) -> dict[str, Any]:
    """The default experiment with few pictures, datasets, steps and questions, a user's photographs, and a gate that barely trained weights
    pass."""
    world = params["sources"]["world"]
    world["counts"] = {"train": 60, "validation": 4, "test": 12}
    used = {*EVALUATED, *(name for systems in MIXTURES.values() for names in systems.values() for name in names)}
    world["datasets"] = {name: dataset for name, dataset in world["datasets"].items() if name in used}
    params["sources"]["photographs"] = {"locations": ["photographs"], "datasets": {"photographs": {"reader": "jsonl"}}}
    for stage, systems in MIXTURES.items():
        for system, names in systems.items():
            _shorten(params[stage][system], STEPS[stage], names)
    params["pretrain"]["minigpt-v2"] |= LONGER
    params["cluster"]["training"] = {"workers": 1}
    loose = {"minimum_characters": 0, "minimum_sentences": 0, "maximum_change": 1.0, "maximum_foreign": 1.0}
    params["describe"] |= {"pictures": 6, "max_new_tokens": 16, "continue_below": 4, "minimum_survivors": 1, "filters": loose}
    for judged in params["evaluate"].values():
        judged |= {"resamples": 100, "pictures": 2}
        for task in judged["tasks"].values():
            task |= {"items": 4, "early_items": 2, "max_new_tokens": 4}
    for gate in params["promote"].values():
        gate["floors"], gate["ceilings"] = {}, {}
    return params


def _shorten(training: dict[str, Any], steps: int, names: tuple[str, ...]) -> None:
    sizes = {"global_batch_size": 16, "micro_batch_size": 8} if steps > 10 else {"global_batch_size": 4, "micro_batch_size": 2}
    training |= {"steps": steps, "warmup_steps": 1, "checkpoint_every": max(2, steps // 2), "log_every": 1, **sizes}
    training["mixture"] = {name: training["mixture"].get(name, 1) for name in names}
    training["tasks"] = {name: task for name, task in training.get("tasks", {}).items() if name in names}
