"""Sources in, a manifest of files in the store out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mgpt.config.sources import SourceSettings
from mgpt.pipeline.check import load_checked_settings
from mgpt.pipeline.fingerprint import digest
from mgpt.pipeline.runner import StageContext, run


def main(model_name: str | None, dry: bool = False) -> None:
    """The `download` stage."""
    run("download", model_name, body, extra=own_folders(load_checked_settings().sources), dry=dry)


def body(context: StageContext) -> dict[str, object]:
    """Fetches every source."""
    from mgpt.download import download

    context.warm_ray()
    with context.work("download"):
        fetched = download(context.settings.sources, context.section, context.store)
    fetched.save(context.out)
    lost = sum(int(found["failed"]) for found in fetched.metrics.values())
    size = sum(entry.size for entry in fetched.manifest.entries)
    return {
        "sources": len(fetched.metrics),
        "stored": f"{len(fetched.manifest.entries)} files, {size / 1e6:.1f} MB",
        "failed": lost,
    }


def own_folders(sources: Mapping[str, SourceSettings]) -> dict[str, str]:
    """The content of local folders that sources name: dvc.yaml cannot list them, and an image added there is new input."""
    paths = {
        f"sources.{name} {place}": Path(place)
        for name, source in sources.items()
        for place in source.locations
        if "://" not in place
    }
    return {name: digest(path) for name, path in paths.items() if path.exists()}
