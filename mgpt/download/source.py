"""Download of one source into the store, item by item; the status of each stored item is saved."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from mgpt.config.sources import DownloadSettings, SourceSettings
from mgpt.data.archives import write_tar
from mgpt.data.synthetic.formats import write_world
from mgpt.download.fetch import FetchError, fetch
from mgpt.download.mirrors import FolderLocation
from mgpt.download.plan import Item, SourceFile, group_files, list_files, source_key
from mgpt.storage import Store, is_remote

CHECKSUMS = "SHA256SUMS"
_CHECKSUM_LINE = re.compile(r"^([0-9a-f]{64})\s+\*?(.+)$")


@dataclass(frozen=True)
class ItemStatus:
    """The outcome of one item.

    status: `ok` or `failed`. files, failed: numbers of all its files and of those that failed. when: UTC time of the
    attempt. stamp: a text that changes with the item's origin. reason: the first errors.
    """

    source: str
    name: str
    status: str
    files: int
    failed: int
    size: int
    sha256: str
    licence: str
    stamp: str
    when: str
    reason: str = ""
    uri: str = ""
    version_id: str | None = None


UrlListFetcher: TypeAlias = "Callable[[SourceFetcher, Sequence[SourceFile], Path], list[ItemStatus]]"


class SourceFetcher:
    """Fetches one source.

    Each stored item has a status file in the store, so that any machine resumes where another stopped.
    """

    def __init__(self, name: str, source: SourceSettings, settings: DownloadSettings, store: Store) -> None:
        self.name, self.source, self.settings, self.store = name, source, settings, store
        self.key = source_key(name, source)

    def fetch(self, fetch_url_lists: UrlListFetcher) -> list[ItemStatus]:
        """Returns the status of every item, in order of name.

        `fetch_url_lists` fetches a source of kind `url-list`. Raises ValueError if no location can be listed.
        """
        spool = self._spool()
        if self.source.kind == "scenes":
            return self._fetch_scenes(spool)
        files = list_files(self.name, self.source, self.settings)
        if self.source.kind == "url-list":
            return fetch_url_lists(self, files, spool)
        return self._fetch_files(files, spool)

    def _fetch_files(self, files: Sequence[SourceFile], spool: Path) -> list[ItemStatus]:
        digests = self._published_digests(files, spool) | self.source.sha256
        items = group_files(files, 1 << 60 if self.source.kind == "backbones" else self.settings.bundle_files)
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            return list(pool.map(lambda item: self.fetch_item(item, spool, digests), items))

    def _fetch_scenes(self, spool: Path) -> list[ItemStatus]:
        stamp = f"seed {self.source.seed} counts {sorted(self.source.counts.items())}"
        if done := self.saved_status("world", stamp):
            return [ItemStatus(**item) for item in json.loads(done.reason)]
        with tempfile.TemporaryDirectory(dir=spool) as folder:
            write_world(folder, seed=self.source.seed, counts=dict(self.source.counts))
            written = self.source.model_copy(update={"kind": "files", "locations": (folder,)})
            statuses = self._fetch_files(list_files(self.name, written, self.settings), spool)
        # The files' own stamps name the temporary folder, so one status holds those of all files.
        summary = json.dumps([asdict(status) for status in statuses])
        self.save_status(self._status("world", stamp, "ok", 0, reason=summary))
        return statuses

    def _spool(self) -> Path:
        # In a local store, so that partial files survive and the last step is a move; for a remote store, in the
        # user's cache.
        root = Path.home() / ".cache" / "mgpt" if is_remote(self.store.root) else Path(self.store.root)
        spool = root / "spool" / self.key
        spool.mkdir(parents=True, exist_ok=True)
        return spool

    def _published_digests(self, files: Sequence[SourceFile], spool: Path) -> dict[str, str]:
        digests = {}
        for file in files:
            if file.name.rsplit("/", 1)[-1] == CHECKSUMS:
                folder = file.name[: -len(CHECKSUMS)]
                fetched = fetch(file.mirrors, spool / "checksums" / name_hash(file.name), self.settings)
                for line in fetched.path.read_text(encoding="utf-8").splitlines():
                    if match := _CHECKSUM_LINE.match(line):
                        digests[folder + match.group(2).removeprefix("./")] = match.group(1)
        missing = sorted(set(digests) - {file.name for file in files})
        if missing:
            raise ValueError(
                f"sources.{self.name}: {CHECKSUMS} names files that are not there: {', '.join(missing[:5])}; "
                "download the whole source again"
            )
        return digests

    def fetch_item(self, item: Item, spool: Path, digests: Mapping[str, str]) -> ItemStatus:
        """Stores one item unless an earlier run did, and returns its status."""
        if done := self.saved_status(item.name, item.stamp):
            return done
        path = spool / name_hash(item.name)
        try:
            status = self._store_bundle(item, path, digests) if item.bundle else self._store_file(item, path, digests)
        except FetchError as error:
            count = len(item.files)
            return self._status(item.name, item.stamp, "failed", count, failed=count, reason=str(error))
        self.save_status(status)
        return status

    def _store_file(self, item: Item, path: Path, digests: Mapping[str, str]) -> ItemStatus:
        fetched = fetch(item.files[0].mirrors, path, self.settings, digests.get(item.name))
        uri = self.store.uri("sources", self.key, item.name)
        self.store.put_file(fetched.path, uri)
        fetched.path.unlink()
        return self._status(item.name, item.stamp, "ok", 1, size=fetched.size, sha256=fetched.sha256, uri=uri)

    def _store_bundle(self, item: Item, folder: Path, digests: Mapping[str, str]) -> ItemStatus:
        fetched, errors = [], []
        for file in item.files:
            try:
                fetched.append((file.name.rsplit("/", 1)[-1], self._fetch_member(file, folder, digests)))
            except FetchError as error:
                errors.append(str(error))
        if not fetched:
            raise FetchError(errors[0])
        members = ((name, path.read_bytes()) for name, path in fetched)
        status = self.store_tar(item.name, item.stamp, members, len(item.files), errors)
        shutil.rmtree(folder, ignore_errors=True)
        return status

    def _fetch_member(self, file: SourceFile, folder: Path, digests: Mapping[str, str]) -> Path:
        first = file.mirrors[0]
        if isinstance(first.location, FolderLocation) and file.name not in digests:
            return Path(first.remote.uri)  # a local file without a digest to verify needs no copy
        path = folder / name_hash(file.name)
        if not path.exists():
            fetch(file.mirrors, path, self.settings, digests.get(file.name))
        return path

    def store_tar(
        self, name: str, stamp: str, members: Iterable[tuple[str, bytes]], files: int, errors: Sequence[str]
    ) -> ItemStatus:
        """Stores an item as a tar of `members` (name, content).

        `files` counts the item's files; `errors` holds one message for each that failed.
        """
        uri = self.store.uri("sources", self.key, name)
        with self.store.open(uri, "wb") as target:
            write_tar(target, members)
        entry = self.store.entry(name, uri)
        reason = "; ".join(errors[:3])
        return self._status(
            name, stamp, "ok", files, failed=len(errors), size=entry.size, sha256=entry.sha256, reason=reason, uri=uri
        )

    def _status(
        self,
        name: str,
        stamp: str,
        status: str,
        files: int,
        *,
        failed: int = 0,
        size: int = 0,
        sha256: str = "",
        reason: str = "",
        uri: str = "",
    ) -> ItemStatus:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        licence = self.source.licence
        return ItemStatus(self.name, name, status, files, failed, size, sha256, licence, stamp, when, reason, uri)

    def _status_uri(self, name: str) -> str:
        return self.store.uri("sources", "status", self.key, f"{name_hash(name)}.json")

    def saved_status(self, name: str, stamp: str) -> ItemStatus | None:
        """Returns the status that an earlier run saved, if no file failed and the origin has not changed."""
        try:
            status = ItemStatus(**json.loads(self.store.read(self._status_uri(name))))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None
        return status if status.stamp == stamp and not status.failed else None

    def save_status(self, status: ItemStatus) -> None:
        """Saves a status for later runs. Call it after the content is stored: a saved status implies that it is."""
        self.store.write(self._status_uri(status.name), json.dumps(asdict(status), sort_keys=True).encode())


def name_hash(name: str) -> str:
    """Returns a short hash of a name, for use as a file name."""
    return hashlib.sha256(name.encode()).hexdigest()[:24]
