"""Fetching sources into the store: resumable, checked, in parallel, with every loss counted."""

from mgpt.data.extract import backbone_folders, source_folder
from mgpt.download.stage import Download, DownloadError, download

__all__ = ["Download", "DownloadError", "backbone_folders", "download", "source_folder"]
