"""Fetching sources into the store: resumable, checked, in parallel, with every loss counted."""

from mgpt.data.download.stage import Download, DownloadError, download
from mgpt.data.download.unpacked import base_folders, source_folder

__all__ = ["Download", "DownloadError", "base_folders", "download", "source_folder"]
