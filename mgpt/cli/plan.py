"""`mgpt plan`: parameters, memory, hours and cost of every stage, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mgpt.cli.console import print_wrapped
from mgpt.cli.project import PARAMS

if TYPE_CHECKING:
    from mgpt.config import Settings
    from mgpt.planning.stages import Means

RECIPES = Path("recipes")
Gpu = Literal["cpu", "a100-80", "a100-40", "h100"]  # cpu and the keys of mgpt.planning.accelerators.KINDS
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
    from mgpt.planning import text
    from mgpt.planning.stages import plan as plan_stages

    path = RECIPES / f"{recipe}.yaml" if recipe else params
    settings = load_settings(path)
    means = _means(settings, gpu, gpus, mfu, price, is_recipe=recipe is not None)
    plans = plan_stages(settings, means)
    if markdown:
        print(text.markdown(plans, means.device))
        return
    print_wrapped(text.overview(plans, means.device, str(path)))
    if means.workers_of:
        print_wrapped("\n" + text.comparison(plans))


def _means(
    settings: Settings, gpu: str | None, gpus: int | None, mfu: float | None, price: float | None, *, is_recipe: bool
) -> Means:
    """Returns the device, MFU and workers that the options or, without them, the settings' workers imply."""
    from mgpt.planning.accelerators import accelerator
    from mgpt.planning.stages import Means

    name = gpu or ("a100-80" if settings.cluster.training.gpus_per_worker else "cpu")
    utilisation = UTILISATION[name] if mfu is None else mfu
    if not 0 < utilisation <= 1:
        raise ValueError(f"--mfu: {utilisation} is not a share of the peak; use a number above 0 and at most 1")
    device = accelerator(name, price)
    if is_recipe and name == "a100-80" and gpus is None and mfu is None:
        return Means.as_published(device, utilisation)
    return Means(device, utilisation, gpus)
