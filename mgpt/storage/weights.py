"""Trained weights by reference: stored once under their content digest, verified on every use, found wherever the store
is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path, PurePosixPath

from mgpt.storage.artifacts import ArtifactStore, content_digest
from mgpt.storage.store import Store, is_remote, sha256_bytes
from mgpt.storage.types import WeightsReference

PACKAGE = "package://"
_OWN_PACKAGE = "mgpt"


def store_weights(folder: Path, model_name: str, backbones: Mapping[str, str], store: Store) -> WeightsReference:
    """Stores a folder of trained weights under its content digest, reads it back and returns the reference to it.

    Args:
        backbones: folder or URI of each frozen backbone by name.

    Raises:
        ValueError: the files in the store differ from those in `folder`.
    """
    artifacts = ArtifactStore(store)
    digest = artifacts.put(folder)
    locations = {name: portable_location(uri, store) for name, uri in backbones.items()}
    reference = WeightsReference(
        model_name, digest, portable_location(artifacts.uri(digest), store), locations, store.root
    )
    verify_weights(reference, store)
    return reference


def verify_weights(reference: WeightsReference, store: Store) -> None:
    """Reads every file of the weights in the store and compares their digest with the reference's.

    Raises:
        ValueError: the files are gone or were altered.
    """
    folder = store.uri(reference.weights)
    names = {uri.removeprefix(f"{folder}/"): uri for uri in store.list(folder)}
    lines = [f"{name} {store.digest(names[name])[0]}" for name in sorted(names, key=PurePosixPath)]
    _compare(reference, folder, sha256_bytes("\n".join(lines).encode()) if lines else None)


@contextmanager
def open_weights(reference: WeightsReference, store: Store) -> Iterator[Path]:
    """Yields verified weights as a local folder: the stored one itself, or a temporary copy of a remote one.

    Raises:
        ValueError: the files are gone or were altered.
    """
    folder = store.uri(reference.weights)
    if not is_remote(folder):
        verify_weights(reference, store)
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            store.fetch_folder(folder, scratch)
        except FileNotFoundError:
            _compare(reference, folder, None)
        _compare(reference, folder, content_digest(Path(scratch)))
        yield Path(scratch)


def _compare(reference: WeightsReference, folder: str, found: str | None) -> None:
    if found is None:
        raise ValueError(
            f"{folder}: the weights registered for {reference.model_name} are gone; restore them from a backup, or set "
            "storage.root to the store that holds them"
        )
    if found != reference.digest:
        raise ValueError(
            f"{folder}: the weights of {reference.model_name} were altered (content digest {found[:12]}, registered "
            f"{reference.digest[:12]}); delete the folder and its .json marker, then promote the model again"
        )


def portable_location(uri: str, store: Store) -> str:
    """Returns a location that stays valid when the store moves.

    Relative to the store's root for what is inside it, `package://mgpt/...` for what ships with the package, else an
    absolute path or URI.
    """
    if "://" not in uri:
        uri = str(Path(uri).absolute())
    if uri.startswith(f"{store.root}/"):
        return uri.removeprefix(f"{store.root}/")
    package = str(resources.files(_OWN_PACKAGE))
    if uri.startswith(f"{package}/"):
        return f"{PACKAGE}{_OWN_PACKAGE}/{uri.removeprefix(f'{package}/')}"
    return uri


def resolve_location(location: str, store: Store) -> str:
    """Returns the absolute path or URI of a location that `portable_location` made."""
    if location.startswith(PACKAGE):
        package, _, folder = location.removeprefix(PACKAGE).partition("/")
        return str(Path(str(resources.files(package))) / folder)
    if "://" in location or Path(location).is_absolute():
        return location
    return store.uri(location)
