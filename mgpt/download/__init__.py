"""The download stage: fetches sources into the store, resumably and in parallel, and counts every failed file."""

from mgpt.download.stage import Download, DownloadError, download

__all__ = ["Download", "DownloadError", "download"]
