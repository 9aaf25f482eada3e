"""An endpoint of chat completions on this machine whose replies a test scripts, and which counts what it is asked."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch


@dataclass(frozen=True)
class Reply:
    """What is sent; of its content `missing` bytes at the end are not, and the connection closes.

    A `stream` is sent in place of the content, each of its pieces at once, and is closed when the other end leaves.
    """

    status: int = 200
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    stream: Generator[bytes, None, None] | None = None


def completion(text, finish="stop", **more):
    """The reply with an answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return Reply(content=json.dumps({"id": "1", "choices": [choice], "usage": usage, **more}).encode())


def failure(status, message, **headers):
    """The reply of an endpoint that refuses."""
    return Reply(status, json.dumps({"error": {"message": message}}).encode(), headers)


def event(content=None, finish=None):
    """A piece of a streamed answer."""
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}
    return f"data: {json.dumps({'id': '1', 'choices': [choice]})}\n\n".encode()


def streamed(*pieces, finish="stop"):
    """The reply with an answer in pieces."""
    stream = (part for part in (*map(event, pieces), event(finish=finish), b"data: [DONE]\n\n"))
    return Reply(headers={"Content-Type": "text/event-stream"}, stream=stream)


def asked_in(body):
    """The last message of a request."""
    return body["messages"][-1]["content"]


def mirrored(body, attempt):
    """An answer that is a function of the question."""
    return completion(asked_in(body)[::-1])


def stormy(body, attempt, script=mirrored):
    """The same, after up to three failures that the question decides: busy, broken, torn, garbage, half a character."""
    right = script(body, attempt)
    failures = [
        failure(429, "slow down", **{"Retry-After": "0"}),
        failure(500, "broken"),
        Reply(content=right.content, missing=len(right.content) // 2),
        Reply(content=b"<html>gateway</html>"),
        Reply(content=b'{"choices": []}'),
        Reply(content=b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
        Reply(503, b""),
    ]
    draw = hashlib.sha256(asked_in(body).encode()).digest()
    return failures[draw[attempt] % len(failures)] if attempt < draw[0] % 4 else right


@dataclass
class Scripted:
    """A running endpoint.

    Attributes:
        url: its base URL.
        bodies: every question so far.
        keys: the Authorization of each request.
        paths: and its path.
        most: requests that were under way at once.
    """

    url: str = ""
    bodies: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    most: int = 0

    def asked(self) -> Counter[str]:
        """How often each last message was asked."""
        return Counter(asked_in(body) for body in self.bodies)


@contextmanager
def scripted(
    script: Callable[[dict, int], Reply] = mirrored, gets: Mapping[str, Callable[[], Reply]] | None = None
) -> Iterator[Scripted]:
    """Serve `script(request, how often the same was asked before)` for a block, and to a GET what `gets` has for it."""
    found, lock = Scripted(), threading.Lock()
    under_way, attempts = 0, Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            nonlocal under_way
            content = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                body = json.loads(content)
                under_way += 1
                found.most = max(found.most, under_way)
                found.bodies.append(body)
                found.keys.append(self.headers["Authorization"])
                found.paths.append(self.path)
                attempt = attempts[content]
                attempts[content] += 1
            try:
                reply = script(body, attempt)
            finally:
                with lock:
                    under_way -= 1
            self.answer(reply)

        def do_GET(self):
            with lock:
                found.keys.append(self.headers["Authorization"])
                found.paths.append(self.path)
            self.answer((gets or {}).get(self.path, lambda: Reply(404))())

        def answer(self, reply):
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.stream is None:
                self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            if reply.stream is None:
                self.wfile.write(reply.content[: len(reply.content) - reply.missing])
                return
            with closing(reply.stream):
                for piece in reply.stream:
                    self.wfile.write(piece)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *_):
            pass  # the other end was killed or has given up

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        with patch.dict(os.environ, {"no_proxy": "127.0.0.1"}):
            yield found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
