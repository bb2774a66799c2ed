"""The chain's outcome on one page and in `results/summary.json`: scores of both models, time by stage, what was orchestration,
champions.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from mgpt.pipeline.fingerprint import RESULTS, Declaration, declarations
from mgpt.storage import write_atomic

SUMMARY = "summary.json"
_NEXT_SECONDS = 60.0  # a longer pause between two stages was a person's, not the pipeline's
_ORDER = ("untrained", "pretrain", "multitask", "instruct")  # checkpoints as training makes them
_KEPT = ("value", "low", "high", "chance", "n")


def report(project: Path) -> str:
    """The page as text; writes `results/summary.json`.

    Raises:
        ValueError: stages have no results yet; names them.
    """
    declared = declarations(project)
    missing = [one.name for one in declared if not (project / one.folder / "timing.json").is_file()]
    if missing:
        raise ValueError(f"no results yet of {', '.join(missing)}; run `dvc repro`")
    content = summarise(project, declared)
    write_atomic(project / RESULTS / SUMMARY, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    return page(project, content)


def summarise(project: Path, declared: list[Declaration]) -> dict[str, Any]:
    """What summary.json holds: `models.<model>.<metric>`, the same of every checkpoint, `stages.<stage>`, `orchestration_share`,
    `champions`.
    """
    timings = {one.name: _read(project / one.folder / "timing.json") for one in declared}
    scores = {
        one.model_name: _scores(project / one.folder / "metrics.json")
        for one in declared
        if one.stage == "evaluate" and one.model_name
    }
    promoted = [one.model_name for one in declared if one.stage == "promote" and one.model_name]
    return {
        "models": {
            model_name: _numbers(list(by_checkpoint.values())[-1]) for model_name, by_checkpoint in scores.items()
        },
        "checkpoints": {
            model_name: {name: _numbers(of) for name, of in by_checkpoint.items()}
            for model_name, by_checkpoint in scores.items()
        },
        "stages": {
            name: {"seconds": timing["seconds"], "work_seconds": sum(timing["work"].values())}
            for name, timing in timings.items()
        },
        "seconds": whole(list(timings.values())),
        "orchestration_share": orchestration_share(list(timings.values())),
        "champions": _champions(project, promoted),
    }


def _champions(project: Path, model_names: list[str]) -> dict[str, int | None]:
    """Who is champion now, by the registry: a stage's own record tells who was when it decided, and a rollback comes after it."""
    from mgpt.config import load_settings
    from mgpt.registry.versions import champion
    from mgpt.tracking.client import absolute_uri, connect

    client = connect(absolute_uri(load_settings(project / "params.yaml").tracking.uri, project))
    reigning = {model_name: champion(client, model_name) for model_name in model_names}
    return {model_name: version.number if version is not None else None for model_name, version in reigning.items()}


def whole(timings: list[dict[str, Any]]) -> float:
    """Seconds of all stages and of the gaps between them in which DVC was at work."""
    ordered = sorted(timings, key=lambda timing: timing["started"])
    gaps = [later["started"] - earlier["ended"] for earlier, later in pairwise(ordered)]
    return float(sum(timing["seconds"] for timing in timings) + sum(gap for gap in gaps if 0 < gap < _NEXT_SECONDS))


def orchestration_share(timings: list[dict[str, Any]]) -> float:
    """The share of the whole time that no stage spent on its work: starting, connecting, importing, recording, DVC."""
    worked = sum(sum(timing["work"].values()) for timing in timings)
    return 1 - worked / whole(timings)


def page(project: Path, content: dict[str, Any]) -> str:
    """The summary for a terminal."""
    lines = []
    for model_name in content["models"]:
        lines += [
            f"{model_name}: {_champion(content['champions'].get(model_name))}",
            *_score_table(content["checkpoints"][model_name]),
            "",
        ]
    lines += ["stage                       seconds   of which work"]
    lines += [
        f"{name:<25} {timing['seconds']:>9.1f} {timing['work_seconds']:>15.1f}"
        for name, timing in content["stages"].items()
    ]
    share = f"orchestration {100 * content['orchestration_share']:.1f} %"
    lines += [f"{'all':<25} {content['seconds']:>9.1f}   {share}", ""]
    lines += [
        f"images: {path.relative_to(project)}" for path in sorted((project / RESULTS / "evaluate").glob("*/images.png"))
    ]
    return "\n".join([*lines, f"the same figures: {RESULTS}/{SUMMARY}"])


def _champion(version: int | None) -> str:
    return f"version {version} is champion" if version is not None else "no champion"


def _score_table(checkpoints: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """One row a metric: every checkpoint's value, the last one's interval, chance and count."""
    last = list(checkpoints.values())[-1]
    width = max(12, *(len(metric) for metric in last))
    head = f"  {'metric':<{width}}" + "".join(f"{name:>11}" for name in checkpoints) + "    95 % interval  chance     n"
    rows = [head]
    for metric, score in last.items():
        values = "".join(
            f"{of[metric]['value']:>11.3f}" if metric in of else f"{'-':>11}" for of in checkpoints.values()
        )
        chance = f"{score['chance']:.3f}" if score["chance"] is not None else "-"
        rows.append(
            f"  {metric:<{width}}{values}  {score['low']:>6.3f} - {score['high']:.3f}  {chance:>6} {score['n']:>5}"
        )
    return rows


def _numbers(scores: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {metric: {key: score[key] for key in _KEPT} for metric, score in scores.items()}


def _scores(path: Path) -> dict[str, Any]:
    """Scores by checkpoint, in the order of training."""
    found = _read(path)["scores"]
    return {name: found[name] for name in _ORDER if name in found}


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
