"""Conversations from JSON lines, in the four forms in which instruction data is published."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cerebras_jais.data.chat.prompts import LANGUAGES, Message, prompt_language
from cerebras_jais.data.documents import LONGEST_DOCUMENT, DataError, Line, lines_of, object_in
from cerebras_jais.files import MIB, shown_path
from cerebras_jais.ranges import shown
from cerebras_jais.wording import suggestion

_EXAMPLE = '{"prompt": "...", "response": "..."}'
_TEXT_PART = '{"type": "text", "text": "..."}'
_COMMON = ("language", "system", "source")
MOST_MESSAGES = 10_000


class _Turns(NamedTuple):
    """How a form writes a list of messages: the names of their two fields, and of the roles."""

    role: str
    content: str
    roles: Mapping[str, str]


_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
# The key that a form is known by, the other keys it has, and how it writes turns, where it does.
_FORMS: dict[str, tuple[tuple[str, ...], _Turns | None]] = {
    "messages": ((), _Turns("role", "content", _ROLES)),
    "conversations": (("id",), _Turns("from", "value", {**_ROLES, "human": "user", "gpt": "assistant"})),  # ShareGPT
    "prompt": (("response",), None),
    "instruction": (("input", "output"), None),  # Alpaca
}


@dataclass(frozen=True)
class Conversation:
    """Messages that alternate user, assistant, ..., after at most one system message; the last is the assistant's.

    Attributes:
        messages: none of them is blank.
        language: of the prompt around them, "ar" or "en".
        place: `FILE:LINE`.
        source: what the line says of where it comes from, or `place`.
    """

    messages: tuple[Message, ...]
    language: str
    place: str
    source: str

    @property
    def characters(self) -> int:
        """Of all messages together."""
        return sum(len(message.content) for message in self.messages)


def sample_conversations_path() -> Path:
    """Return the file of Arabic and English conversations that comes with the package."""
    return Path(__file__).parent / "sample.jsonl"


def read_conversations(
    file: Path, *, ignored: Collection[str] = (), malformed: Callable[[DataError], None] | None = None
) -> Iterator[Conversation]:
    """Yield the conversations of a file of JSON lines (`-`: standard input), one to a line; blank lines are skipped.

    A line is one of these objects, or the form's usual names of roles, with optionally "language" ("ar" or "en"),
    "system" (a message before the others) and "source":

        {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}
        {"prompt": ..., "response": ...}
        {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}     ShareGPT
        {"instruction": ..., "input": ..., "output": ...}     Alpaca; an input follows after an empty line

    The content of a message may be a list of parts, {"type": "text", "text": ...}: each begins a line of the message,
    as vLLM and llama.cpp put them together for models of text alone.

    Args:
        ignored: fields that are passed over, unknown ones or those three; any other unknown one is malformed, since it
            could be a misspelt one.
        malformed: called with what is wrong with a line, which is then left out; without it the error is raised.

    Raises DataError, naming file and line, for what is no conversation: broken JSON, text that is not UTF-8, half a
    character, an unknown or missing field, an empty message, a part that is no text, roles out of order, no response,
    more than MOST_MESSAGES messages or LONGEST_DOCUMENT bytes; and for a file that cannot be read or is one list of
    JSON, whatever `malformed` is.
    """
    for line in lines_of(file):
        if line.number == 1 and line.content.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            raise DataError(
                f"{shown_path(file)}: is one list of JSON; write one object to a line: jq -c '.[]' FILE > LINES.jsonl"
            )
        try:
            entry = object_in(line, _EXAMPLE)
            conversation = None if entry is None else _conversation(entry, line, ignored)
        except DataError as error:
            if malformed is None:
                raise
            malformed(error)
            continue
        if conversation is not None:
            yield conversation


def _conversation(entry: Mapping[str, Any], line: Line, ignored: Collection[str]) -> Conversation:
    place = line.source
    if len(line.content) > LONGEST_DOCUMENT:
        raise DataError(f"{place}: a conversation of more than {LONGEST_DOCUMENT // MIB} MiB; cut it into several")
    entry = {key: value for key, value in entry.items() if key not in ignored or key not in _COMMON}
    form = next((key for key in _FORMS if key in entry), None)
    if form is None:
        raise DataError(f"{place}: has none of the fields {', '.join(_FORMS)}; write a line such as {_EXAMPLE}")
    others, turns = _FORMS[form]
    _check_fields(entry, (form, *others, *_COMMON), ignored, place)
    messages = _plain(entry, form, place) if turns is None else _turns(entry[form], form, turns, ignored, place)
    system = _text(entry, "system", place, optional=True)
    if system.strip():
        if messages and messages[0].role == "system":
            raise DataError(f'{place}: has the field "system" and a system message too; leave one of them out')
        messages = [Message("system", system), *messages]
    _check_order(messages, place)
    language = entry.get("language")
    if language is not None and language not in LANGUAGES:
        raise DataError(f'{place}: language {shown(language)}: the prompts are in "ar" and "en"; give one, or none')
    source = _text(entry, "source", place, optional=True) or place
    return Conversation(tuple(messages), language or prompt_language(messages), place, source)


def _plain(entry: Mapping[str, Any], form: str, place: str) -> list[Message]:
    """The two messages of a line with a prompt and a response under names of their own."""
    prompt = _text(entry, form, place)
    if form == "instruction":
        given = _text(entry, "input", place, optional=True)
        prompt = f"{prompt}\n\n{given}" if given.strip() else prompt
    response = "response" if form == "prompt" else "output"
    if response not in entry:
        raise DataError(f'{place}: no response: the field "{response}" is missing')
    return [Message("user", prompt), Message("assistant", _text(entry, response, place))]


def _turns(found: Any, form: str, names: _Turns, ignored: Collection[str], place: str) -> list[Message]:
    if not isinstance(found, list) or not found:
        raise DataError(f'{place}: "{form}" must be a list of messages, got {shown(found)}')
    messages = []
    if len(found) > MOST_MESSAGES:
        raise DataError(f'{place}: "{form}" has {len(found)} messages, more than {MOST_MESSAGES}; cut it into several')
    for number, turn in enumerate(found):
        where = f"{place}: {form}[{number}]"
        if not isinstance(turn, dict):
            raise DataError(f"{where} must be an object with {names.role} and {names.content}, got {shown(turn)}")
        _check_fields(turn, (names.role, names.content), ignored, where)
        role = turn.get(names.role)
        if not isinstance(role, str) or role not in names.roles:
            known = ", ".join(names.roles)
            raise DataError(f'{where}: "{names.role}" is {shown(role)}; known: {known}')
        content = turn.get(names.content)
        if isinstance(content, list):
            turn = {names.content: "\n".join(_parts(content, f"{where}.{names.content}", ignored))}
        messages.append(Message(names.roles[role], _text(turn, names.content, where)))
    return messages


def _parts(parts: list[Any], where: str, ignored: Collection[str]) -> Iterator[str]:
    """The texts of a message's list of parts."""
    for number, part in enumerate(parts):
        at = f"{where}[{number}]"
        if not isinstance(part, dict):
            raise DataError(f"{at}: must be an object such as {_TEXT_PART}, got {shown(part)}")
        if part.get("type") != "text":
            raise DataError(
                f"{at}: only parts of text can be read, got type {shown(part.get('type'))}; write what it says as "
                f"{_TEXT_PART}, or remove the conversation"
            )
        _check_fields(part, ("type", "text"), ignored, at)
        yield _text(part, "text", at)


def _text(entry: Mapping[str, Any], key: str, where: str, *, optional: bool = False) -> str:
    """The text of a field; an optional one may be absent, null or blank."""
    value = entry.get(key)
    if optional and value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f'{where}: the field "{key}" must be a text, got {shown(value)}')
    if not optional and not value.strip():
        raise DataError(f'{where}: the field "{key}" is empty; write its text, or remove the conversation')
    return value


def _check_fields(entry: Mapping[str, Any], known: Collection[str], ignored: Collection[str], where: str) -> None:
    for key in entry:
        if key not in known and key not in ignored:
            name = shown(key)
            raise DataError(
                f"{where}: unknown field {name}; {suggestion(key, known)}; pass over it with --ignore {name}"
            )


def _check_order(messages: list[Message], place: str) -> None:
    turns = messages[1:] if messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        wanted = "assistant" if number % 2 else "user"
        if message.role != wanted:
            raise DataError(
                f"{place}: roles out of order: message {number + 1} is of the {message.role}, expected the {wanted}; "
                "they alternate user, assistant, ..., after at most one system message"
            )
    if len(turns) % 2 or not turns:
        raise DataError(f"{place}: no response: the last message is of the {messages[-1].role}; add one, or remove it")
