"""The record of every decision about a model's champion: append-only, in the store, each chained to the one before by its hash.

MLflow's alias table holds a name and a version, no time and no author, and an alias is set without looking at its old value. So the
decisions stand here, one numbered object each, because an S3 server cannot append to a file. Writing number n succeeds for one writer only,
so two promotions at once are put in order.
"""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Literal

from mgpt.storage import Store, sha256_bytes

Action = Literal["promoted", "held back", "rolled back"]
NOTHING_BEFORE = "0" * 64


@dataclass(frozen=True)
class Record:
    """One decision. `champion` is the version that carries the alias after it, `before` until then (None: none). `run`: the MLflow run."""

    number: int
    action: Action
    version: int
    before: int | None
    champion: int | None
    time: str
    author: str
    run: str = ""
    reasons: list[str] = field(default_factory=list)
    previous_sha256: str = NOTHING_BEFORE

    @property
    def sha256(self) -> str:
        """Hash of the whole record, the previous record's hash included."""
        return sha256_bytes(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True)
class Journal:
    """The decisions of one registered model."""

    store: Store
    model: str

    @property
    def _folder(self) -> str:
        return self.store.uri("registry", self.model)

    def records(self) -> list[Record]:
        """Every decision, oldest first. Raises ValueError for a record that cannot be read."""
        return [self._read(uri) for uri in self.store.list(self._folder) if uri.endswith(".json")]

    def _read(self, uri: str) -> Record:
        try:
            return Record(**json.loads(self.store.read(uri)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f"{uri} is no decision record ({error}): it was changed by hand; restore it from a backup"
            ) from error

    def append(
        self,
        action: Action,
        version: int,
        *,
        before: int | None,
        champion: int | None,
        reasons: list[str],
        run: str = "",
    ) -> Record:
        """Adds a decision and returns it.

        Raises:
            ValueError: another process decided at the same moment; what it decided must be seen first.
        """
        past = self.records()
        previous = past[-1].sha256 if past else NOTHING_BEFORE
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = Record(len(past) + 1, action, version, before, champion, now, _author(), run, reasons, previous)
        content = json.dumps(asdict(record), indent=1, sort_keys=True).encode() + b"\n"
        if not self.store.put_if_absent(f"{self._folder}/{record.number:06d}.json", content):
            raise ValueError(
                f"{self.model}: another process decided on its champion just now; look at `mgpt models`, then run this again"
            )
        return record

    def broken_links(self) -> list[str]:
        """What was removed or changed after it was written: one sentence each; empty when the chain is whole."""
        found, previous = [], NOTHING_BEFORE
        for position, record in enumerate(self.records(), start=1):
            if record.number != position:
                found.append(f"decision {position} of {self.model} is missing")
            elif record.previous_sha256 != previous:
                found.append(f"decision {position - 1} of {self.model} was changed after it was written")
            previous = record.sha256
        return found

    def promotions(self) -> list[Record]:
        """Promotions that were not rolled back, oldest first: the last made the champion, and its `before` is where a rollback goes."""
        stack: list[Record] = []
        for record in self.records():
            if record.action == "promoted":
                stack.append(record)
            elif record.action == "rolled back" and stack:
                stack.pop()
        return stack

    def rolled_back(self) -> set[int]:
        """Versions whose last decision was a rollback."""
        last = {record.version: record.action for record in self.records()}
        return {version for version, action in last.items() if action == "rolled back"}


def _author() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container without a user entry
