"""Good and bad requests to `serve`: `python tests/attacks/server_requests.py --count N --seed S`; status 1 if bad.

The server runs in this process around an engine whose answers are a function of the prompt, and eight clients ask it at
once. A verdict is "right" (the answer that the function gives, or the one status that fits), "refused" (a damaged
request: a status from 400 on with OpenAI's error object, or no answer to a head that is none), "left" (the client went
away), or one of BAD: "wrong" (another answer), "crash" (status 500, or a traceback), "hang" (no end within a minute).
At the end "memory" counts if the process has grown by 50 MB, "leak" if a thread or descriptor is left.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import random
import resource
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from tests.cerebras_jais.serve.scripted_engine import CONTEXT, answer_to, chat, serving

BAD = ("wrong", "crash", "hang", "memory", "leak")
CLIENTS, WARM_UP, ROOM = 8, 500, 50 * 2**20
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LETTERS = 'abc xyz ابت عاصمة \n"\\[|Human|]🐪é\u200f'
VALUES = (None, True, False, 0, 1, -1, 2.5, 10**30, "", "x", [], [[]], {}, {"a": {}}, "\ud83d", ["x", 1], 1e308)
KEYS = (
    *("model", "messages", "prompt", "temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "seed"),
    *("stop", "stream", "stream_options", "n", "logprobs", "echo", "tools", "language", "repetition_penalty", "user"),
)


def request(path, body, method="POST", **fields):
    """A request that closes its connection."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "localhost", "Content-Length": str(len(content)), "Connection": "close", **fields}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items() if value is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def good(draw):
    """A request that is answered, and the answer: text, why it ends."""
    prompt = "".join(draw.choices(LETTERS, k=draw.randint(1, 60)))
    text, finish, body = answer_to(prompt), "stop", {}
    is_chat = draw.random() < 0.6
    if draw.random() < 0.4:
        stop = text[draw.randrange(len(text)) :][: draw.randint(1, 4)]
        body["stop"], text = stop if draw.random() < 0.5 else [stop, "never"], text[: text.index(stop)]
    most = draw.randint(1, 200) if draw.random() < 0.5 or not is_chat else CONTEXT - len(prompt.encode())
    if (is_chat and most < 300) or not is_chat:
        body["max_tokens"] = most
    if len(text.encode()) > most:
        text, finish = text.encode()[:most].decode("utf-8", "replace"), "length"
    body |= draw.choice([{}, {"temperature": 0.5, "user": "me"}, {"seed": 7, "n": 1, "top_p": 1}])
    body |= draw.choice([{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
    if is_chat:
        return CHAT, chat(prompt, **body), (text.lstrip(), finish)
    return COMPLETIONS, {"prompt": prompt, **body}, (text, finish)


def damaged_bytes(draw, content):
    """A content with some bytes changed, cut, doubled or put in."""
    found = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(found) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            found[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del found[place : place + draw.randint(1, 20)]
        elif kind == 2:
            found[place:place] = found[place : place + draw.randint(1, 20)]
        else:
            found[place:place] = draw.choice([b"\r\n", b"\0", b"[" * 3000, b"\xff\xfe", b'"', b"\\ud800", b"1e999"])
    return bytes(found)


def ask(port, content, leaves_after=None):
    """What the server sends back, until it closes; None where the client leaves after so many bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(content)
        if leaves_after is None:
            return b"".join(iter(lambda: client.recv(65536), b""))
        if leaves_after:
            client.recv(leaves_after)
    return None


def answer_in(found):
    """Status, and the text and the end of an answer or the error object of a refusal; raises on any other form."""
    head, _, content = found.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status >= 400:
        error = json.loads(content)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return status, error
    if b"text/event-stream" not in head:
        body = json.loads(content)
        choice = body["choices"][0] if "choices" in body else {}
        text = choice.get("text", choice.get("message", {}).get("content"))
        return status, (text, choice.get("finish_reason"))
    *events, done, rest = content.decode().split("\n\n")
    assert done == "data: [DONE]" and rest == ""
    choices = [c for event in events for c in json.loads(event.removeprefix("data: "))["choices"]]
    text = "".join(choice.get("text", choice.get("delta", {}).get("content", "")) for choice in choices)
    return status, (text, choices[-1]["finish_reason"])


def case(draw, port):
    """Ask one question; the verdict and what it was about."""
    path, body, answer = good(draw)
    kind = draw.choices(
        ["good", "bytes", "key", "head", "status", "leaves"], [45, 15, 15, 10, 10, 5]
    )[0]  # fmt: skip
    content = request(path, body)
    if kind == "good":
        found = answer_in(ask(port, content))
        return "right" if found == (200, answer) else "wrong", (body, found, answer)
    if kind == "leaves":
        part = content[: draw.randrange(len(content))] if draw.random() < 0.5 else content
        ask(port, part, leaves_after=draw.choice([0, 0, 1, 300]) if part == content else 0)
        return "left", None
    if kind == "status":
        expected, content = draw.choice(
            [
                (421, request(path, body, Host="evil.example")),
                (421, request(path, body, Host=None)),
                (403, request(path, body, Origin="http://evil.example")),
                (404, request(path, {**body, "model": "other"})),
                (404, request("/v2", body)),
                (405, request(path, body, method="PUT")),
                (411, request(path, body, **{"Content-Length": None})),
                (411, request(path, body, **{"Content-Length": None, "Transfer-Encoding": "chunked"})),
                (413, request(path, body, **{"Content-Length": str(1 << 40)})),
                (400, request(path, b"[" * draw.randint(2, 100_000))),
                (400, request(path, {**body, "max_tokens": CONTEXT + 1})),
                (200, request("/health", b"", method="GET")),
            ]
        )
        found = answer_in(ask(port, content))
        return "right" if found[0] == expected else "wrong", (content[:300], found, expected)
    if kind == "bytes":
        content = request(path, damaged_bytes(draw, json.dumps(body).encode()))
    elif kind == "key":
        changed = {**body, draw.choice(KEYS): draw.choice(VALUES)}
        if draw.random() < 0.2 and path == CHAT:
            changed["messages"] = [{"role": draw.choice(VALUES), "content": draw.choice(VALUES)}, *body["messages"]]
        content = request(path, changed)
    else:
        head, _, rest = content.partition(b"\r\n\r\n")
        # Bytes after a body that became shorter, or before one that became longer, are a request of their own.
        content = damaged_bytes(draw, head) + b"\r\n\r\n" + rest
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            found = b"".join(iter(lambda: client.recv(65536), b""))
        status = int(found.split()[1]) if found else 400
        return "crash" if status == 500 else "refused" if status >= 400 else "right", (content[:300], found[:300])
    found = answer_in(ask(port, content))
    if found[0] == 500:
        return "crash", (content, found)
    return "refused" if found[0] >= 400 else "right", None


def resident():
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def held():
    """Threads and descriptors of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def judged(number, seed, port):
    """The verdict on a case, said where it is bad."""
    try:
        verdict, about = case(random.Random(f"{seed} {number}"), port)
    except TimeoutError:
        verdict, about = "hang", None
    except (ValueError, KeyError, IndexError, AssertionError, TypeError) as damage:
        verdict, about = "wrong", repr(damage)
    if verdict in BAD:
        print(f"{verdict} {number}: {about!r:.2000}", flush=True)
    return verdict


def main():
    """The command line; exit status 1 on a bad verdict."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=10_000, help="requests")
    options.add_argument("--seed", type=int, default=0, help="the same seed gives the same requests")
    given = options.parse_args()
    verdicts, errors = Counter(), io.StringIO()
    with serving(receive=5.0) as running, contextlib.redirect_stderr(errors), ThreadPoolExecutor(CLIENTS) as clients:

        def ask_all(first, last):
            for begin in range(first, last, WARM_UP):  # what waits takes memory too
                numbers = range(begin, min(begin + WARM_UP, last))
                verdicts.update(clients.map(lambda number: judged(number, given.seed, running.port), numbers))
                running.log.clear()

        def settled():
            """Memory, threads and descriptors once what was left has been seen to be."""
            end = time.monotonic() + 60
            while held()[0] > CLIENTS + 3 and time.monotonic() < end:
                time.sleep(0.05)
            running.log.clear()
            return resident(), held()

        ask_all(0, min(WARM_UP, given.count))
        (memory, before), begun = settled(), time.monotonic()
        ask_all(min(WARM_UP, given.count), given.count)
        seconds = time.monotonic() - begun
        grown, after = settled()
        verdicts["memory"] += grown - memory > ROOM
        verdicts["leak"] += after != before
    verdicts["crash"] += errors.getvalue().count("Traceback")
    print(errors.getvalue()[:4000], end="")
    rate = max(given.count - WARM_UP, 0) / seconds
    print(f"{memory / 2**20:.1f} MiB before, {grown / 2**20:.1f} after; {rate:.0f} requests/s", file=sys.stderr)
    print(", ".join(f"{verdict} {verdicts[verdict]:,}" for verdict in ("right", "refused", "left", *BAD)))
    sys.exit(any(verdicts[verdict] for verdict in BAD))


if __name__ == "__main__":
    main()
