"""Fetching sources into the store: resumable, checked, in parallel, with every loss counted."""

from mgpt.data.extract import base_folders, source_folder
from mgpt.download.stage import Download, DownloadError, download

__all__ = ["Download", "DownloadError", "base_folders", "download", "source_folder"]
