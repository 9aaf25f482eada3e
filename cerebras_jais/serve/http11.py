"""HTTP/1.1 as far as the server needs it: requests read within bounds of bytes and seconds, and whole responses.

Source: RFC 9112 (messages), RFC 9110 (statuses and fields). Left out: chunked requests (411), folded fields, HTTP/2.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

from cerebras_jais.errors import UserError

LARGEST_HEAD = 32 * 1024  # bytes of the request line and the fields
_BLOCK = 64 * 1024
_LINE = re.compile(r"([A-Z]{1,20}) ([!-~]{1,4096}) HTTP/1\.([01])", re.ASCII)
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*", re.ASCII)
# Where a client has closed its end; systems without POLLRDHUP say POLLHUP.
_GONE = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class HttpError(UserError):
    """A request that is not answered, by an HTTP status.

    Args:
        status: 400 to 599.
        message: what is wrong and what to do.
        code: OpenAI's word for it, such as `model_not_found`.
        param: the key of the body that it is about.
        fields: further header fields, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status, self.code, self.param, self.fields = status, code, param, dict(fields or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "server_error" if self.http_status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class GoneError(Exception):
    """The client has left; nobody reads an answer."""


@dataclass(frozen=True)
class Head:
    """A request without its body.

    Attributes:
        method: in capitals.
        path: of the target, without its query.
        fields: by their names in small letters.
        keeps: whether the connection stays open for another request.
    """

    method: str
    path: str
    fields: Mapping[str, str]
    keeps: bool

    def length(self, most: int) -> int:
        """Bytes of the body; raises HttpError 411 without a length, 413 for more than `most`, 400 for nonsense."""
        if "transfer-encoding" in self.fields:
            raise HttpError(411, "the body comes in chunks; send it whole, with a Content-Length")
        text = self.fields.get("content-length")
        if text is None:
            raise HttpError(411, "the request has no Content-Length; send one")
        if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
            raise HttpError(400, "Content-Length is no number of bytes")
        if int(text) > most:
            raise HttpError(413, f"the body has {int(text):,} bytes, and {most:,} are allowed; send less")
        return int(text)


class Connection:
    """A client's socket.

    Args:
        accepted: as `accept` gives it; closed by the caller.
        send_seconds: within which the client takes what one call of `send` sends.
    """

    def __init__(self, accepted: socket.socket, send_seconds: float) -> None:
        self._socket, self._send_seconds = accepted, send_seconds
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(accepted, _GONE)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a piece of an answer is sent at once

    def read_head(self, idle: float, seconds: float) -> Head | None:
        """The next request's; None where the client sends none.

        Args:
            idle: seconds until its first byte.
            seconds: from then to the end of the head.

        Raises HttpError 400, 408 or 431; GoneError.
        """
        try:
            found = bytearray(self._rest or self._receive(time.monotonic() + idle))
        except TimeoutError:
            return None
        self._rest = b""
        until, searched = time.monotonic() + seconds, 0
        while found and (end := found.find(b"\r\n\r\n", searched)) < 0 and len(found) <= LARGEST_HEAD:
            searched = max(0, len(found) - 3)
            try:
                more = self._receive(until)
            except TimeoutError:
                raise HttpError(408, f"the header took more than {seconds:g} seconds; send it at once") from None
            if not more:
                raise GoneError
            found += more
        if not found:
            return None
        if not 0 <= end <= LARGEST_HEAD:
            raise HttpError(431, f"the header has more than {LARGEST_HEAD:,} bytes; send less")
        self._rest = bytes(found[end + 4 :])
        return _head(found[:end])

    def read_body(self, head: Head, length: int, seconds: float) -> bytes:
        """The body of a request; raises HttpError 408 where it takes longer, GoneError where it is cut."""
        if head.fields.get("expect", "").lower() == "100-continue" and len(self._rest) < length:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        found, until = bytearray(self._rest[:length]), time.monotonic() + seconds
        self._rest = self._rest[length:]
        while len(found) < length:
            try:
                more = self._receive(until, length - len(found))
            except TimeoutError:
                raise HttpError(408, f"the body took more than {seconds:g} seconds; send it at once") from None
            if not more:
                raise GoneError
            found += more
        return bytes(found)

    def send(self, content: bytes) -> None:
        """Send all of it; raises GoneError where the client does not take it."""
        try:
            self._socket.settimeout(self._send_seconds)
            self._socket.sendall(content)
        except OSError as error:
            raise GoneError from error

    def has_left(self) -> bool:
        """Whether the client has closed its end."""
        return bool(self._poll.poll(0))

    def finish(self, seconds: float = 1.0) -> None:
        """Say that no more comes, and drop what the client still sends for some seconds.

        A socket closed with bytes unread resets the connection, and the client would lose the answer.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
            until = time.monotonic() + seconds
            while self._receive(until):
                pass
        except (OSError, GoneError):
            pass

    def _receive(self, until: float, most: int = _BLOCK) -> bytes:
        """Bytes that have come, none at the end; raises TimeoutError, GoneError."""
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        try:
            self._socket.settimeout(left)
            return self._socket.recv(min(most, _BLOCK))
        except TimeoutError:
            raise
        except OSError as error:
            raise GoneError from error


def response_head(status: int, fields: Mapping[str, str]) -> bytes:
    """The status line and the fields of a response; those that every response has are added."""
    common = {
        "Date": formatdate(usegmt=True),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in {**common, **fields}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def json_bytes(value: Any) -> bytes:
    """A value as JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _head(text: bytearray) -> Head:
    first, *lines = text.decode("latin-1").split("\r\n")
    request = _LINE.fullmatch(first)
    if request is None:
        raise HttpError(400, "the request line is not one of HTTP/1.1")
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise HttpError(400, "a header line is not NAME: VALUE")
        name = field[1].lower()
        if name in fields and name in ("host", "content-length", "transfer-encoding", "authorization", "origin"):
            raise HttpError(400, f"the header has {field[1]} twice; send it once")
        fields[name] = field[2]
    options = [option.strip() for option in fields.get("connection", "").lower().split(",")]
    keeps = "close" not in options and (request[3] == "1" or "keep-alive" in options)
    return Head(request[1], request[2].partition("?")[0], fields, keeps)
