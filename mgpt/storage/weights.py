"""Trained weights by reference: stored once under their content digest, verified on every use, found wherever the store
is.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from mgpt.storage.artifacts import ArtifactStore
from mgpt.storage.store import Store
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
    """Reads every file of the weights in the store and compares it with what was registered.

    Raises:
        ValueError: files are gone or were altered.
    """
    try:
        ArtifactStore(store).verify(reference.digest)
    except ValueError as error:
        raise ValueError(f"weights registered for {reference.model_name}: {error}") from error


def open_weights(reference: WeightsReference, store: Store) -> Path:
    """Returns verified weights as a local folder: the stored one itself, or a copy of a remote one.

    Raises:
        ValueError: files are gone or were altered.
    """
    verify_weights(reference, store)
    return ArtifactStore(store).local_folder(reference.digest)


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
