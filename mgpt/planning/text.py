"""Plans as text: what `mgpt plan` prints, and the table of docs/recipes.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from io import StringIO

from rich.console import Console
from rich.table import Table

from mgpt.planning.accelerators import Accelerator
from mgpt.planning.stages import StagePlan, published

_WIDTH = 100  # columns
_SHORT = {"gradients": "grads", "optimiser": "optim.", "activations": "activ."}  # in a heading
_PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "buffers", "reserve")


def overview(plans: Sequence[StagePlan], device: Accelerator, source: str) -> str:
    """Everything about a plan: parameters, stages, memory by part, and how it was counted."""
    parts = [f"plan of {source} on {device.name}", parameters(plans), stages(plans), memory(plans, device)]
    return "\n\n".join([*parts, notes(plans, device)])


def parameters(plans: Iterable[StagePlan]) -> str:
    """Frozen and trained parameters of each model."""
    found = {one.name.split("@")[1]: one.sizes for one in plans if one.sizes is not None and "@" in one.name}
    rows = [
        [
            model_name,
            f"{sizes.frozen:,}",
            f"{sizes.projection:,}",
            f"{sizes.adapters:,}",
            f"{sizes.trainable / (sizes.frozen + sizes.trainable):.3%}",
        ]
        for model_name, sizes in found.items()
    ]
    return _table(["parameters", "frozen", "projection", "LoRA", "trained"], rows)


def stages(plans: Iterable[StagePlan]) -> str:
    """A row a stage."""
    rows = []
    for one in plans:
        row = [one.name, _or_dash(one.gpus), f"{one.samples:,}" if one.samples else "-"]
        row += [f"{one.tokens:.0f}" if one.tokens else "-", _flops(one.flops)]
        row += [_bytes(one.memory.total) if one.memory else "-", f"{one.mfu:.2f}" if one.mfu else "-"]
        rows.append([*row, _hours(one.hours), _dollars(one.cost)])
    return _table(["stage", "workers", "samples", "tokens", "FLOPs/sample", "memory", "MFU", "hours", "cost"], rows)


def memory(plans: Iterable[StagePlan], device: Accelerator) -> str:
    """Memory of one worker by part, and whether it fits."""
    rows = []
    for one in plans:
        if one.memory is not None:
            parts = asdict(one.memory)
            fits = "fits" if one.memory.total <= device.memory else "TOO BIG"
            rows.append([one.name, *(_bytes(parts[part]) for part in _PARTS), _bytes(one.memory.total), fits])
    return _table(["memory of a worker", *(_SHORT.get(part, part) for part in _PARTS), "total", f"of {_bytes(device.memory)}"], rows)


def notes(plans: Sequence[StagePlan], device: Accelerator) -> str:
    """How it was counted, and what was assumed."""
    peaks = ", ".join(f"{kind} {value / 1e12:.4g}" for kind, value in device.flops.items())
    lines = [
        "FLOPs: 4N a token for the frozen language model, 6N for LoRA, 2N for the frozen tower and Q-Former, causal attention by half,",
        "the head and the last feed-forward on supervised tokens; recomputed activations are in the hours, not in FLOPs/sample.",
        f"Peak of {device.name}: {peaks} TFLOP/s; ${device.price:g} an hour.",
        "Memory is that of a micro-batch of the longest rows. Lengths of real datasets are estimates, those of the shapes world counts.",
        "Hours are those of the steps: no start-up, no loading, no waiting for data, no filling of the feature cache. download, curate and",
        "promote are not timed.",
    ]
    return "\n".join([*lines, *_assumptions(plans)])


def _assumptions(plans: Sequence[StagePlan]) -> list[str]:
    """A line each, with the stages that share it."""
    stages_of: dict[str, list[str]] = {}
    for one in plans:
        if one.assumption:
            stages_of.setdefault(one.assumption, []).append(one.name)
    return [f"{', '.join(names)}: {assumption}." for assumption, names in stages_of.items()]


def comparison(plans: Iterable[StagePlan]) -> str:
    """Published hours beside planned ones; the last column is the MFU that would give the published hours exactly."""
    rows = []
    for one, known in ((one, published().get(one.name)) for one in plans):
        if known is None or known.hours is None or one.hours is None or one.gpus != known.gpus:
            continue
        ratio = one.hours / known.hours
        shares = [f"{ratio - 1:+.0%}", f"{one.mfu:.2f}", f"{one.mfu * ratio:.2f}"]
        rows.append([one.name, str(known.gpus), _hours(known.hours), _hours(one.hours), *shares])
    return _table(
        ["published run", "GPUs", "published h", "planned h", "differs", "planned MFU", "MFU of the run"], rows
    )


def markdown(plans: Iterable[StagePlan], device: Accelerator) -> str:
    """The recipe's table for the docs."""
    lines = [
        f"| stage | {device.name} GPUs | hours | published hours | memory a GPU | cost | published score |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in plans:
        known = published().get(one.name)
        hours = "not published" if known is None or known.hours is None else f"{_hours(known.hours)} on {known.gpus}"
        row = [one.name, _or_dash(one.gpus), _hours(one.hours), hours if one.hours is not None else "-"]
        row += [
            _bytes(one.memory.total) if one.memory else "-",
            _dollars(one.cost),
            (known.score or "-") if known else "-",
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, f"\nAll stages: {_dollars(sum(one.cost or 0.0 for one in plans))}."])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats rows in at most `_WIDTH` columns, the first cell to the left and numbers to the right."""
    natural = sum(max(len(row[column]) for row in [head, *rows]) for column in range(len(head)))
    gap = 2 if natural + 2 * (len(head) - 1) <= _WIDTH else 1
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for number, name in enumerate(head):
        table.add_column(name, no_wrap=number == 0, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console(width=_WIDTH, file=StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(table, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _or_dash(value: int) -> str:
    return str(value) if value else "-"


def _flops(value: float) -> str:
    return f"{value / 1e12:.3g} T" if value >= 1e11 else f"{value / 1e9:.3g} G" if value else "-"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if value >= size:
            return f"{value / size:.{0 if value >= 100 * size else 1}f} {unit}"
    return f"{value / 1024:.0f} KiB" if value else "0"


def _hours(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if value >= 1 else f"{value * 60:.1f} min"


def _dollars(value: float | None) -> str:
    return "-" if value is None else f"${value:,.0f}" if value >= 10 or value == 0 else f"${value:.2f}"
