"""`mgpt plan`: parameters, memory, hours and cost of every stage, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mgpt.cli.console import print_wrapped
from mgpt.cli.project import PARAMS

if TYPE_CHECKING:
    from mgpt.config import Settings
    from mgpt.planning.stages import Resources

RECIPES = Path("recipes")
Gpu = Literal["cpu", "a100-80", "a100-40", "h100"]  # cpu and the keys of mgpt.planning.accelerators.ACCELERATORS
# Default MFU. a100: fitted to the published runs (docs/recipes.md), not measured. h100: the least that fused steps of
# the five published stages reached, 0.504 to 0.540 (benchmarks/results/gpu_step.json, and of minigpt4-instruct
# gpu_step_instruct.json); generation was not measured. cpu: measured on the synthetic world
# (benchmarks/results/plan.json).
UTILISATION: dict[str, float] = {"a100-80": 0.40, "a100-40": 0.40, "h100": 0.50, "cpu": 0.40}


def plan(
    params: Annotated[Path, typer.Option(help="The file to plan.")] = PARAMS,
    recipe: Annotated[
        str | None, typer.Option(help="Plan recipes/NAME.yaml; on A100, each stage on the GPUs of its published run.")
    ] = None,
    gpu: Annotated[
        Gpu | None,
        typer.Option(help="Device of the workers. Default: cpu (measured now), or a100-80 with GPU workers."),
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Workers of every training stage.")] = None,
    mfu: Annotated[float | None, typer.Option(help="Model FLOPs utilisation, above 0 and at most 1.")] = None,
    price: Annotated[float | None, typer.Option(help="Dollars an hour of one device.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print only the table of docs/recipes.md.")] = False,
) -> None:
    """Print parameters, memory, hours and cost of every stage, before anything runs."""
    from mgpt.config import load_settings
    from mgpt.planning import tables
    from mgpt.planning.stages import plan as plan_stages

    path = RECIPES / f"{recipe}.yaml" if recipe else params
    settings = load_settings(path)
    resources = _resources(settings, gpu, gpus, mfu, price, is_recipe=recipe is not None)
    plans = plan_stages(settings, resources)
    if markdown:
        print(tables.recipe_table(plans, resources.device))
        return
    print_wrapped(tables.overview(plans, resources.device, str(path)))
    if resources.workers_by_stage:
        print_wrapped(f"\n{tables.comparison_table(plans)}")


def _resources(
    settings: Settings, gpu: str | None, gpus: int | None, mfu: float | None, price: float | None, *, is_recipe: bool
) -> Resources:
    """Returns the device, MFU and workers that the options or, without them, the settings' workers imply."""
    from mgpt.planning.accelerators import get_accelerator
    from mgpt.planning.stages import Resources

    name = gpu or ("a100-80" if settings.cluster.training.gpus_per_worker else "cpu")
    utilisation = UTILISATION[name] if mfu is None else mfu
    if not 0 < utilisation <= 1:
        raise ValueError(f"--mfu: {utilisation} is not a share of the peak; use a number above 0 and at most 1")
    device = get_accelerator(name, price)
    if is_recipe and name == "a100-80" and gpus is None and mfu is None:
        return Resources.as_published(device, utilisation)
    return Resources(device, utilisation, gpus)
