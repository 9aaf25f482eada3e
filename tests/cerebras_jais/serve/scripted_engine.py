"""An engine whose answers are a function of the prompt, and a server around it; what a client does to it is the test.

A token is a byte, so the text of a token may be part of a character. The answer is `answer_to(prompt)`.
"""

import codecs
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cerebras_jais.chat.engine import Piece
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.serve.server import Server, Settings, listen

NAME = "scripted"
CONTEXT = 4096


def answer_to(prompt):
    """The prompt backwards, a bar, and the prompt."""
    return f"{prompt[::-1]}|{prompt}"


@dataclass
class ScriptedEngine:
    """Answers at once, or as a test lets it.

    Attributes:
        step: called before each token.
        tail: text that every answer ends with, of no tokens.
        answered: answers written to their end.
        cancelled: answers that were not.
    """

    step: Callable[[], object] = lambda: None
    tail: str = ""
    is_chat: bool = True
    name: str = NAME
    context: int = CONTEXT
    positions: str = "alibi"
    vocabulary: int = 256
    chat_sampling: Sampling = field(default_factory=Sampling)
    answered: int = 0
    cancelled: int = 0

    def encode(self, text):
        return list(text.encode())

    def chat_ids(self, messages, language):
        return self.encode(messages[-1]["content"])

    def stream(self, prompt_ids, sampling, cancelled):
        prompt = bytes(prompt_ids).decode("utf-8", "replace")
        text = answer_to(prompt)
        reason = "stop"
        ends = [text.index(stop) for stop in sampling.stop if stop in text]
        text = text[: min(ends)] if ends else text
        tokens = text.encode()
        if len(tokens) > sampling.max_new_tokens:
            tokens, reason = tokens[: sampling.max_new_tokens], "length"
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            self.step()
            if cancelled():
                self.cancelled += 1
                return
            yield Piece(decoder.decode(bytes([token])), (token,), None)
        self.answered += 1
        yield Piece(decoder.decode(b"", True) + self.tail, (), reason)


@dataclass(frozen=True)
class Running:
    """A server that a test asks."""

    server: Server
    engine: ScriptedEngine
    port: int
    log: list[str]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def connect(self):
        """A socket to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def ask(self, path, body=None, *, method=None, **fields):
        """One request; the status, the header and the content as JSON where it is that."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, content, fields)
            response = connection.getresponse()
            found = response.read()
            is_json = response.headers.get("Content-Type") == "application/json" and found
            return response.status, response.headers, json.loads(found) if is_json else found

    def raw(self, content):
        """What is answered to bytes, until the server closes the connection."""
        with self.connect() as client:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            found = b""
            while block := client.recv(65536):
                found += block
            return found


def chat(text, **more):
    """The body of a chat completion."""
    return {"model": NAME, "messages": [{"role": "user", "content": text}], **more}


@contextlib.contextmanager
def serving(engine=None, **settings):
    """Serve an engine for a block, at a free port."""
    engine, log = engine or ScriptedEngine(), []
    listener = listen("127.0.0.1", 0)
    settings = {"most_tokens": engine.context, "log": log.append, **settings}
    server = Server(engine, listener, Settings(**settings))
    try:
        yield Running(server, engine, listener.getsockname()[1], log)
    finally:
        server.stop(0.0)


class Gate:
    """A step of an engine that waits until a test lets it go on; `reached` says that it is there."""

    def __init__(self):
        self.reached, self._open = threading.Event(), threading.Semaphore(0)

    def __call__(self):
        self.reached.set()
        self._open.acquire()

    def open(self, steps=10**6):
        """Let so many steps go on."""
        self._open.release(steps)
