"""The server: connections, what each may ask, and its end.

A thread for each connection, of which there are a bounded number, reads requests and writes answers; the worker's
thread alone uses the model. So a client that is slow holds up nobody but itself.
"""

from __future__ import annotations

import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cerebras_jais.chat.page import page
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB
from cerebras_jais.serve.access import check_key, check_origin
from cerebras_jais.serve.answers import Shape, Usage
from cerebras_jais.serve.bodies import Chat, Completion, Ids, Options, check_ids, parse_chat, parse_completion
from cerebras_jais.serve.exchange import Exchange, parts
from cerebras_jais.serve.http11 import Connection, GoneError, Head, HttpError
from cerebras_jais.serve.worker import Job, Worker

if TYPE_CHECKING:
    from cerebras_jais.chat.engine import Engine

_POLL = 0.2  # seconds between two looks at whether the server ends
_COMPLETION_TOKENS = 16  # of a completion that says nothing of its length, as at OpenAI
_CHAT, _COMPLETIONS, _MODELS = "/v1/chat/completions", "/v1/completions", "/v1/models"


@dataclass(frozen=True)
class Settings:
    """What a server allows.

    Attributes:
        most_tokens: of a prompt and its answer together.
        key: that requests below /v1 must have; None for none.
        hosts: names beside localhost and IP addresses that the Host field may have.
        most_waiting: requests that may wait for the model.
        most_connections: at a time; further ones wait to be accepted.
        most_bytes: of a body.
        idle: seconds until a connection's next request begins.
        receive: seconds of a request's head, and of its body.
        send: seconds within which a client takes a part of an answer.
        log: takes a line for each request; there is no text of a prompt or an answer in it.
    """

    most_tokens: int
    key: str | None = None
    hosts: frozenset[str] = frozenset()
    most_waiting: int = 64
    most_connections: int = 256
    most_bytes: int = 2 * MIB
    idle: float = 15.0
    receive: float = 15.0
    send: float = 30.0
    log: Callable[[str], object] | None = None


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; raises UserError where the port is taken or the address is not this machine's.

    Args:
        host: a name or an address.
        port: 0 for any that is free.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: is no address of this machine; give one such as 127.0.0.1") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"cannot listen at port {port} of {host}: {error.strerror}; end the program that has it, or give another "
            "--port or --host"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """What a browser of this machine takes to reach a listening socket."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server:
    """Answers at a listening socket from its making on, until `stop`."""

    def __init__(self, engine: Engine, listener: socket.socket, settings: Settings) -> None:
        self._engine, self._listener, self._settings = engine, listener, settings
        self._worker = Worker(engine, settings.most_waiting)
        self._encoding = threading.Lock()
        self._page = page()
        self._places = threading.BoundedSemaphore(settings.most_connections)
        self._busy = 0  # requests under way
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._created = int(time.time())
        self._accepting = threading.Thread(target=self._accept, name="connections", daemon=True)
        self._accepting.start()

    def stop(self, grace: float) -> None:
        """Take no more requests, let the answer under way end within some seconds, and end it then.

        Requests that wait for the model are answered with status 503.
        """
        self._closed.set()
        self._accepting.join()
        self._listener.close()
        self._worker.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, grace)
        self._worker.end(5.0)
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, 1.0)

    # ---- connections -------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        self._listener.settimeout(_POLL)
        while not self._closed.is_set():
            if not self._places.acquire(timeout=_POLL):
                continue
            try:
                accepted, address = self._listener.accept()
                threading.Thread(target=self._serve, args=(accepted, str(address[0])), daemon=True).start()
            except TimeoutError:
                self._places.release()
            except (OSError, RuntimeError):  # no more descriptors or threads, for now
                self._places.release()
                time.sleep(_POLL)

    def _serve(self, accepted: socket.socket, client: str) -> None:
        try:
            with accepted:
                connection = Connection(accepted, self._settings.send)
                while self._exchange(connection, client):
                    pass
                connection.finish()
        except (GoneError, OSError):
            pass
        finally:
            self._places.release()

    def _exchange(self, connection: Connection, client: str) -> bool:
        """One request and its answer; whether the connection stays open."""
        exchange = Exchange(connection)
        try:
            head = connection.read_head(self._settings.idle, self._settings.receive)
            if head is None:
                return False
        except HttpError as error:
            exchange.refuse(error)
            self._say(client, "?", exchange)
            return False
        with self._changed:
            self._busy += 1
        try:
            exchange.without_body = head.method == "HEAD"
            self._answer(head, exchange)
        except HttpError as error:
            exchange.refuse(error)
        except UserError as error:
            exchange.refuse(HttpError(400, str(error)))
        except GoneError:
            exchange.status, exchange.note, exchange.keeps = 499, "the client left", False
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            exchange.refuse(HttpError(500, f"the server failed ({type(error).__name__}); its own output says more"))
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
            self._say(client, f"{head.method} {_shown_route(head.path)}", exchange)
        return exchange.keeps

    def _say(self, client: str, request: str, exchange: Exchange) -> None:
        if self._settings.log is not None:
            seconds = time.monotonic() - exchange.begun
            self._settings.log(f"{client} {request} {exchange.status} {seconds:.2f} s {exchange.note}".rstrip())

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def _answer(self, head: Head, exchange: Exchange) -> None:
        check_origin(head, self._settings.hosts)
        path = _MODELS if head.path.startswith(f"{_MODELS}/") else head.path
        if path not in _ROUTES:
            raise HttpError(404, f"there is nothing at this address; there are {', '.join(_ROUTES)}")
        methods = _ROUTES[path]
        if head.method not in methods:
            raise HttpError(405, f"{path} takes {' and '.join(methods)}", fields={"Allow": ", ".join(methods)})
        if path.startswith("/v1/"):
            check_key(head, self._settings.key)
        length = head.length(self._settings.most_bytes) if head.method == "POST" or _has_body(head) else 0
        body = exchange.connection.read_body(head, length, self._settings.receive)
        exchange.keeps = head.keeps
        if path == _CHAT:
            chat = parse_chat(body)
            self._write(chat.options, self._chat_prompt(chat), True, exchange)
        elif path == _COMPLETIONS:
            completion = parse_completion(body)
            self._write(completion.options, self._prompts(completion), False, exchange)
        elif path == _MODELS:
            exchange.send(200, self._models(head.path))
        elif path == "/health":
            status = "stopping" if self._worker.stopping else "ok"
            exchange.send(503 if self._worker.stopping else 200, {"status": status, "waiting": self._worker.waiting})
        else:
            exchange.send(200, self._page.content, self._page.headers)

    def _models(self, path: str) -> dict[str, Any]:
        model = {
            "id": self._engine.name,
            "object": "model",
            "created": self._created,
            "owned_by": "cerebras-jais",
            "max_model_len": self._settings.most_tokens,
        }
        asked = unquote(path[len(_MODELS) + 1 :])
        if not asked:
            return {"object": "list", "data": [model]}
        self._check_model(asked)
        return model

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._engine.name:
            raise HttpError(
                404,
                f"there is no such model here; ask for {self._engine.name!r}",
                code="model_not_found",
                param="model",
            )

    def _chat_prompt(self, chat: Chat) -> tuple[Ids, ...]:
        self._check_model(chat.options.model)
        if not self._engine.is_chat:
            raise HttpError(
                400,
                f"{self._engine.name!r} is a base model, which continues text and does not chat; ask {_COMPLETIONS}, "
                "or serve a chat model",
                code="not_a_chat_model",
            )
        messages = [{"role": role, "content": content} for role, content in chat.messages]
        with self._encoding:
            return (tuple(self._engine.chat_ids(messages, chat.language)),)

    def _prompts(self, completion: Completion) -> tuple[Ids, ...]:
        self._check_model(completion.options.model)
        check_ids(completion.prompts, self._engine.vocabulary)
        with self._encoding:
            return tuple(
                tuple(self._engine.encode(prompt)) if isinstance(prompt, str) else prompt
                for prompt in completion.prompts
            )

    def _most_new(self, options: Options, prompts: tuple[Ids, ...], chat: bool) -> int:
        """Tokens of an answer at most; raises HttpError 400 where they do not fit behind the longest prompt."""
        longest, most = max(map(len, prompts)), self._settings.most_tokens
        asked = options.max_tokens or (1 if chat else min(_COMPLETION_TOKENS, max(1, most - longest)))
        if longest + asked > most:
            raise HttpError(
                400,
                f"the prompt has {longest:,} tokens and the answer may have {asked:,}, and this server takes {most:,} "
                "together; make the prompt shorter, or max_tokens smaller",
                code="context_length_exceeded",
                param="messages" if chat else "prompt",
            )
        return options.max_tokens or (most - longest if chat else asked)

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _write(self, options: Options, prompts: tuple[Ids, ...], chat: bool, exchange: Exchange) -> None:
        given = {
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k,
            "repetition_penalty": options.repetition_penalty,
            "min_new_tokens": options.min_tokens,
            "max_new_tokens": self._most_new(options, prompts, chat),
            "seed": options.seed if options.seed is not None else secrets.randbits(62),
            "stop": options.stop,
        }
        said: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        usual = self._engine.chat_sampling if chat else Sampling(temperature=1.0)
        job = Job(prompts, replace(usual, **said))
        shape = Shape(self._engine.name, chat, options.include_usage)
        self._worker.submit(job)
        try:
            if options.stream:
                self._stream(job, shape, exchange)
            else:
                self._send_whole(job, shape, exchange)
        finally:
            self._worker.cancel(job)  # the client has left, or the job is done

    def _send_whole(self, job: Job, shape: Shape, exchange: Exchange) -> None:
        texts, ends, written = [""] * len(job.prompts), ["length"] * len(job.prompts), 0
        for index, text, finish, tokens in parts(job, exchange.connection):
            texts[index] += text
            ends[index] = finish or ends[index]
            written += tokens
        if shape.chat:
            texts = [text.lstrip() for text in texts]
        usage = Usage(sum(map(len, job.prompts)), written)
        exchange.send(200, shape.whole(list(zip(texts, ends, strict=True)), usage))
        exchange.note = f"{usage.prompt}+{usage.completion} tokens"

    def _stream(self, job: Job, shape: Shape, exchange: Exchange) -> None:
        written, begun = 0, not shape.chat
        try:
            for index, text, finish, tokens in parts(job, exchange.connection):
                exchange.begin_events(shape)
                written += tokens
                if not begun:  # an answer begins behind the prompt's last space
                    text = text.lstrip()
                    begun = bool(text)
                if text or finish:
                    exchange.send_event(shape.piece(index, text, finish))
        except HttpError as error:
            if not exchange.events:
                raise
            exchange.send_event(error.body())
            exchange.note = str(error)
            return
        usage = Usage(sum(map(len, job.prompts)), written)
        exchange.begin_events(shape)
        if shape.usage_last:
            exchange.send_event(shape.last(usage))
        exchange.connection.send(b"data: [DONE]\n\n")
        exchange.note = f"{usage.prompt}+{usage.completion} tokens, streamed"


_ROUTES = {
    "/": ("GET", "HEAD"),
    "/health": ("GET", "HEAD"),
    _MODELS: ("GET", "HEAD"),
    _CHAT: ("POST",),
    _COMPLETIONS: ("POST",),
}


def _shown_route(path: str) -> str:
    """A path for the log: what a client makes up is not repeated."""
    return path if path in _ROUTES else f"{_MODELS}/..." if path.startswith(f"{_MODELS}/") else "elsewhere"


def _has_body(head: Head) -> bool:
    return "transfer-encoding" in head.fields or head.fields.get("content-length", "0") != "0"
