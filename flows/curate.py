"""Downloaded files in, shards of samples and a manifest of them out."""

from __future__ import annotations

from mgpt.pipeline.runner import StageContext, run
from mgpt.storage import Manifest


def main(model_name: str | None, dry: bool = False) -> None:
    """The `curate` stage."""
    run("curate", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Checks every record and keeps what may stay."""
    from mgpt.curation import curate
    from mgpt.curation.dataset_stats import plain_marks
    from mgpt.reporting.data_card import card_html

    downloaded = Manifest.load(context.result("download") / "manifest.json")
    folder = context.store.uri("curated", context.fingerprint)
    with context.ray(), context.work("curate"):
        curated = curate(downloaded, context.settings.sources, context.section, context.store, folder)
    curated.save(context.out)
    card = card_html(curated.report, curated.stats, curated.pairs, plain_marks)
    (context.out / "card.html").write_text(card, encoding="utf-8")
    context.tracker.log_artifact(context.out / "card.html")
    rows = sum(int(entry.meta["rows"]) for entry in curated.manifest.entries)
    return {"records": curated.report["records"], "kept": rows, "quarantined": curated.report["reasons"]}
