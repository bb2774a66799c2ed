"""The chain's results on one page and in `results/summary.json`: scores of the models, times by stage, champions."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mgpt.config import load_settings
from mgpt.pipeline.stages import Stage, pipeline_stages
from mgpt.registry.versions import champion
from mgpt.storage import write_atomic
from mgpt.storage.names import METRICS_FILE, PARAMS_FILE, RESULTS, TIMING_FILE, TRAINING_STAGES, UNTRAINED
from mgpt.tracking.client import absolute_uri, connect

SUMMARY = "summary.json"
_LONGEST_GAP = 60.0  # seconds; a longer pause between two stages was a person's, not the pipeline's
_CHECKPOINTS = (UNTRAINED, *TRAINING_STAGES)  # in the order in which training makes them
_KEPT = ("value", "low", "high", "chance", "n")
_WIDTH = 100  # columns of the page


def report(project: Path) -> str:
    """Returns the page as text; writes `results/summary.json`.

    Raises:
        ValueError: stages have no results yet; names them.
    """
    stages = pipeline_stages(load_settings(project / PARAMS_FILE))
    missing = [one.name for one in stages if not (project / one.folder / TIMING_FILE).is_file()]
    if missing:
        raise ValueError(f"no results yet of {', '.join(missing)}; run `dvc repro`")
    content = summarise(project, stages)
    write_atomic(project / RESULTS / SUMMARY, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return page(project, content)


def summarise(project: Path, stages: list[Stage]) -> dict[str, Any]:
    """Returns the content of summary.json.

    `models.<model>.<metric>` are the scores of the last checkpoint, `checkpoints.<model>.<checkpoint>.<metric>` those
    of each; then `stages.<stage>`, `seconds`, `cpu_seconds`, `orchestration_share` and `champions`.
    """
    timings = {one.name: _read(project / one.folder / TIMING_FILE) for one in stages}
    evaluated = {one.model_name: one.folder for one in stages if one.stage == "evaluate" and one.model_name}
    checkpoints = {model_name: _scores(project / folder / METRICS_FILE) for model_name, folder in evaluated.items()}
    return {
        "models": {model_name: list(scores.values())[-1] for model_name, scores in checkpoints.items()},
        "checkpoints": checkpoints,
        "stages": {name: _stage_times(timing) for name, timing in timings.items()},
        "seconds": total_seconds(list(timings.values())),
        "cpu_seconds": sum(timing["cpu_seconds"] for timing in timings.values()),
        "orchestration_share": orchestration_share(list(timings.values())),
        "champions": _champions(
            project, [one.model_name for one in stages if one.stage == "promote" and one.model_name]
        ),
    }


def total_seconds(timings: list[dict[str, Any]]) -> float:
    """Returns the seconds of all stages and of the gaps between them in which DVC worked."""
    ordered = sorted(timings, key=lambda timing: timing["started"])
    gaps = [later["started"] - earlier["ended"] for earlier, later in pairwise(ordered)]
    return float(sum(timing["seconds"] for timing in timings) + sum(gap for gap in gaps if 0 < gap < _LONGEST_GAP))


def orchestration_share(timings: list[dict[str, Any]]) -> float:
    """Returns the share of the total time that no stage spent on its work: starting, connecting, importing, recording,
    DVC.
    """
    worked = sum(sum(timing["work"].values()) for timing in timings)
    return 1 - worked / total_seconds(timings)


def page(project: Path, content: dict[str, Any]) -> str:
    """Returns the summary for a terminal, at most 100 columns wide."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False)
    for model_name, checkpoints in content["checkpoints"].items():
        console.print(f"{model_name}: {_champion_text(content['champions'].get(model_name))}")
        console.print(_score_table(checkpoints))
        console.print()
    console.print(_time_table(content))
    console.print()
    for path in sorted((project / RESULTS / "evaluate").glob("*/images.png")):
        console.print(f"images: {path.relative_to(project)}")
    console.print(f"the same figures: {RESULTS}/{SUMMARY}")
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


def _score_table(checkpoints: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Returns one row a metric: every checkpoint's value, the last one's interval, chance and count."""
    # Without padding the box leaves one space between columns: four checkpoints and the longest metric fit the page.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("metric", no_wrap=True)
    for name in (*checkpoints, "95 % interval", "chance", "n"):
        table.add_column(name, justify="right")
    for metric, score in list(checkpoints.values())[-1].items():
        values = [f"{of[metric]['value']:.3f}" if metric in of else "-" for of in checkpoints.values()]
        chance = f"{score['chance']:.3f}" if score["chance"] is not None else "-"
        table.add_row(metric, *values, f"{score['low']:.3f} - {score['high']:.3f}", chance, str(score["n"]))
    return table


def _time_table(content: dict[str, Any]) -> Table:
    """Returns one row a stage: wall seconds, of these work, and CPU seconds; the last row holds the totals."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    share = f"orchestration {100 * content['orchestration_share']:.1f} %"
    table.add_column("stage", footer="all")
    table.add_column("seconds", footer=f"{content['seconds']:.1f}", justify="right")
    table.add_column("of which work", footer=share, justify="right")
    table.add_column("CPU seconds", footer=f"{content['cpu_seconds']:.1f}", justify="right")
    for name, timing in content["stages"].items():
        table.add_row(name, *(f"{timing[key]:.1f}" for key in ("seconds", "work_seconds", "cpu_seconds")))
    return table


def _champions(project: Path, model_names: list[str]) -> dict[str, int | None]:
    """Returns the champions of now, by the registry: a rollback comes after the stage that recorded its decision."""
    client = connect(absolute_uri(load_settings(project / PARAMS_FILE).tracking.uri, project))
    found = {model_name: champion(client, model_name) for model_name in model_names}
    return {model_name: version.number if version is not None else None for model_name, version in found.items()}


def _champion_text(version: int | None) -> str:
    return f"version {version} is champion" if version is not None else "no champion"


def _stage_times(timing: dict[str, Any]) -> dict[str, float]:
    worked = sum(timing["work"].values())
    return {"seconds": timing["seconds"], "work_seconds": worked, "cpu_seconds": timing["cpu_seconds"]}


def _scores(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns the scores of each checkpoint by metric, in the order of training."""
    found = _read(path)["scores"]
    return {
        name: {metric: {key: score[key] for key in _KEPT} for metric, score in found[name].items()}
        for name in _CHECKPOINTS
        if name in found
    }


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
