import json

import pytest

from mgpt.registry.audit_log import Journal
from mgpt.storage import Store


@pytest.fixture(params=["local", "s3"])
def journal(request, tmp_path):
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return Journal(Store(root), "minigpt-v2")


def promoted(journal, version, before):
    return journal.append("promoted", version, before=before, champion=version, reasons=["good"])


def test_decisions_are_kept_in_order_and_chained(journal):
    promoted(journal, 1, None)
    journal.append("held back", 2, before=1, champion=1, reasons=["worse"], run="r")
    promoted(journal, 3, 1)
    told = [(record.number, record.action, record.version) for record in journal.records()]
    assert told == [(1, "promoted", 1), (2, "held back", 2), (3, "promoted", 3)]
    assert journal.broken_links() == []
    assert Journal(journal.store, "minigpt4").records() == []


def test_a_rollback_takes_the_last_promotion_away(journal):
    promoted(journal, 1, None)
    promoted(journal, 2, 1)
    journal.append("rolled back", 2, before=2, champion=1, reasons=["bad"])
    assert [record.version for record in journal.promotions()] == [1]
    assert journal.rolled_back() == {2}
    promoted(journal, 2, 1)
    assert journal.rolled_back() == set()


def test_changed_and_removed_decisions_are_found(journal):
    for version in (1, 2, 3):
        promoted(journal, version, version - 1 or None)
    uris = journal.store.list(journal.store.uri("registry", "minigpt-v2"))
    content = json.loads(journal.store.read(uris[1]))
    journal.store.write(uris[1], json.dumps({**content, "author": "somebody else"}).encode())
    assert journal.broken_links() == ["decision 2 of minigpt-v2 was changed after it was written"]
    journal.store.delete(uris[1])
    assert "decision 2 of minigpt-v2 is missing" in journal.broken_links()


def test_of_two_decisions_at_once_one_is_refused(journal):
    promoted(journal, 1, None)

    class Slow(Journal):
        def records(self):
            seen = super().records()
            if len(seen) == 1:
                promoted(journal, 2, 1)  # the other process, between this one's look and its write
            return seen

    with pytest.raises(ValueError, match="another process decided"):
        promoted(Slow(journal.store, journal.model), 3, 1)
    assert [record.version for record in journal.records()] == [1, 2]


def test_an_unreadable_record_is_named(journal):
    journal.store.write(journal.store.uri("registry", "minigpt-v2", "000001.json"), b"{")
    with pytest.raises(ValueError, match=r"000001\.json is no decision record"):
        journal.records()
