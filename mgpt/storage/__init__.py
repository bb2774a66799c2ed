"""Every byte that enters or leaves: the store, manifests of files, and artifacts kept by content."""

from mgpt.storage.filesystem import is_remote
from mgpt.storage.hashing import sha256_bytes, sha256_file
from mgpt.storage.manifest import Entry, Manifest
from mgpt.storage.store import Store, write_atomic

__all__ = ["Entry", "Manifest", "Store", "is_remote", "sha256_bytes", "sha256_file", "write_atomic"]
