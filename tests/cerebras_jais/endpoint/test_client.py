"""Contract: a question is asked until it is answered, as far as that can help; else one line says what to do."""

import socket
import threading

import pytest

from cerebras_jais.endpoint.client import (
    LONGEST_WAIT,
    Answer,
    Endpoint,
    EndpointError,
    RefusedQuestionError,
    ask,
    key_from,
    seconds_to_wait,
)
from tests.scripted_endpoint import Reply, completion, failure, scripted

BODY = b'{"messages": [{"role": "user", "content": "x"}], "model": "m"}'
RIGHT = completion("جواب")
DAMAGED = {
    "torn": Reply(content=RIGHT.content, missing=5),
    "no JSON": Reply(content=b"<html>"),
    "no UTF-8": Reply(content=b"\xff"),
    "a list": Reply(content=b"[1]"),
    "no choices": Reply(content=b'{"choices": []}'),
    "text that is a number": Reply(content=b'{"choices": [{"message": {"content": 1}}]}'),
    "half a character": Reply(content=b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
    "deep nesting": Reply(content=b"[" * 100_000),
    "busy": failure(429, "slow down"),
    "broken": failure(500, "broken"),
    "no body": Reply(503),
}


def unhurried(_):
    """Wait no time."""


def test_an_answer_is_read_with_its_end_and_the_tokens_that_the_endpoint_counts():
    with scripted(lambda *_: RIGHT) as served:
        assert ask(Endpoint(served.url + "/", key="secret"), BODY) == Answer("جواب", "stop", 7, 3)
    assert served.paths == ["/v1/chat/completions"]
    assert served.keys == ["Bearer secret"]
    assert [body["model"] for body in served.bodies] == ["m"]


def test_an_answer_without_text_or_usage_is_an_empty_one():
    with scripted(lambda *_: Reply(content=b'{"choices": [{"message": {"content": null}}]}')) as served:
        assert ask(Endpoint(served.url), BODY) == Answer("", None)
    assert served.keys == [None]


@pytest.mark.parametrize("what", DAMAGED)
def test_a_busy_endpoint_and_a_damaged_response_are_tried_again_up_to_a_limit(what):
    with scripted(lambda _, attempt: DAMAGED[what] if attempt < 2 else RIGHT) as served:
        assert ask(Endpoint(served.url, tries=3), BODY, unhurried).text == "جواب"
    with scripted(lambda *_: DAMAGED[what]) as served, pytest.raises(EndpointError, match="no answer in 3 tries"):
        ask(Endpoint(served.url, tries=3), BODY, unhurried)
    assert len(served.bodies) == 3


def test_a_silent_endpoint_is_given_up_and_asked_again():
    silent = threading.Event()

    def script(_, attempt):
        if not attempt:
            silent.wait()
        return RIGHT

    with scripted(script) as served:
        assert ask(Endpoint(served.url, timeout=0.2), BODY, lambda _: silent.set()).text == "جواب"


def test_the_wait_is_the_one_that_the_endpoint_asks_for():
    waits = []
    with scripted(lambda _, attempt: RIGHT if attempt else failure(429, "", **{"Retry-After": "17"})) as served:
        ask(Endpoint(served.url), BODY, waits.append)
    assert waits == [17]


@pytest.mark.parametrize(
    ("after", "seconds"),
    [
        ("0", 0),
        ("12", 12),
        ("999999", LONGEST_WAIT),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(after, seconds):
    assert seconds_to_wait(1, 1.0, after, now=10.0) == seconds


@pytest.mark.parametrize("after", [None, "soon", "-1", "1e9"])
def test_without_it_the_wait_doubles_from_try_to_try_up_to_a_minute(after):
    for attempt in range(1, 101):
        whole = min(2.0 ** (attempt - 1), 60)
        assert whole / 2 <= seconds_to_wait(attempt, 1.0, after) <= whole


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (failure(401, "bad key secret"), r"refuses the key \(status 401: bad key \*\*\*\); set the right one"),
        (failure(403, "no"), "refuses the key"),
        (failure(404, "model m"), r"no such address or model \(status 404: model m\); check the model"),
        (Reply(302, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), "no such address"),
        (Reply(405, b"<b>not\nhere</b>"), "405: <b>not here</b>"),
    ],
)
def test_what_every_question_would_meet_is_said_at_once_and_without_the_key(reply, said):
    with scripted(lambda *_: reply) as served, pytest.raises(EndpointError, match=said) as raised:
        ask(Endpoint(served.url, key="secret"), BODY)
    assert not isinstance(raised.value, RefusedQuestionError)
    assert "secret" not in str(raised.value)
    assert len(served.bodies) == 1


def test_a_question_that_is_refused_is_told_from_an_endpoint_that_is_of_no_use():
    with scripted(lambda *_: failure(400, "too long")) as served, pytest.raises(RefusedQuestionError, match="too long"):
        ask(Endpoint(served.url), BODY)
    assert len(served.bodies) == 1


def test_a_server_that_is_not_there_is_said_at_once_or_waited_for_where_it_was_there_before(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    waits = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=r"cannot be reached.*check the URL"):
            ask(Endpoint(url), BODY, waits.append)
        assert not waits
        with pytest.raises(EndpointError, match="no answer in 3 tries, at last: cannot be reached"):
            ask(Endpoint(url, tries=3), BODY, waits.append, patient=True)
        assert len(waits) == 2


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://h/v1", "http://", "http://u:p@h/v1", "http://h:x/v1", "http://h/v1?a", "http://h/ü"],
)
def test_what_is_no_base_url_is_refused(url):
    with pytest.raises(EndpointError, match="no base URL"):
        Endpoint(url)


def test_a_key_comes_from_a_variable_and_is_never_shown(monkeypatch):
    monkeypatch.setenv("A_KEY", " secret\n")
    assert key_from("A_KEY") == "secret"
    assert key_from(None) is None
    assert "secret" not in repr(Endpoint("http://h/v1", "secret"))
    monkeypatch.setenv("A_KEY", "two\nlines")
    with pytest.raises(EndpointError, match="A_KEY is no key") as raised:
        key_from("A_KEY")
    assert "lines" not in str(raised.value)
    monkeypatch.delenv("A_KEY")
    with pytest.raises(EndpointError, match="A_KEY is not set"):
        key_from("A_KEY")
