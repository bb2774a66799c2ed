"""The `curate` stage: from downloaded files to shards of samples and a manifest of them."""

from __future__ import annotations

from mgpt.pipeline.runner import StageContext, run
from mgpt.storage.names import CURATED


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage."""
    run("curate", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Checks every record and keeps those that may stay."""
    from mgpt.curation import curate
    from mgpt.curation.dataset_stats import plain_marks
    from mgpt.reporting.data_card import write_data_card

    folder = context.store.uri(CURATED, context.fingerprint)
    with context.ray(), context.work("curate"):
        curated = curate(context.manifest("download"), context.settings.sources, context.section, context.store, folder)
    curated.save(context.out)
    write_data_card(context.out / "card.html", curated.report, curated.stats, curated.pairs, plain_marks)
    context.tracker.log_artifact(context.out / "card.html")
    rows = sum(int(entry.meta["rows"]) for entry in curated.manifest.entries)
    return {"records": curated.report["records"], "kept": rows, "quarantined": curated.report["reasons"]}
