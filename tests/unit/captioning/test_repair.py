import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mgpt.captioning.repair import PROMPT, Repaired, ask_endpoint, change, read_reply, repair_by_rules, repairer
from mgpt.config.evaluation import RepairSettings
from mgpt.inference.degeneration import has_repetition


@pytest.mark.parametrize(
    ("text", "mended", "steps"),
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
def test_rules(text, mended, steps):
    assert repair_by_rules(text) == Repaired(mended, steps)


@example("b;b;b.;")
@given(st.text(alphabet=st.sampled_from("ab .!?,;#\"'Ärd\n"), max_size=80))
def test_rules_settle(text):
    once = repair_by_rules(text).text
    assert repair_by_rules(once).text == once


@given(st.lists(st.sampled_from(["There is a dog.", "A cat sits here.", "It is red!"]), max_size=8))
def test_no_sentence_is_left_twice(spoken):
    assert not has_repetition(repair_by_rules(" ".join(spoken)).text)


def test_change():
    assert change("a b c d", "a b c d") == 0.0
    assert change("a b c d", "a b") == 0.5
    assert change("", "") == 0.0
    assert change("a", "") == 1.0


def test_replies_as_the_authors_read_them():
    assert read_reply("p", "The paragraph is already correct.") == Repaired("p")
    assert read_reply("p", "Already correct, no repetition.").rejected == "endpoint_repetition"
    assert read_reply("p", "The input is incomplete.").rejected == "endpoint_incomplete"
    assert read_reply("p", " q ") == Repaired("q", ("endpoint",))


def test_the_endpoint_mends_and_the_rules_follow(endpoint):
    repaired = repairer(endpoint.settings)("There is a blue sqare. There is a blue sqare. And")
    assert repaired == Repaired("There is a blue square.", ("endpoint", "unfinished", "repetition"))
    path, _, body = endpoint.seen[0]
    assert path == "/v1/chat/completions"
    assert body["messages"][0] == {"role": "system", "content": PROMPT}
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("mender", 0.7, 200)


def test_a_busy_endpoint_is_asked_again(endpoint):
    endpoint.failures = 1
    assert ask_endpoint(endpoint.settings, "a sqare") == "a square"
    assert len(endpoint.seen) == 2


def test_a_wrong_key_is_not_tried_again_and_says_so(endpoint, monkeypatch):
    monkeypatch.setenv("REPAIR_KEY", "other")
    with pytest.raises(ValueError, match=r"(?s)HTTP 401.*wrong key.*REPAIR_KEY"):
        ask_endpoint(endpoint.settings, "a")
    assert len(endpoint.seen) == 1


def test_an_endpoint_of_another_protocol_is_named(endpoint):
    endpoint.content = {"result": "x"}
    with pytest.raises(ValueError, match="OpenAI-compatible"):
        ask_endpoint(endpoint.settings, "a")


def test_nobody_listening_is_named():
    settings = RepairSettings(url="http://127.0.0.1:9/v1", model="m", attempts=1)
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9.*leave the url empty"):
        ask_endpoint(settings, "a")
