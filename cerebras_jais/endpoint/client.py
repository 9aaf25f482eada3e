"""One question to `/chat/completions`, tried again where the endpoint is busy or its answer is damaged."""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import random
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError

from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, parse_json

LONGEST_WAIT = 600.0
"""Seconds that an endpoint may ask for by Retry-After."""
_LONGEST_BACKOFF = 60.0  # seconds, where it asks for nothing
_LARGEST = 16 * MIB  # bytes of a response
_BLOCK = MIB // 16
_BUSY = (408, 409, 425, 429)  # and all from 500 on
_URL = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?(/[!-~]*)?", re.ASCII)


_UNREACHABLE = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError, UnicodeError)


class EndpointError(UserError):
    """An endpoint that cannot be used, as it is or as it is asked; names it and the remedy."""


class RefusedQuestionError(EndpointError):
    """The endpoint refuses this one question, such as a text longer than its context; others may be answered."""


class _BusyError(Exception):
    """The question may be answered later; `after` is the content of Retry-After."""

    def __init__(self, reason: str, after: str | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _UnreachableError(_BusyError):
    """No server is there."""


@dataclass(frozen=True)
class Endpoint:
    """Where questions go.

    Attributes:
        url: what stands before `/chat/completions`, such as `http://localhost:8000/v1`.
        key: sent as a bearer token; never in a message.
        timeout: seconds of a request from its start to its last byte.
        tries: how often a question is asked before the endpoint counts as out of service.
        backoff: seconds before the second try; doubled for each further one, up to a minute.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 600.0
    tries: int = 8
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if not _URL.fullmatch(self.url) or "?" in self.url or "#" in self.url:
            raise EndpointError(f"{self.url[:200]!r} is no base URL of an endpoint; give one such as https://HOST/v1")


@dataclass(frozen=True)
class Answer:
    """What a model said to a question.

    Attributes:
        text: of the first choice.
        finish: why it ended, as the endpoint says it: `stop`, `length`, `content_filter`, or None.
        input_tokens: as the endpoint counts them; None where it does not.
        output_tokens: the same.
    """

    text: str
    finish: str | None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected question would lose its body, and might take the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def key_from(variable: str | None) -> str | None:
    """The key in an environment variable; None where no variable is given. Raises EndpointError for one without."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EndpointError(f"the environment variable {variable} is not set; set it to the key of the endpoint")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EndpointError(f"the environment variable {variable} is no key: it has spaces or letters beyond ASCII")
    return key


def ask(
    endpoint: Endpoint, body: bytes, wait: Callable[[float], object] = time.sleep, *, patient: bool = False
) -> Answer:
    """Ask one question, which is the JSON of a chat completion, until it is answered.

    Args:
        endpoint: where.
        body: what is asked.
        wait: called with the seconds before another try; what it raises ends this.
        patient: whether a server that is not there may come back, because it was there before.

    Raises:
        RefusedQuestionError: this question is refused (status 400, 413, 422 and their like).
        EndpointError: all would be: no such server, a wrong key, address or model, or it fails at each of the tries.
    """
    for attempt in range(1, endpoint.tries + 1):
        try:
            return _ask_once(endpoint, body)
        except _BusyError as busy:
            if isinstance(busy, _UnreachableError) and not patient:
                raise EndpointError(f"{endpoint.url}: {busy}; check the URL, and that the server runs") from busy
            if attempt == endpoint.tries:
                raise EndpointError(
                    f"{endpoint.url}: no answer in {endpoint.tries} tries, at last: {busy}; start again once it works"
                ) from busy
            wait(seconds_to_wait(attempt, endpoint.backoff, busy.after))
    raise AssertionError("a question is tried at least once")


def seconds_to_wait(attempt: int, backoff: float, after: str | None, now: float | None = None) -> float:
    """Seconds before the next try: what Retry-After says, or a share, drawn from a half to one, of 2^(attempt-1).

    Args:
        attempt: tries so far.
        backoff: seconds that the share is of.
        after: Retry-After, seconds or a date (RFC 9110, section 10.2.3); anything else is passed over.
        now: seconds of the epoch; those of the clock by default.
    """
    asked: float | None = None
    if after is not None and after.strip().isdecimal():
        asked = float(after)
    elif after is not None:
        try:
            asked = email.utils.parsedate_to_datetime(after).timestamp() - (time.time() if now is None else now)
        except (ValueError, OverflowError):
            asked = None
    if asked is not None:
        return min(max(asked, 0.0), LONGEST_WAIT)
    return min(backoff * 2.0 ** (attempt - 1), _LONGEST_BACKOFF) * random.uniform(0.5, 1)


def _ask_once(endpoint: Endpoint, body: bytes) -> Answer:
    request = urllib.request.Request(f"{endpoint.url.rstrip('/')}/chat/completions", body)
    request.add_header("Content-Type", "application/json")
    if endpoint.key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {endpoint.key}")
    until = time.monotonic() + endpoint.timeout
    try:
        with _OPENER.open(request, timeout=endpoint.timeout) as response:
            content = _read(response, until)
    except HTTPError as refused:
        raise _meaning(endpoint, refused, until) from refused
    except TimeoutError as late:
        raise _BusyError(f"it sent nothing for {endpoint.timeout:g} seconds") from late
    except (OSError, http.client.HTTPException, UnicodeError) as broken:  # UnicodeError: a host with an empty label
        reason = broken.reason if isinstance(broken, URLError) else broken
        if isinstance(reason, _UNREACHABLE):
            raise _UnreachableError(f"cannot be reached ({_line(reason)})") from broken
        raise _BusyError(f"the connection broke ({_line(reason)})") from broken
    return _answer_in(content)


def _read(response: Any, until: float) -> bytes:
    """The content of a response, within bounds of size and time."""
    found = bytearray()
    length = response.length  # None where the content ends with the connection, or comes in chunks
    while (length is None or len(found) < length) and (block := response.read1(_BLOCK)):
        found += block
        if len(found) > _LARGEST:
            raise _BusyError(f"the response has more than {_LARGEST // MIB} MiB")
        if time.monotonic() > until:
            raise TimeoutError
    if length is not None and len(found) < length:
        raise http.client.IncompleteRead(bytes(found), length - len(found))
    return bytes(found)


def _answer_in(content: bytes) -> Answer:
    try:
        found = parse_json(content.decode("utf-8"), "response")
        choice = found["choices"][0]
        text, finish, usage = choice["message"]["content"], choice.get("finish_reason"), found.get("usage")
    except (UserError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as damage:
        raise _BusyError("the response is no chat completion") from damage
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise _BusyError("the response is no chat completion")
    usage = usage if isinstance(usage, Mapping) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    sure = [count if isinstance(count, int) and not isinstance(count, bool) else None for count in counts]
    return Answer(text or "", finish, *sure)


def _meaning(endpoint: Endpoint, refused: HTTPError, until: float) -> Exception:
    """The error that a status other than 200 stands for."""
    with refused:
        said = _said(endpoint, refused, until)
    where, status = endpoint.url, refused.code
    if status in _BUSY or status >= 500:
        return _BusyError(f"status {status}{said}", refused.headers.get("Retry-After"))
    if status in (401, 403):
        return EndpointError(f"{where}: refuses the key (status {status}{said}); set the right one")
    if status in (404, 405) or status < 400:
        return EndpointError(
            f"{where}: has no such address or model (status {status}{said}); check the model, and the URL, "
            "which often ends in /v1"
        )
    return RefusedQuestionError(f"{where}: refuses this request (status {status}{said})")


def _said(endpoint: Endpoint, refused: HTTPError, until: float) -> str:
    """`: MESSAGE` of the body of a refusal, in one line without the key, or nothing."""
    try:
        text = _read(refused, until).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException, _BusyError):
        return ""
    try:
        found = json.loads(text)
        error = found.get("error", found)
        text = str(error.get("message") if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        pass
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if endpoint.key is not None:
        line = line.replace(endpoint.key, "***")
    return f": {line[:200]}" if line else ""


def _line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
