"""One source on its way into the store: item by item, each remembered when it is done."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from mgpt.config.sources import DownloadSettings, SourceSettings
from mgpt.data.archives import write_tar
from mgpt.download.fetch import Fetched, FetchError, Patience, fetch
from mgpt.download.mirrors import FolderLocation
from mgpt.download.plan import File, Item, group, list_files, source_key
from mgpt.storage import Store, is_remote

CHECKSUMS = "SHA256SUMS"
_CHECKSUM_LINE = re.compile(r"^([0-9a-f]{64})\s+\*?(.+)$")


@dataclass(frozen=True)
class Status:
    """Outcome of one item: `ok` or `failed`, with the reason.

    `files` and `failed` count the files it bundles; `when` is the UTC time of the attempt; `stamp` changes with the
    origin.
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


UrlListFetcher: TypeAlias = "Callable[[SourceFetch, Sequence[File], Path], list[Status]]"


class SourceFetch:
    """Fetches one source. Progress is a small status file per item in the store, so any machine goes on where
    another stopped.
    """

    def __init__(self, name: str, source: SourceSettings, settings: DownloadSettings, store: Store) -> None:
        self.name, self.source, self.settings, self.store = name, source, settings, store
        self.key = source_key(name, source)
        self.patience = Patience(settings.attempts, settings.timeout_seconds, settings.backoff_seconds)

    def fetch(self, fetch_url_lists: UrlListFetcher) -> list[Status]:
        """Returns the status of every item, in order of name.

        `fetch_url_lists` fetches a source of kind `url-list`. Raises ValueError where no location can be listed.
        """
        with ExitStack() as stack:
            spool = self._spool(stack)
            if self.source.kind == "scenes":
                return self._fetch_scenes(spool)
            files = list_files(self.name, self.source, self.patience)
            if self.source.kind == "url-list":
                return fetch_url_lists(self, files, spool)
            return self._fetch_files(files, spool)

    def _fetch_files(self, files: Sequence[File], spool: Path) -> list[Status]:
        digests = self._published_digests(files, spool) | self.source.sha256
        items = group(files, 1 << 60 if self.source.kind == "backbones" else self.settings.bundle_files)
        with ThreadPoolExecutor(self.settings.parallel) as pool:
            return list(pool.map(lambda item: self.item(item, spool, digests), items))

    def _fetch_scenes(self, spool: Path) -> list[Status]:
        from mgpt.data.synthetic.formats import write_world

        stamp = f"seed {self.source.seed} counts {sorted(self.source.counts.items())}"
        done = self.recall("world", stamp)
        if done:
            return [Status(**item) for item in json.loads(done.reason)]
        with tempfile.TemporaryDirectory(dir=spool) as folder:
            write_world(folder, seed=self.source.seed, counts=dict(self.source.counts))
            written = self.source.model_copy(update={"kind": "files", "locations": (folder,)})
            found = self._fetch_files(list_files(self.name, written, self.patience), spool)
        self.remember(
            Status(
                self.name,
                "world",
                "ok",
                0,
                0,
                0,
                "",
                self.source.licence,
                stamp,
                _now(),
                json.dumps([asdict(item) for item in found]),
            )
        )
        return found

    def _spool(self, stack: ExitStack) -> Path:
        # Beside a local store, so that a partial file survives and the last step is a move; with a remote store, in
        # the user's cache.
        root = Path.home() / ".cache" / "mgpt" if is_remote(self.store.root) else Path(self.store.root)
        spool = root / "spool" / self.key
        spool.mkdir(parents=True, exist_ok=True)
        return spool

    def _published_digests(self, files: Sequence[File], spool: Path) -> dict[str, str]:
        digests = {}
        for file in files:
            if file.name.rsplit("/", 1)[-1] == CHECKSUMS:
                folder = file.name[: -len(CHECKSUMS)]
                fetched = fetch(file.mirrors, spool / "checksums" / _hash(file.name), self.patience)
                for line in fetched.path.read_text(encoding="utf-8").splitlines():
                    if match := _CHECKSUM_LINE.match(line):
                        digests[folder + match.group(2).removeprefix("./")] = match.group(1)
        missing = sorted(set(digests) - {file.name for file in files})
        if missing:
            raise ValueError(
                f"sources.{self.name}: {CHECKSUMS} names files that are not there: {', '.join(missing[:5])}; "
                "get the whole source again"
            )
        return digests

    def item(self, item: Item, spool: Path, digests: Mapping[str, str]) -> Status:
        """Brings one item into the store, or says why not; what an earlier run brought is not asked for again."""
        if done := self.recall(item.name, item.stamp):
            return done
        place = spool / _hash(item.name)
        try:
            status = self._bundle(item, place, digests) if item.bundle else self._single(item, place, digests)
        except FetchError as error:
            return self.failed(item.name, item.stamp, len(item.files), str(error))
        self.remember(status)
        return status

    def _single(self, item: Item, place: Path, digests: Mapping[str, str]) -> Status:
        fetched = fetch(item.files[0].mirrors, place, self.patience, digests.get(item.name))
        uri = self.store.uri("sources", self.key, item.name)
        self._move_in(fetched, uri)
        return self.done(item.name, item.stamp, 1, 0, uri, fetched.size, fetched.sha256)

    def _move_in(self, fetched: Fetched, uri: str) -> None:
        self.store.put_file(fetched.path, uri)
        fetched.path.unlink()

    def _bundle(self, item: Item, place: Path, digests: Mapping[str, str]) -> Status:
        arrived, lost = [], []
        for file in item.files:
            try:
                arrived.append((file.name.rsplit("/", 1)[-1], self._member(file, place, digests)))
            except FetchError as error:
                lost.append(str(error))
        if not arrived:
            raise FetchError(lost[0])
        uri = self.store.uri("sources", self.key, item.name)
        with self.store.open(uri, "wb") as target:
            write_tar(target, ((name, path.read_bytes()) for name, path in arrived))
        entry = self.store.entry(item.name, uri)
        shutil.rmtree(place, ignore_errors=True)
        return self.done(
            item.name, item.stamp, len(item.files), len(lost), uri, entry.size, entry.sha256, "; ".join(lost[:3])
        )

    def _member(self, file: File, place: Path, digests: Mapping[str, str]) -> Path:
        first = file.mirrors[0]
        if isinstance(first.location, FolderLocation) and file.name not in digests:
            return Path(first.remote.uri)  # it is on this machine already: read where it lies
        path = place / _hash(file.name)
        if not path.exists():
            fetch(file.mirrors, path, self.patience, digests.get(file.name))
        return path

    def done(
        self, name: str, stamp: str, files: int, failed: int, uri: str, size: int, sha256: str, reason: str = ""
    ) -> Status:
        """The status of an item that is in the store."""
        return Status(
            self.name, name, "ok", files, failed, size, sha256, self.source.licence, stamp, _now(), reason, uri
        )

    def failed(self, name: str, stamp: str, files: int, reason: str) -> Status:
        """The status of an item of which nothing arrived."""
        return Status(self.name, name, "failed", files, files, 0, "", self.source.licence, stamp, _now(), reason)

    def _status_uri(self, name: str) -> str:
        return self.store.uri("sources", "status", self.key, f"{_hash(name)}.json")

    def recall(self, name: str, stamp: str) -> Status | None:
        """The status that an earlier run left, when the item is whole and its origin has not changed."""
        try:
            status = Status(**json.loads(self.store.read(self._status_uri(name))))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None
        return status if status.stamp == stamp and not status.failed else None

    def remember(self, status: Status) -> None:
        """Leaves a status for later runs. It is written after the bytes: what is remembered is there."""
        self.store.write(self._status_uri(status.name), json.dumps(asdict(status), sort_keys=True).encode())


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
