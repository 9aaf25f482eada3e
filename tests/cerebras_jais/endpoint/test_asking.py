"""Contract: each question is answered once whatever the endpoint does, with so many requests at a time and no more."""

import threading

import pytest

from cerebras_jais.endpoint import asking
from cerebras_jais.endpoint.asking import answer_in, ask_all, question
from cerebras_jais.endpoint.client import Answer, Endpoint, EndpointError
from cerebras_jais.endpoint.record import open_record
from tests.process import wait_until
from tests.scripted_endpoint import asked_in, failure, mirrored, scripted, stormy


def questions(texts):
    for number, text in enumerate(texts, 1):
        yield question("m", [{"role": "user", "content": text}], {"temperature": 0}, f"f:{number}")


def asked(served, texts, record, concurrency=3, keep_refusals=False):
    endpoint = Endpoint(served.url, backoff=0.001)
    return list(ask_all(endpoint, questions(texts), record, concurrency, keep_refusals=keep_refusals))


@pytest.mark.parametrize("concurrency", [1, 2, 7])
def test_each_question_is_answered_once_in_any_weather(tmp_path, concurrency):
    texts = [f"نص {number}" for number in range(40)]
    with scripted(stormy) as served, open_record(tmp_path / "r") as record:
        found = asked(served, [*texts, *texts[:5]], record, concurrency)
        assert sorted(one.place for one in found) == sorted(f"f:{number}" for number in range(1, 41))
        assert [answer_in(record[one.key]).text for one in questions(texts)] == [text[::-1] for text in texts]
        assert served.most <= concurrency
        before = len(served.bodies)
        assert asked(served, texts, record) == []
        assert len(served.bodies) == before


def test_all_the_requests_allowed_are_under_way_and_few_questions_are_in_memory(tmp_path):
    together = threading.Barrier(4)
    taken = answered = 0

    def script(body, attempt):
        together.wait(60)
        return mirrored(body, attempt)

    def counted():
        nonlocal taken
        for one in questions(map(str, range(40))):
            taken += 1
            assert taken - answered <= 8
            yield one

    with scripted(script) as served, open_record(tmp_path / "r") as record:
        for _ in ask_all(Endpoint(served.url), counted(), record, 4, keep_refusals=False):
            answered += 1
    assert answered == 40
    assert served.most == 4


def test_a_server_that_has_answered_is_waited_for(tmp_path, monkeypatch):
    patience = []

    def scripted_ask(endpoint, body, wait, *, patient):
        patience.append(patient)
        return Answer("x", "stop")

    monkeypatch.setattr(asking, "ask", scripted_ask)
    with open_record(tmp_path / "r") as record:
        list(ask_all(Endpoint("http://h/v1"), questions("abc"), record, 1, keep_refusals=False))
    assert patience == [False, True, True]


def test_another_model_or_option_is_another_question():
    messages = [{"role": "user", "content": "x"}]
    keys = {question(model, messages, options, "f").key for model in "ab" for options in ({}, {"temperature": 0})}
    assert len(keys) == 4
    assert question("a", messages, {"x": 1, "y": 2}, "f").key == question("a", messages, {"y": 2, "x": 1}, "g").key


def test_a_refused_question_ends_the_asking_with_its_place_or_is_recorded(tmp_path):
    def script(body, attempt):
        return failure(400, "no") if asked_in(body) == "bad" else mirrored(body, attempt)

    texts = ["good", "bad", "better"]
    with scripted(script) as served, open_record(tmp_path / "r") as record:
        with pytest.raises(EndpointError, match=r"^f:2: .*refuses this request \(status 400: no\)"):
            asked(served, texts, record, 1)
        assert served.asked()["bad"] == 1
        asked(served, texts, record, 1, keep_refusals=True)
        assert [answer_in(record[one.key]) is None for one in questions(texts)] == [False, True, False]
        asked(served, texts, record, 1, keep_refusals=True)
        assert served.asked() == {"good": 1, "bad": 2, "better": 1}


def test_what_ends_the_asking_waits_for_no_request_under_way(tmp_path):
    silent, here = threading.Event(), threading.Event()

    def script(body, attempt):
        if asked_in(body) == "silent":
            here.set()
            silent.wait()
            return mirrored(body, attempt)
        here.wait()
        return failure(401, "no")

    with scripted(script) as served:
        with open_record(tmp_path / "r") as record, pytest.raises(EndpointError, match="refuses the key"):
            asked(served, ["silent", "x"], record, 2)
        silent.set()
        wait_until(lambda: threading.active_count() < 10, "the threads to end")
    assert (tmp_path / "r").read_bytes() == b""
