"""Every byte that enters or leaves: the store, manifests of files, and artifacts kept by content."""

from mgpt.storage.manifest import Entry, Manifest
from mgpt.storage.store import Store, is_remote, sha256_bytes, sha256_file, write_atomic

__all__ = ["Entry", "Manifest", "Store", "is_remote", "sha256_bytes", "sha256_file", "write_atomic"]
