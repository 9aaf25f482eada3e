"""What is being sent to one request, whole or in events, and the parts of an answer as the worker writes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cerebras_jais.serve.answers import Shape
from cerebras_jais.serve.http11 import Connection, GoneError, HttpError, json_bytes, response_head
from cerebras_jais.serve.worker import Job, Written

_POLL = 0.2  # seconds between two looks at whether a client has left


@dataclass
class Exchange:
    """What is being sent to one request."""

    connection: Connection
    status: int = 0
    note: str = ""
    keeps: bool = False
    without_body: bool = False
    events: bool = False
    begun: float = field(default_factory=time.monotonic)

    def send(self, status: int, content: Any, fields: dict[str, str] | None = None) -> None:
        """A whole response; what is no bytes is sent as JSON."""
        self.status = status
        body = content if isinstance(content, bytes) else json_bytes(content)
        found = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "keep-alive" if self.keeps else "close",
            **(fields or {}),
        }
        self.connection.send(response_head(status, found) + (b"" if self.without_body else body))

    def refuse(self, error: HttpError) -> None:
        """The response of an error; a client that does not take it, or has had a part of a stream, is left."""
        self.note = error.code or ""
        if self.events:
            return
        try:
            self.send(error.http_status, error.body(), error.fields)
        except GoneError:
            self.keeps = False

    def begin_events(self, shape: Shape) -> None:
        """Open a stream, which ends with the connection; once."""
        if self.events:
            return
        self.events, self.keeps, self.status = True, False, 200
        self.connection.send(
            response_head(200, {"Content-Type": "text/event-stream; charset=utf-8", "Connection": "close"})
        )
        if shape.chat:
            self.send_event(shape.first())

    def send_event(self, value: Any) -> None:
        """One event of a stream."""
        self.connection.send(b"data: " + json_bytes(value) + b"\n\n")


def parts(job: Job, connection: Connection) -> Iterator[tuple[int, str, str | None, int]]:
    """The parts of an answer as they are written, those that have waited joined: prompt, text, finish, tokens.

    Raises HttpError as the worker gives it, and GoneError where the client leaves.
    """
    while True:
        ready = job.ready(_POLL)
        if connection.has_left():
            raise GoneError
        joined: dict[int, tuple[str, str | None, int]] = {}
        ended = False
        for result in ready:
            if isinstance(result, Written):
                piece = result.piece
                text, finish, tokens = joined.get(result.index, ("", None, 0))
                joined[result.index] = (text + piece.text, piece.finish_reason or finish, tokens + len(piece.token_ids))
            elif isinstance(result, HttpError):
                raise result
            else:
                ended = True
        for index, part in joined.items():
            yield (index, *part)
        if ended:
            return
