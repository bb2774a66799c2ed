"""`mgpt data`: datasets that can be read, a check of own data, and the data card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgpt.cli.console import print_table, print_wrapped, status
from mgpt.cli.project import project_folder

if TYPE_CHECKING:
    from mgpt.data.datasets import Card

app = typer.Typer(no_args_is_help=True, help="Datasets that can be read, a check of own data, and the data card.")


@app.command()
def datasets(name: Annotated[str | None, typer.Argument(help="Everything about one dataset.")] = None) -> None:
    """List the datasets that can be read, with kind, licence and links."""
    from mgpt.data.datasets import READERS

    if name is None:
        print_table(["name", "kind", "reader", "licence", "links"], [_row(reader.card) for reader in READERS.values()])
        print("\nFormat, size, links, citation and notes of one dataset: mgpt data datasets NAME")
        return
    if name not in READERS:
        raise ValueError(f"there is no dataset reader {name!r}; use one of {', '.join(sorted(READERS))}")
    for key, value in asdict(READERS[name].card).items():
        values = [str(value)] if isinstance(value, str | bool) else list(map(str, value))
        for number, line in enumerate(values if value else []):
            print(f"{key if number == 0 else '':>16}  {' '.join(line.split())}")


@app.command()
def validate(
    path: Annotated[Path, typer.Argument(help="A folder, or a JSONL file next to its images.")],
    reader: Annotated[str, typer.Option(help="The dataset reader.")] = "jsonl",
) -> None:
    """Check a folder or a JSONL file as the pipeline's curation would."""
    from mgpt.pipeline.validate import validate as validated

    with status(f"validating {path}") as report:
        result = validated(path, reader, report=report)
    print_wrapped(result.text())


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="For instance minigpt-v2.")],
    stage: Annotated[str | None, typer.Option(help="The stage whose prompt format is shown.")] = None,
    out: Annotated[Path | None, typer.Option(help="The page to write; card-MODEL.html by default.")] = None,
) -> None:
    """Write the data card of the curated data, with the exact training text of a model."""
    from mgpt.reporting.training_card import training_card

    print(training_card(project_folder(), model, out or Path(f"card-{model}.html"), stage))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    form: Annotated[str, typer.Option("--format", help="parquet, webdataset or jsonl.")] = "parquet",
    dataset: Annotated[list[str] | None, typer.Option(help="A dataset to export; all by default.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="A split to export; all by default.")] = None,
) -> None:
    """Write curated samples as Parquet, webdataset tars or JSON Lines."""
    from mgpt.data.export import export_shards
    from mgpt.storage import Manifest

    path = project_folder() / "results/curate/manifest.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist; run `dvc repro curate` first")
    chosen = [
        entry
        for entry in Manifest.load(path).entries
        if (not dataset or entry.meta["dataset"] in dataset) and (not split or entry.meta["split"] in split)
    ]
    with status(f"exporting to {out}") as report:
        samples = export_shards(chosen, out, form, report)
    print(f"{samples} samples in {out}")


def _row(card: Card) -> list[str]:
    official = "dead" if card.dead else str(len(card.links) or "none")
    mirrors = f" + {len(card.mirrors)} mirror{'s' * (len(card.mirrors) > 1)}" if card.mirrors else ""
    return [card.name, card.kind, _tested(card.name), card.licence, official + mirrors]


def _tested(name: str) -> str:
    """Returns "tested" for a format that tests read: the synthetic world's, and that of docs/own-data.md."""
    from mgpt.data.synthetic.formats import DATASETS

    return "tested" if name in DATASETS or name == "jsonl" else "untested"
