import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mgpt.captioning.repair import PROMPT, EndpointRepairer, changed_share, make_repairer, parse_reply, repair_by_rules
from mgpt.captioning.types import RepairedText
from mgpt.config.evaluation import RepairSettings
from mgpt.inference.degeneration import has_repetition


@pytest.mark.parametrize(
    ("text", "repaired", "steps"),
    [
        ("There is a red circle.", "There is a red circle.", ()),
        (
            "there is a red circle. There is a red circle! A sign says",
            "There is a red circle.",
            ("unfinished", "repetition", "form"),
        ),
        ("There is a a a red circle ## at the top..", "There is a red circle at the top.", ("characters", "stutter")),
        ("There is a red circle. Top.", "There is a red circle.", ("fragment",)),
        ("there is a red circle", "There is a red circle.", ("form",)),
        ("A; red; circle.;", "A; red; circle.", ("form",)),
        ("", "", ()),
        ("###", "", ("characters",)),
    ],
)
def test_rules(text, repaired, steps):
    assert repair_by_rules(text) == RepairedText(repaired, steps)


@example("b;b;b.;")
@given(st.text(alphabet=st.sampled_from("ab .!?,;#\"'Ärd\n"), max_size=80))
def test_rules_are_idempotent(text):
    once = repair_by_rules(text).text
    assert repair_by_rules(once).text == once


@given(st.lists(st.sampled_from(["There is a dog.", "A cat sits here.", "It is red!"]), max_size=8))
def test_rules_leave_no_repeated_sentence(sentences):
    assert not has_repetition(repair_by_rules(" ".join(sentences)).text)


def test_changed_share():
    assert changed_share("a b c d", "a b c d") == 0.0
    assert changed_share("a b c d", "a b") == 0.5
    assert changed_share("", "") == 0.0
    assert changed_share("a", "") == 1.0


def test_replies_are_interpreted_as_by_the_authors():
    assert parse_reply("p", "The paragraph is already correct.") == RepairedText("p")
    assert parse_reply("p", "Already correct, no repetition.").reject_reason == "endpoint_repetition"
    assert parse_reply("p", "The input is incomplete.").reject_reason == "endpoint_incomplete"
    assert parse_reply("p", " q ") == RepairedText("q", ("endpoint",))


def test_rules_follow_the_endpoint(endpoint):
    repaired = make_repairer(endpoint.settings)("There is a blue sqare. There is a blue sqare. And")
    assert repaired == RepairedText("There is a blue square.", ("endpoint", "unfinished", "repetition"))
    path, _, body = endpoint.seen[0]
    assert path == "/v1/chat/completions"
    assert body["messages"][0] == {"role": "system", "content": PROMPT}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("repairer", 0.7, 200)


def test_busy_endpoint_is_retried_after_the_time_it_names(endpoint):
    endpoint.failures, endpoint.retry_after = 1, "1"
    started = time.monotonic()
    assert EndpointRepairer(endpoint.settings).complete("a sqare") == "a square"
    assert len(endpoint.seen) == 2
    assert time.monotonic() - started >= 1


def test_attempts_are_limited(endpoint):
    endpoint.failures = 2
    with pytest.raises(ValueError, match=r"HTTP 503.*busy"):
        EndpointRepairer(endpoint.settings).complete("a")
    assert len(endpoint.seen) == 2


def test_wrong_key_is_not_retried(endpoint, monkeypatch):
    monkeypatch.setenv("REPAIR_KEY", "other")
    with pytest.raises(ValueError, match=r"(?s)HTTP 401.*wrong key.*REPAIR_KEY"):
        EndpointRepairer(endpoint.settings).complete("a")
    assert len(endpoint.seen) == 1


def test_no_key_is_sent_without_one(endpoint, monkeypatch):
    monkeypatch.delenv("REPAIR_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "of another service")
    with pytest.raises(ValueError, match="HTTP 401"):
        EndpointRepairer(endpoint.settings).complete("a")
    assert [key for _, key, _ in endpoint.seen] == [None]


@pytest.mark.parametrize(
    "content", [{"result": "x"}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, ["x"], "x"]
)
def test_other_protocol_is_refused(endpoint, content):
    endpoint.content = content
    with pytest.raises(ValueError, match="OpenAI-compatible"):
        EndpointRepairer(endpoint.settings).complete("a")


def test_unreachable_endpoint_is_named():
    settings = RepairSettings(url="http://127.0.0.1:9/v1", model="m", attempts=1)
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9.*leave the url empty"):
        EndpointRepairer(settings).complete("a")
