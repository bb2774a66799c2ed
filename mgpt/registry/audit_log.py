"""The append-only log of every decision about a model's champion, kept in the store, each entry chained to the one
before by its hash.

MLflow's alias table holds a name and a version but no time or author, and sets an alias without looking at its old
value. Decisions are therefore kept here, as one numbered object each because S3 cannot append to a file. Only one
writer can create number n, which puts simultaneous promotions in order.
"""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from mgpt.registry.types import Action
from mgpt.storage import Store, sha256_bytes

NO_PREVIOUS = "0" * 64


@dataclass(frozen=True)
class DecisionRecord:
    """One logged decision about `version`. `before` and `champion` are the champion before and after it (None: none);
    `run` is the id of the MLflow run."""

    number: int
    action: Action
    version: int
    before: int | None
    champion: int | None
    time: str
    author: str
    run: str = ""
    reasons: list[str] = field(default_factory=list)
    previous_sha256: str = NO_PREVIOUS

    @property
    def sha256(self) -> str:
        """Hash of the whole record, including the hash of the previous one."""
        return sha256_bytes(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True)
class AuditLog:
    """The decisions about one registered model: `registry/<model>/<number>.json` in the store."""

    store: Store
    model: str

    @property
    def _folder(self) -> str:
        return self.store.uri("registry", self.model)

    def records(self) -> list[DecisionRecord]:
        """Returns every decision, oldest first. Raises ValueError for a record that cannot be read."""
        return [self._read(uri) for uri in self.store.list(self._folder) if uri.endswith(".json")]

    def _read(self, uri: str) -> DecisionRecord:
        try:
            return DecisionRecord(**json.loads(self.store.read(uri)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{uri} is not a decision record ({error}); restore it from a backup") from error

    def append(
        self,
        action: Action,
        version: int,
        *,
        before: int | None,
        champion: int | None,
        reasons: list[str],
        run: str = "",
    ) -> DecisionRecord:
        """Appends a decision and returns it.

        Raises:
            ValueError: another process appended a decision at the same moment, which the caller has to see first.
        """
        past = self.records()
        previous = past[-1].sha256 if past else NO_PREVIOUS
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = DecisionRecord(
            len(past) + 1, action, version, before, champion, now, _author(), run, reasons, previous
        )
        content = json.dumps(asdict(record), indent=1, sort_keys=True).encode() + b"\n"
        if not self.store.put_if_absent(f"{self._folder}/{record.number:06d}.json", content):
            raise ValueError(
                f"{self.model}: another process changed the champion at the same time; check `mgpt models` and run "
                "again"
            )
        return record

    def broken_links(self) -> list[str]:
        """Returns one sentence for each decision that was removed or changed after it was written; empty when the chain
        is intact."""
        found, previous = [], NO_PREVIOUS
        for position, record in enumerate(self.records(), start=1):
            if record.number != position:
                found.append(f"decision {position} of {self.model} is missing")
            elif record.previous_sha256 != previous:
                found.append(f"decision {position - 1} of {self.model} was changed after it was written")
            previous = record.sha256
        return found

    def promotions(self) -> list[DecisionRecord]:
        """Returns promotions that were not rolled back, oldest first. A rollback restores the `before` of the last
        one."""
        stack: list[DecisionRecord] = []
        for record in self.records():
            if record.action == "promoted":
                stack.append(record)
            elif record.action == "rolled back" and stack:
                stack.pop()
        return stack

    def rolled_back(self) -> set[int]:
        """Returns the versions whose last decision was a rollback."""
        last = {record.version: record.action for record in self.records()}
        return {version for version, action in last.items() if action == "rolled back"}


def _author() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"  # a container without a user entry
