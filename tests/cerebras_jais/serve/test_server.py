"""The server answers many clients rightly, whatever they send and however they read, and ends as it is told.

Contract: answers are those of the engine (a function of the prompt), plain and streamed, for 50 clients at once; a
request is refused with a status, OpenAI's error object and no harm to others; a client that leaves frees the model.
"""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cerebras_jais.endpoint.client import Endpoint, EndpointError, RefusedQuestionError, ask
from cerebras_jais.errors import UserError
from cerebras_jais.serve.server import listen
from tests.cerebras_jais.serve.scripted_engine import NAME, Gate, ScriptedEngine, answer_to, chat, serving
from tests.process import wait_until

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ARABIC = "ما هي عاصمة الإمارات؟ 🐪"


@pytest.fixture(scope="module")
def running():
    with serving(receive=2.0) as found:
        yield found


def events(content):
    """The events of a stream; the last one is [DONE]."""
    lines = content.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""] and all(line.startswith("data: ") for line in lines[:-1])
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_a_plain_answer_and_its_counts_are_the_engines(running):
    status, _, found = running.ask(CHAT, chat(ARABIC, max_tokens=1000))
    (choice,) = found["choices"]
    assert status == 200 and found["object"] == "chat.completion" and found["model"] == NAME
    assert choice["message"]["content"] == answer_to(ARABIC) and choice["finish_reason"] == "stop"
    prompt, answer = len(ARABIC.encode()), len(answer_to(ARABIC).encode())
    assert found["usage"] == {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def test_a_streamed_answer_joins_to_the_plain_one(running):
    body = chat(ARABIC, max_tokens=1000, stream=True, stream_options={"include_usage": True})
    status, headers, content = running.ask(CHAT, body)
    first, *middle, last = events(content)
    assert status == 200 and headers["Content-Type"].startswith("text/event-stream")
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in middle) == answer_to(ARABIC)
    assert [event["choices"][0]["finish_reason"] for event in middle] == [None] * (len(middle) - 1) + ["stop"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == len(answer_to(ARABIC).encode())
    assert {event["object"] for event in (first, *middle, last)} == {"chat.completion.chunk"}


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_are_answered_in_their_order(running, stream):
    prompts = ["abc", "ab", "ألف"]
    _, _, found = running.ask(COMPLETIONS, {"prompt": prompts, "max_tokens": 100, "stream": stream})
    choices = [event["choices"][0] for event in events(found)] if stream else found["choices"]
    texts = ["".join(choice["text"] for choice in choices if choice["index"] == index) for index in range(3)]
    assert texts == [answer_to(prompt) for prompt in prompts]


def test_a_prompt_may_be_token_ids(running):
    _, _, found = running.ask(COMPLETIONS, {"prompt": [*b"abc"], "max_tokens": 100})
    assert found["choices"][0]["text"] == answer_to("abc") and found["usage"]["prompt_tokens"] == 3


def test_an_answer_ends_at_the_limit_and_at_a_stop_string(running):
    cut = running.ask(CHAT, chat("abcdef", max_completion_tokens=3))[2]["choices"][0]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("fed", "length")
    stopped = running.ask(CHAT, chat("abcdef", stop=["x", "cb"]))[2]["choices"][0]
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("fed", "stop")
    assert running.ask(COMPLETIONS, {"prompt": "x" * 40})[2]["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_answer_begins_without_the_space_that_the_prompt_leaves_to_it(running, stream):
    _, _, found = running.ask(CHAT, chat("a \n ", stream=stream))
    if stream:
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events(found))
    else:
        text = found["choices"][0]["message"]["content"]
    assert text == answer_to("a \n ").lstrip()


def test_the_projects_own_client_is_answered(running):
    answer = ask(Endpoint(running.url), json.dumps(chat(ARABIC)).encode())
    assert answer.text == answer_to(ARABIC) and answer.finish == "stop"
    assert (answer.input_tokens, answer.output_tokens) == (len(ARABIC.encode()), len(answer_to(ARABIC).encode()))
    with pytest.raises(RefusedQuestionError, match="max_tokens must be a whole number"):
        ask(Endpoint(running.url), json.dumps(chat("x", max_tokens=-1)).encode())
    with pytest.raises(EndpointError, match="no such model here; ask for 'scripted'"):
        ask(Endpoint(running.url), json.dumps(chat("x", model="other")).encode())


def test_fifty_clients_at_once_get_their_own_answers(running):
    def answer(number):
        text = f"{ARABIC} {number}"
        found = running.ask(CHAT, chat(text, stream=number % 2 == 0))[2]
        if number % 2:
            return found["choices"][0]["message"]["content"] == answer_to(text)
        return "".join(e["choices"][0]["delta"].get("content", "") for e in events(found)) == answer_to(text)

    with ThreadPoolExecutor(50) as clients:
        assert all(clients.map(answer, range(200)))


def test_one_connection_carries_many_requests(running):
    body = json.dumps(chat("abc")).encode()
    one = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with running.connect() as client:
        client.sendall(one * 3 + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        found = b"".join(iter(lambda: client.recv(65536), b""))
    assert found.count(b"HTTP/1.1 200 OK") == 4 and found.count(b"cba|abc") == 3


def test_models_health_and_the_page_are_there(running):
    listed = running.ask("/v1/models")[2]["data"]
    assert [model["id"] for model in listed] == [NAME] and running.ask(f"/v1/models/{NAME}")[2] == listed[0]
    assert running.ask("/health")[2] == {"status": "ok", "waiting": 0}
    status, headers, page = running.ask("/")
    assert status == 200 and page.startswith(b"<!DOCTYPE html>") and int(headers["Content-Length"]) == len(page)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "'unsafe-inline'" not in headers["Content-Security-Policy"]
    assert running.ask("/", method="HEAD")[2] == b""


# ---- refused ---------------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "x"}
REFUSED = [
    (b"", "the body:1: not valid JSON"),
    (b"{", "the body:1: not valid JSON"),
    (b"\xff", "the body is not UTF-8"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"a": ' * 50_000, "nested too deeply"),
    (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON"),
    (b'{"messages": [], "messages": []}', "twice"),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a character"),
    (b"[]", "no JSON object"),
    ({}, "messages must be a list"),
    ({"messages": []}, "messages must be a list of messages, at least one"),
    ({"messages": ["x"]}, "messages[0] must be an object"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role must be one of"),
    ({"messages": [{"role": "user"}]}, "messages[0].content must be a string"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text alone"),
    ({"messages": [USER, USER]}, "messages[1].role must be 'assistant'"),
    ({"messages": [{"role": "system", "content": "x"}]}, "must end with a message of the user"),
    ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "must end with a message of the user"),
    ({"messages": [USER, {"role": "system", "content": "x"}]}, "one system message may come first"),
    (chat("x", temperature="hot"), "temperature must be a number from 0 to 100"),
    (chat("x", temperature=True), "temperature must be"),
    (chat("x", top_p=1.5), "top_p must be"),
    (chat("x", max_tokens=0), "max_tokens must be a whole number"),
    (chat("x", max_tokens=2.5), "max_tokens must be a whole number"),
    (chat("x", max_tokens=3, max_completion_tokens=4), "differs from max_completion_tokens"),
    (chat("x", max_tokens=4096), "this server takes 4,096 together"),
    (chat("x" * 4096), "this server takes 4,096 together"),
    (chat("x", seed=-1), "seed must be"),
    (chat("x", stop=7), "stop must be a string"),
    (chat("x", stop=[""]), "stop must have strings of 1 to 256 characters"),
    (chat("x", stop=[*"abcde"]), "stop must have at most 4"),
    (chat("x", stream="yes"), "stream must be true or false"),
    (chat("x", stream_options={}), "stream_options is for streamed answers"),
    (chat("x", n=2), "n is not supported here"),
    (chat("x", n=True), "n is not supported here"),
    (chat("x", logprobs=True), "logprobs is not supported here"),
    (chat("x", tools=[{}]), "tools is not supported here"),
    (chat("x", response_format={"type": "json_object"}), "response_format is not supported here"),
    (chat("x", language="fr"), "language must be 'ar' or 'en'"),
    (chat("x", model=7), "model must be a string"),
]


@pytest.mark.parametrize(("body", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_a_chat_that_cannot_be_answered_is_refused_in_words(running, body, said):
    status, _, found = running.ask(CHAT, body)
    error = found["error"]
    assert status == 400 and said in error["message"] and error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "prompt must be a string"),
        ([], "prompt must be a string"),
        ([1, "x"], "prompt must be a string"),
        ([[]], "prompt must be a string"),
        ([-1], "prompt must be a string"),
        ([True], "prompt must be a string"),
        ([256], "prompt must have ids below 256"),
        (["x"] * 17, "prompt must have at most 16 prompts"),
        (["x" * 4096], "this server takes 4,096 together"),
    ],
)
def test_a_prompt_that_cannot_be_continued_is_refused_in_words(running, prompt, said):
    status, _, found = running.ask(COMPLETIONS, {"prompt": prompt})
    assert status == 400 and said in found["error"]["message"]


def test_what_changes_nothing_and_what_is_unknown_are_passed_over(running):
    harmless = {"n": 1, "logit_bias": {}, "tools": [], "presence_penalty": 0.0, "user": "me", "metadata": {"a": [1]}}
    assert running.ask(CHAT, chat("x", **{**harmless, "presence_penalty": 0}))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("DELETE", "/", 405),
        ("GET", "/v1", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/health?verbose=1", 200),
    ],
)
def test_other_addresses_and_methods_have_their_statuses(running, method, path, status):
    found, headers, _ = running.ask(path, b"{}" if method == "POST" else None, method=method)
    assert found == status and (status != 405 or headers["Allow"])
    assert not [name for name in headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.1\r\nHost: evil.example", 421),
        ("GET / HTTP/1.1\r\nHost: localhost.evil.example", 421),
        ("GET / HTTP/1.1\r\nHost: ", 421),
        ("GET / HTTP/1.1", 421),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost", 400),
        ("GET / HTTP/1.1\r\nHost: localhost", 200),
        ("GET / HTTP/1.0\r\nHost: LOCALHOST:8000", 200),
        ("GET / HTTP/1.1\r\nHost: [::1]:8000", 200),
        ("GET / HTTP/1.1\r\nHost: 192.168.1.7", 200),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost", 200),
        ("GET / HTTP/1.1\r\nHost: localhost:80\r\nOrigin: http://localhost:81", 403),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example", 403),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: null", 403),
        ("POST /v1/completions HTTP/1.1\r\nHost: localhost", 411),
        ("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked", 411),
        ("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1", 400),
        ("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        ("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999", 413),
        ("GET / HTTP/2.0\r\nHost: localhost", 400),
        ("GET  / HTTP/1.1\r\nHost: localhost", 400),
        ("\x16\x03\x01\x02\x00", 400),
        ("GET / HTTP/1.1\r\nHost : localhost", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\n folded", 400),
        ("GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 40_000, 431),
    ],
)
def test_a_head_has_its_status(running, head, status):
    assert running.raw(f"{head}\r\n\r\n".encode("latin-1")).startswith(b"HTTP/1.1 %d " % status)


def test_a_body_over_the_limit_is_refused_even_while_it_is_sent(running):
    status, _, found = running.ask(CHAT, b"x" * (3 << 20))
    assert status == 413 and "2,097,152 are allowed" in found["error"]["message"]


def test_a_base_model_does_not_chat_and_says_what_to_do():
    with serving(ScriptedEngine(is_chat=False)) as base:
        status, _, found = base.ask(CHAT, chat("x"))
        assert status == 400 and "is a base model" in found["error"]["message"]
        assert "serve a chat model" in found["error"]["message"]
        assert base.ask(COMPLETIONS, {"prompt": "ab"})[2]["choices"][0]["text"] == "ba|ab"


def test_a_key_opens_the_interface_and_is_not_asked_for_page_and_health():
    with serving(key="right") as locked:
        for fields in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "right"},
            {"Authorization": "Bearer é"},
        ):
            fields = {name: value.encode("latin-1") for name, value in fields.items()}
            status, headers, found = locked.ask(CHAT, chat("x"), **fields)
            assert status == 401 and headers["WWW-Authenticate"] == "Bearer"
            assert found["error"]["code"] == "invalid_api_key"
        assert locked.ask("/v1/models", Authorization="Bearer right")[0] == 200
        assert locked.ask("/")[0] == locked.ask("/health")[0] == 200
        with pytest.raises(EndpointError, match="refuses the key"):
            ask(Endpoint(locked.url, key="wrong"), json.dumps(chat("x")).encode())
        assert ask(Endpoint(locked.url, key="right"), json.dumps(chat("ab")).encode()).text == "ba|ab"
        assert not [line for line in locked.log if "right" in line]


def test_a_name_is_allowed_by_an_option():
    with serving(hosts=frozenset({"jais.example"})) as named:
        request = b"GET /health HTTP/1.1\r\nHost: Jais.Example:443\r\nOrigin: https://jais.example:443\r\n\r\n"
        assert named.raw(request).startswith(b"HTTP/1.1 200 ")


def test_a_log_line_has_no_text_of_prompt_answer_or_address(running):
    running.log.clear()
    running.ask(CHAT, chat("secret", max_tokens=3))
    wait_until(lambda: running.log, "a line, which follows the answer")
    running.ask("/secret")
    wait_until(lambda: len(running.log) == 2, "two lines")
    asked, elsewhere = running.log
    assert asked.startswith("127.0.0.1 POST /v1/chat/completions 200 ") and asked.endswith(" s 6+3 tokens")
    assert elsewhere.startswith("127.0.0.1 GET elsewhere 404 ") and "ecret" not in asked + elsewhere


# ---- slow clients, and those that leave ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("closes", [socket.socket.close, lambda client: client.shutdown(socket.SHUT_RDWR)])
def test_a_client_that_leaves_frees_the_model(stream, closes):
    gate = Gate()
    with serving(ScriptedEngine(gate)) as running:
        body = json.dumps(chat("x" * 100, stream=stream)).encode()
        client = running.connect()
        client.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        )
        client.sendall(body)
        assert gate.reached.wait(60)
        closes(client)
        wait_until(lambda: any(" 499 " in line for line in running.log), "the client's leaving to be seen")
        gate.open()
        wait_until(lambda: running.engine.cancelled == 1, "the answer's end")
        client.close()
        assert running.ask(CHAT, chat("ab"))[2]["choices"][0]["message"]["content"] == "ba|ab"
        assert running.engine.answered == 1


def test_a_client_that_leaves_the_queue_is_never_answered():
    gate = Gate()
    with serving(ScriptedEngine(gate)) as running, ThreadPoolExecutor(1) as other:
        first = other.submit(running.ask, CHAT, chat("ab"))
        assert gate.reached.wait(60)
        body = json.dumps(chat("left")).encode()
        with running.connect() as client:
            client.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % CHAT.encode())
            client.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            wait_until(lambda: running.ask("/health")[2]["waiting"] == 1, "the second to wait")
        wait_until(lambda: running.ask("/health")[2]["waiting"] == 0, "the queue to be empty")
        gate.open()
        assert first.result()[0] == 200 and (running.engine.answered, running.engine.cancelled) == (1, 0)


def test_a_full_queue_refuses_with_a_time_to_come_back():
    gate = Gate()
    with serving(ScriptedEngine(gate), most_waiting=2) as running, ThreadPoolExecutor(3) as others:
        first = others.submit(running.ask, CHAT, chat("ab"))
        assert gate.reached.wait(60)
        waiting = [others.submit(running.ask, CHAT, chat("ab")) for _ in range(2)]
        wait_until(lambda: running.ask("/health")[2]["waiting"] == 2, "two to wait")
        status, headers, found = running.ask(CHAT, chat("ab"))
        assert (
            status == 503 and headers["Retry-After"] == "2" and "2 requests wait already" in found["error"]["message"]
        )
        gate.open()
        assert [done.result()[0] for done in (first, *waiting)] == [200] * 3


def test_those_who_wait_are_answered_in_the_order_in_which_they_came():
    """Streams and plain answers, chats and completions alike; one with several prompts has its turn once."""
    gate, order = Gate(), []
    with serving(ScriptedEngine(gate)) as running, ThreadPoolExecutor(9) as others:

        def asked(number):
            if number % 3:
                running.ask(CHAT, chat("x" * (9 - number), stream=number % 2 == 0))
            else:
                running.ask(COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 50})

        answer = running.engine.stream
        running.engine.stream = lambda ids, *given: order.append(bytes(ids).decode()) or answer(ids, *given)
        first = others.submit(running.ask, CHAT, chat("first"))
        assert gate.reached.wait(60)
        waiting = []
        for number in range(8):
            waiting.append(others.submit(asked, number))
            wait_until(lambda: running.ask("/health")[2]["waiting"] == len(waiting), "one more to wait")
        gate.open()
        assert all(done.result() is None for done in waiting) and first.result()[0] == 200
        assert order == ["first", "a", "b", "x" * 8, "x" * 7, "a", "b", "x" * 5, "x" * 4, "a", "b", "x" * 2]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_that_does_not_read_holds_up_nobody_and_is_left(stream):
    with serving(ScriptedEngine(tail="x" * (32 << 20)), send=0.3) as running:
        body = json.dumps(chat("ab", stream=stream)).encode()
        with running.connect() as slow:
            slow.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\n" % CHAT.encode())
            slow.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            wait_until(lambda: running.engine.answered == 1, "the answer")
            running.engine.tail = ""
            assert running.ask(CHAT, chat("ab"))[2]["choices"][0]["message"]["content"] == "ba|ab"
            wait_until(lambda: any(" 499 " in line for line in running.log), "the slow reader to be left")


@pytest.mark.parametrize(
    "begin", [b"GET / HT", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{"]
)
def test_a_request_that_never_ends_is_left(begin):
    with serving(receive=0.2) as running, running.connect() as slow:
        slow.sendall(begin)
        assert slow.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_and_makes_room():
    with serving(idle=0.2, most_connections=1) as running, running.connect() as idle:
        assert running.ask("/health")[0] == 200 and idle.recv(1) == b""


def test_an_engine_that_fails_is_an_error_of_one_answer(capsys):
    def fail():
        if threading.current_thread().name == "model":
            raise RuntimeError("broken\nhere")

    engine = ScriptedEngine(fail)
    with serving(engine) as running:
        assert running.ask(CHAT, chat("ab"))[0] == 500
        engine.step = lambda: (_ for _ in ()).throw(UserError("no such thing"))
        assert running.ask(CHAT, chat("ab"))[2]["error"]["message"] == "no such thing"
        engine.step = lambda: None
        assert running.ask(CHAT, chat("ab"))[0] == 200
    assert "RuntimeError" in capsys.readouterr().err


# ---- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_lets_the_answer_under_way_end_and_refuses_what_waits(stream):
    gate = Gate()
    with serving(ScriptedEngine(gate)) as running, ThreadPoolExecutor(3) as others:
        first = others.submit(running.ask, CHAT, chat("ab", stream=stream))
        assert gate.reached.wait(60)
        second = others.submit(running.ask, CHAT, chat("cd"))
        wait_until(lambda: running.ask("/health")[2]["waiting"] == 1, "the second to wait")
        ending = others.submit(running.server.stop, 60.0)
        assert second.result()[0] == 503
        gate.open()
        status, _, found = first.result()
        assert status == 200 and (events(found) if stream else found["choices"])
        ending.result()
        with pytest.raises(ConnectionRefusedError):
            running.connect()


def test_the_end_cuts_an_answer_that_takes_longer_than_the_grace():
    step = threading.Event()
    engine = ScriptedEngine(lambda: step.wait(0.02))
    with serving(engine) as running, ThreadPoolExecutor(1) as other:
        first = other.submit(running.ask, CHAT, chat("x" * 2000))
        wait_until(lambda: running.server._worker._running is not None, "the answer to begin")
        running.server.stop(0.1)
        assert first.result()[0] == 503 and engine.cancelled == 1


def test_a_port_that_is_taken_is_said_in_one_line():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at port {port} of 127.0.0.1: Address already in use; end"):
            listen("127.0.0.1", port)
    with pytest.raises(UserError, match="--host no such host: is no address of this machine"):
        listen("no such host", 0)
