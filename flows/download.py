"""The `download` stage: from sources to files in the store and a manifest of them."""

from __future__ import annotations

from mgpt.download import download
from mgpt.pipeline.runner import StageContext, run


def main(model_name: str | None, dry: bool = False) -> None:
    """Runs the stage."""
    run("download", model_name, body, dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Fetches every source."""
    context.warm_ray()
    with context.work("download"):
        fetched = download(context.settings.sources, context.section, context.store)
    fetched.save(context.out)
    size = sum(entry.size for entry in fetched.manifest.entries)
    return {
        "sources": len(fetched.metrics),
        "stored": f"{len(fetched.manifest.entries)} files, {size / 1e6:.1f} MB",
        "failed": sum(int(found["failed"]) for found in fetched.metrics.values()),
    }
