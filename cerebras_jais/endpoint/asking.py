"""Many questions to an endpoint at a time, none of them twice."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any

from cerebras_jais.endpoint.client import Answer, Endpoint, EndpointError, RefusedQuestionError, ask
from cerebras_jais.endpoint.record import Record

RESERVED = ("model", "messages", "n", "stream")
"""Keys of a chat completion that are no options: the question sets them, or one whole answer is needed."""
_AHEAD = 2  # questions in memory for each thread


@dataclass(frozen=True)
class Question:
    """The JSON of a chat completion, and where it comes from (`FILE:LINE`), for messages."""

    body: bytes
    place: str

    @property
    def key(self) -> str:
        """What it is known by in a record: all that is sent, the model included, and not to whom."""
        return hashlib.sha256(self.body).hexdigest()


def question(model: str, messages: Iterable[Mapping[str, str]], options: Mapping[str, Any], place: str) -> Question:
    """A question to a model; `options` are further keys of a chat completion, such as temperature."""
    body = {"model": model, "messages": [*messages], **options}
    return Question(json.dumps(body, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace"), place)


class _StoppedError(Exception):
    """The caller has no more use for the answer."""


def ask_all(
    endpoint: Endpoint, questions: Iterable[Question], record: Record, concurrency: int, *, keep_refusals: bool
) -> Iterator[Question]:
    """Ask what the record does not have yet, and yield each question once its answer is recorded, in any order.

    An entry of the record has the fields of `Answer`, or `refused` with the reason. At most two questions for each
    request under way are in memory.

    Args:
        endpoint: where.
        questions: what; of equal ones the first is asked.
        record: where answers are kept; what is under way when this ends is added while it stays open.
        concurrency: requests under way at a time.
        keep_refusals: whether a question that the endpoint refuses is recorded as such. Otherwise it ends this.

    Raises EndpointError as `ask` does; it does not wait for requests that are under way then.
    """
    todo: SimpleQueue[Question | None] = SimpleQueue()
    done: SimpleQueue[Question | BaseException] = SimpleQueue()
    stop, reached = threading.Event(), threading.Event()

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise _StoppedError

    def entry_of(asked: Question) -> dict[str, Any]:
        try:
            return asdict(ask(endpoint, asked.body, wait, patient=reached.is_set()))
        except RefusedQuestionError as refused:
            if keep_refusals:
                return {"refused": str(refused)}
            raise EndpointError(f"{asked.place}: {refused}") from refused

    def work() -> None:
        while (asked := todo.get()) is not None and not stop.is_set():
            try:
                record.add(asked.key, entry_of(asked))
                reached.set()
                done.put(asked)
            except BaseException as error:
                stop.set()  # before anything else is asked
                done.put(error)

    # An executor's threads would keep the process alive for as long as an endpoint stays silent.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    waiting: set[str] = set()
    try:
        for asked in questions:
            key = asked.key
            if key in waiting or key in record:
                continue
            waiting.add(key)
            todo.put(asked)
            if len(waiting) >= _AHEAD * concurrency:
                yield _next(done, waiting)
        while waiting:
            yield _next(done, waiting)
    finally:
        stop.set()
        for _ in threads:
            todo.put(None)


def _next(done: SimpleQueue[Question | BaseException], waiting: set[str]) -> Question:
    found = done.get()
    if isinstance(found, BaseException):
        raise found
    waiting.discard(found.key)
    return found


def answer_in(entry: Mapping[str, Any]) -> Answer | None:
    """The answer that an entry of the record holds; None where the question was refused."""
    return None if "refused" in entry else Answer(*(entry[name] for name in Answer.__dataclass_fields__))
