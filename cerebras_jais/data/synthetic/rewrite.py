"""The documents of a source, each asked of an endpoint once, and a source of JSON lines made of the answers."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cerebras_jais.atomic import abandoned, replacing
from cerebras_jais.data.documents import LONGEST_DOCUMENT, DataError
from cerebras_jais.data.recipe.inputs import Shard, find_inputs
from cerebras_jais.data.recipe.sources import Unreadable, place, read_shard
from cerebras_jais.data.synthetic.settings import TEXT, Rewriting
from cerebras_jais.data.tokenizer import load_tokenizer
from cerebras_jais.encoding import Encoder
from cerebras_jais.endpoint.asking import Question, answer_in, ask_all, question
from cerebras_jais.endpoint.client import Endpoint
from cerebras_jais.endpoint.record import Record, keys_in, open_record
from cerebras_jais.files import shown_path

_WHOLE = 2**62  # bytes of a shard: files are not divided, so that a line's number is known without counting
_BATCH = 256  # questions that are tokenised together
_SHOWN = 10  # of what cannot be read


@dataclass(frozen=True)
class Estimate:
    """What a source would cost: numbers of documents, and tokens of the questions that are left to ask.

    `answer_tokens` is assumed: the tokens of the documents times a factor of the settings.
    """

    documents: int
    answered: int
    """Documents whose question has been asked already, or equals that of an earlier document."""
    question_tokens: int
    answer_tokens: int

    @property
    def left(self) -> int:
        """Questions to ask."""
        return self.documents - self.answered


@dataclass
class Outcome:
    """What became of the documents: how many are written, and the others by reason."""

    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def record_path(settings: Rewriting) -> Path:
    """The record of what was asked, beside the output; its ending is none that a source is read from."""
    return Path(settings.output + ".asked")


def estimate(settings: Rewriting, note: Callable[[str], None]) -> Estimate:
    """Count what is left to ask; nothing is asked or written.

    Args:
        settings: of the YAML.
        note: called with what is said of files not read and, with `on_error: count`, of documents not readable.

    Raises DataError and UserError for a source, tokenizer, record or output that cannot be used.
    """
    output, record = Path(settings.output), record_path(settings)
    if os.path.lexists(output) and not os.path.lexists(record):
        raise DataError(f"{shown_path(output)}: exists, and was not made by this; choose another output, or remove it")
    if not output.parent.is_dir():
        raise DataError(f"{shown_path(output)}: the folder {shown_path(output.parent)} does not exist; create it first")
    if any(output.resolve().is_relative_to(Path(path).resolve()) for path in settings.source.path):
        raise DataError(f"{shown_path(output)}: lies in the source, which would then hold the answers; choose another")
    encoder = Encoder(load_tokenizer(settings.tokenizer))
    asked = keys_in(record)
    documents = answered = questions = answers = 0
    pairs = _documents(settings, note)
    while batch := list(islice(pairs, _BATCH)):
        new = []
        for text, found in batch:
            key = bytes.fromhex(found.key)
            if key not in asked:
                asked.add(key)
                new.append(text)
        documents, answered = documents + len(batch), answered + len(batch) - len(new)
        tokens = len(encoder.encode(new).ids)
        answers += tokens
        questions += tokens
    if not documents:
        raise DataError(f"{shown_path(settings.source.path[0])}: every document of the source is empty; nothing to ask")
    around = encoder.encode([settings.prompt.replace(TEXT, ""), settings.system or ""]).ids
    left = documents - answered
    return Estimate(documents, answered, questions + left * len(around), round(answers * settings.answer_tokens))


def rewrite(settings: Rewriting, endpoint: Endpoint, progress: Callable[[int], None]) -> Outcome:
    """Ask what is left and write the output, in the order of the source; the same call goes on with one that ended.

    Args:
        settings: of the YAML.
        endpoint: that of the settings, with its key.
        progress: called with the number of questions answered so far.

    Raises EndpointError for an endpoint that cannot be used, DataError and UserError for a source or record.
    """
    output = Path(settings.output)
    with open_record(record_path(settings)) as record:
        for file in abandoned(output.parent, re.escape(output.name)):
            file.unlink()
        asked = ask_all(
            endpoint,
            (found for _, found in _documents(settings)),
            record,
            settings.endpoint.concurrency,
            keep_refusals=settings.on_error == "count",
        )
        for number, _ in enumerate(asked, 1):
            progress(number)
        return _write(settings, record)


def _write(settings: Rewriting, record: Record) -> Outcome:
    outcome = Outcome()
    prompt = prompt_hash(settings)
    with (
        replacing(settings.output, overwrite=True) as partial,
        partial.open("w", encoding="utf-8", newline="\n") as out,
    ):
        for _, found in _documents(settings):
            if found.key not in record:
                raise DataError(f"{found.place}: has changed since it was asked about; start again")
            answer = answer_in(record[found.key])
            if answer is None:
                outcome.left_out["refused by the endpoint"] += 1
                continue
            if (reason := _unusable(answer.text, answer.finish)) is not None:
                outcome.left_out[reason] += 1
                continue
            provenance = {"model": settings.endpoint.model, "prompt": prompt, "source": found.place}
            line = {"text": answer.text, "language": settings.language, "provenance": provenance}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            outcome.written += 1
    return outcome


def _unusable(text: str, finish: str | None) -> str | None:
    """Why an answer is no document; None where it is one."""
    if finish not in (None, "stop"):
        return "cut at the most tokens of an answer" if finish == "length" else f"ended with {finish[:40]!r}"
    if not text.strip():
        return "empty answer"
    return "answer longer than a document" if len(text.encode()) > LONGEST_DOCUMENT else None


def prompt_hash(settings: Rewriting) -> str:
    """SHA-256 of the prompt, the system message and the options, which say how a text was asked about."""
    asked = [settings.prompt, settings.system, settings.endpoint.options]
    return hashlib.sha256(json.dumps(asked, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _documents(settings: Rewriting, note: Callable[[str], None] | None = None) -> Iterator[tuple[str, Question]]:
    """Each document that is not empty, with its question. Without `note` nothing is said of what cannot be read."""
    inputs = find_inputs({"source": settings.source}, _WHOLE)
    shown = 0

    def refused(where: str, what: Unreadable) -> None:
        nonlocal shown
        if settings.on_error == "stop":
            raise DataError(f"{where}: {what.message}; or pass over such with on_error: count")
        shown += 1
        if note is not None and shown <= _SHOWN:
            note(f"passed over: {where}: {what.message}")

    if note is not None:
        for line in inputs.notes:
            note(line)
    for shard in inputs.shards:
        yield from _documents_of(shard, settings, refused)
    if note is not None and shown > _SHOWN:
        note(f"passed over: {shown} in all")


def _documents_of(
    shard: Shard, settings: Rewriting, refused: Callable[[str, Unreadable], None]
) -> Iterator[tuple[str, Question]]:
    before = [] if settings.system is None else [{"role": "system", "content": settings.system}]
    for batch in read_shard(shard, settings.source, refused):
        for text, (part, line) in zip(batch.texts, batch.places, strict=True):
            if not text.strip():
                continue
            messages = [*before, {"role": "user", "content": settings.prompt.replace(TEXT, text)}]
            where = place(shard.parts[part], line)
            yield text, question(settings.endpoint.model, messages, settings.endpoint.options, where)
