"""The audit log on a local store and on S3."""

import json

import pytest

from mgpt.registry.audit_log import AuditLog
from mgpt.storage import Store


@pytest.fixture(params=["local", "s3"])
def audit_log(request, tmp_path):
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return AuditLog(Store(root), "minigpt-v2")


def promoted(audit_log, version, before):
    return audit_log.append("promoted", version, before=before, champion=version, reasons=["good"])


def test_decisions_are_ordered_and_chained(audit_log):
    promoted(audit_log, 1, None)
    audit_log.append("rejected", 2, before=1, champion=1, reasons=["worse"], run="r")
    promoted(audit_log, 3, 1)
    records = [(record.number, record.action, record.version) for record in audit_log.records()]
    assert records == [(1, "promoted", 1), (2, "rejected", 2), (3, "promoted", 3)]
    assert audit_log.broken_links() == []
    assert AuditLog(audit_log.store, "minigpt4").records() == []


def test_rollback_removes_last_promotion(audit_log):
    promoted(audit_log, 1, None)
    promoted(audit_log, 2, 1)
    audit_log.append("rolled back", 2, before=2, champion=1, reasons=["bad"])
    assert [record.version for record in audit_log.promotions()] == [1]
    assert audit_log.rolled_back() == {2}
    promoted(audit_log, 2, 1)
    assert audit_log.rolled_back() == set()


def test_changed_and_removed_decisions_are_found(audit_log):
    for version in (1, 2, 3):
        promoted(audit_log, version, version - 1 or None)
    uris = audit_log.store.list(audit_log.store.uri("registry", "minigpt-v2"))
    content = json.loads(audit_log.store.read(uris[1]))
    audit_log.store.write(uris[1], json.dumps({**content, "author": "somebody else"}).encode())
    (finding,) = audit_log.broken_links()
    assert "decision 2 of minigpt-v2 was changed" in finding
    audit_log.store.delete(uris[1])
    assert "decision 2 of minigpt-v2 is missing" in audit_log.broken_links()


def test_simultaneous_decision_is_refused(audit_log):
    promoted(audit_log, 1, None)

    class SlowLog(AuditLog):
        def records(self):
            seen = super().records()
            if len(seen) == 1:
                promoted(audit_log, 2, 1)  # another process, between this one's read and its write
            return seen

    with pytest.raises(ValueError, match="another process"):
        promoted(SlowLog(audit_log.store, audit_log.model), 3, 1)
    assert [record.version for record in audit_log.records()] == [1, 2]


def test_unreadable_record_is_named(audit_log):
    audit_log.store.write(audit_log.store.uri("registry", "minigpt-v2", "000001.json"), b"{")
    with pytest.raises(ValueError, match=r"000001\.json is not a decision record"):
        audit_log.records()
