"""`mgpt plan`: the plan of the experiment at hand, or of a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from mgpt.config import Settings, load
from mgpt.planning import tables
from mgpt.planning.accelerators import ACCELERATORS, get_accelerator
from mgpt.planning.stages import Resources, plan

RECIPES = Path("recipes")
# MFU where none is given. a100: fitted to the published runs (docs/recipes.md), not measured. h100: the least that lean steps of the five
# published stages reached there, 0.504 to 0.540 (benchmarks/results/gpu_step.json, of minigpt4-instruct gpu_step_instruct.json); generation
# was not measured. cpu: measured on the shapes world (benchmarks/results/plan.json).
UTILISATION = {"a100-80": 0.40, "a100-40": 0.40, "h100": 0.50, "cpu": 0.40}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the `plan` subcommand its options; `run` answers them."""
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument(
        "--recipe", help=f"plan {RECIPES}/NAME.yaml instead; on A100 each stage on the GPUs of its published run"
    )
    parser.add_argument(
        "--gpu",
        choices=["cpu", *ACCELERATORS],
        help="what workers run on (cpu is measured now; default: cpu, or a100-80 where workers want GPUs)",
    )
    parser.add_argument("--gpus", type=int, help="workers of every training stage")
    parser.add_argument("--mfu", type=float, help="share of the peak at which FLOPs run, 0 to 1")
    parser.add_argument("--price", type=float, help="dollars an hour of one")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/recipes.md alone")


def run(asked: argparse.Namespace) -> None:
    """Print the plan; ValueError for settings that cannot be planned."""
    path = RECIPES / f"{asked.recipe}.yaml" if asked.recipe else asked.params
    settings = load(path)
    means = chosen_means(settings, asked)
    plans = plan(settings, means)
    if asked.markdown:
        print(tables.recipe_table(plans, means.device))
        return
    print(tables.overview(plans, means.device, str(path)))
    if means.workers_by_stage:
        print(f"\n{tables.comparison_table(plans)}")


def chosen_means(settings: Settings, asked: argparse.Namespace) -> Resources:
    """The accelerator, MFU and workers that were asked for, or what the settings' workers point to."""
    name = asked.gpu or ("a100-80" if settings.cluster.training.gpus_per_worker else "cpu")
    mfu = UTILISATION[name] if asked.mfu is None else asked.mfu
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu: {mfu} is no share of the peak; give a number above 0 and at most 1")
    if asked.gpus is not None and asked.gpus < 1:
        raise ValueError(f"--gpus: {asked.gpus}; give at least 1")
    device = get_accelerator(name, asked.price)
    as_published = asked.recipe and name == "a100-80" and asked.gpus is None and asked.mfu is None
    return Resources.as_published(device, mfu) if as_published else Resources(device, mfu, asked.gpus)
