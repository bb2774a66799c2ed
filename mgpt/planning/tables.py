"""Plans as tables and text: the output of `mgpt plan`, and the table in docs/recipes.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from mgpt.planning.accelerators import Accelerator
from mgpt.planning.stages import StagePlan, published_runs

WIDTH = 100  # columns of a terminal
_MEMORY_PARTS = {
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "optim",
    "activations": "activ",
    "logits": "logits",
    "buffers": "buffers",
    "reserve": "reserve",
}


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column is left-aligned, the others hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        return "\n".join(self._line(line, widths) for line in lines)

    @staticmethod
    def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
        numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *numbers]).rstrip()

    def markdown(self) -> str:
        """Formats the table as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(
            "|" + "|".join("---" if cell == "---" else f" {cell} " for cell in line) + "|" for line in lines
        )


def overview(plans: Sequence[StagePlan], device: Accelerator, source: str) -> str:
    """Formats a whole plan: parameters, stages, memory by part, and the counting rules."""
    heading = f"plan of {source} on {device.name}"
    tables = [parameter_table(plans), stage_table(plans), memory_table(plans, device)]
    return "\n\n".join([heading, *map(str, tables), notes(plans, device)])


def parameter_table(plans: Iterable[StagePlan]) -> Table:
    """Tabulates frozen and trained parameters of each model."""
    models = {one.name.split("@")[1]: one.sizes for one in plans if one.sizes is not None and "@" in one.name}
    rows = [
        [
            model_name,
            f"{sizes.frozen:,}",
            f"{sizes.projection:,}",
            f"{sizes.lora_parameters:,}",
            f"{sizes.trainable / (sizes.frozen + sizes.trainable):.3%}",
        ]
        for model_name, sizes in models.items()
    ]
    return Table(["parameters", "frozen", "projection", "LoRA", "trained"], rows)


def stage_table(plans: Iterable[StagePlan]) -> Table:
    """Tabulates workers, samples, FLOPs, memory, hours and cost, one row per stage."""
    rows = []
    for one in plans:
        row = [one.name, _or_dash(one.gpus), f"{one.samples:,}" if one.samples else "-"]
        row += [f"{one.tokens:.0f}" if one.tokens else "-", _flops(one.flops)]
        row += [_bytes(one.memory.total) if one.memory else "-", f"{one.mfu:.2f}" if one.mfu else "-"]
        rows.append([*row, _hours(one.hours), _dollars(one.cost)])
    columns = ["stage", "workers", "samples", "tokens", "FLOPs/sample", "memory", "MFU", "hours", "cost"]
    return Table(columns, rows)


def memory_table(plans: Iterable[StagePlan], device: Accelerator) -> Table:
    """Tabulates the memory of one worker by part, in KiB, MiB or GiB, and whether it fits the device."""
    rows = []
    for one in plans:
        if one.memory is not None:
            parts = asdict(one.memory)
            fits = "yes" if one.memory.total <= device.memory else "NO"
            cells = [_short_bytes(value) for value in (*(parts[part] for part in _MEMORY_PARTS), one.memory.total)]
            rows.append([one.name, *cells, fits])
    fit_column = f"fits {_short_bytes(device.memory)}"
    return Table(["memory of a worker", *_MEMORY_PARTS.values(), "total", fit_column], rows)


def notes(plans: Sequence[StagePlan], device: Accelerator) -> str:
    """Explains the counting rules and assumptions, and names the stages that do not fit."""
    peaks = ", ".join(f"{precision} {value / 1e12:.4g}" for precision, value in device.flops.items())
    paragraphs = [
        "FLOPs: 4N per token for the frozen language model, 6N for LoRA, 2N for the frozen tower and Q-Former, half of "
        "causal attention, the head and the last feed-forward on supervised tokens. Recomputation counts in hours, not "
        "in FLOPs/sample.",
        f"Peak of {device.name}: {peaks} TFLOP/s; ${device.price:g} per hour.",
        "Memory is that of a micro-batch of the longest rows. Text lengths of real datasets are estimates, those of "
        "the shapes world are counted.",
        "Hours are those of the steps, without start-up, loading, waiting for data and filling the feature cache. "
        "download, curate and promote are not timed.",
        *_assumptions(plans),
        *_misfits(plans, device),
    ]
    return "\n".join(textwrap.fill(paragraph, WIDTH, break_on_hyphens=False) for paragraph in paragraphs)


def _assumptions(plans: Sequence[StagePlan]) -> list[str]:
    """One sentence per assumption, with the stages that share it."""
    stages: dict[str, list[str]] = {}
    for one in plans:
        if one.assumption:
            stages.setdefault(one.assumption, []).append(one.name)
    return [f"{', '.join(names)}: {assumption}." for assumption, names in stages.items()]


def _misfits(plans: Sequence[StagePlan], device: Accelerator) -> list[str]:
    names = [one.name for one in plans if one.memory is not None and one.memory.total > device.memory]
    if not names:
        return []
    fix = "lower micro_batch_size or pack_tokens, set models.MODEL.checkpoint_language, or use a larger device"
    return [f"DOES NOT FIT in {_bytes(device.memory)}: {', '.join(names)}; {fix}."]


def comparison_table(plans: Iterable[StagePlan]) -> Table:
    """Compares published with planned hours; at the MFU of the last column the plan would match them."""
    rows = []
    for one, run in ((one, published_runs().get(one.name)) for one in plans):
        if run is None or run.hours is None or one.hours is None or one.gpus != run.gpus:
            continue
        ratio = one.hours / run.hours
        shares = [f"{ratio - 1:+.0%}", f"{one.mfu:.2f}", f"{one.mfu * ratio:.2f}"]
        rows.append([one.name, str(run.gpus), _hours(run.hours), _hours(one.hours), *shares])
    columns = ["published run", "GPUs", "published h", "planned h", "difference", "planned MFU", "MFU of the run"]
    return Table(columns, rows)


def recipe_table(plans: Iterable[StagePlan], device: Accelerator) -> str:
    """Formats the table of a recipe in Markdown, for docs/recipes.md."""
    rows, total = [], 0.0
    for one in plans:
        run = published_runs().get(one.name)
        published = "not published" if run is None or run.hours is None else f"{_hours(run.hours)} on {run.gpus}"
        row = [one.name, _or_dash(one.gpus), _hours(one.hours), published if one.hours is not None else "-"]
        row += [_bytes(one.memory.total) if one.memory else "-", _dollars(one.cost)]
        rows.append([*row, (run.score or "-") if run else "-"])
        total += one.cost or 0.0
    columns = ["stage", f"{device.name} GPUs", "hours", "published hours", "memory per GPU", "cost", "published score"]
    return f"{Table(columns, rows).markdown()}\n\nAll stages: {_dollars(total)}."


def _or_dash(value: int) -> str:
    return str(value) if value else "-"


def _flops(value: float) -> str:
    return f"{value / 1e12:.3g} T" if value >= 1e11 else f"{value / 1e9:.3g} G" if value else "-"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value / 1024:.0f} KiB" if value else "0"


def _short_bytes(value: float) -> str:
    """`49.2G` for 49.2 GiB."""
    return _bytes(value).replace(" ", "").removesuffix("iB")


def _hours(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 1 else f"{value * 60:.1f} min"


def _dollars(value: float | None) -> str:
    return "-" if value is None else f"${value:,.0f}" if value >= 10 or value == 0 else f"${value:.2f}"
