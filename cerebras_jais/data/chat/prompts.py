"""A conversation as the text that a chat model reads: the catalog's template, rendered with the places of responses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, NoReturn

from jinja2 import Environment, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.data.documents import DataError, detect_language

LANGUAGES = ("ar", "en")  # those of the prompts


class Message(NamedTuple):
    """One turn; the role is "system", "user" or "assistant"."""

    role: str
    content: str


class Rendered(NamedTuple):
    """A conversation as text, without end of text, and where its responses are: characters from start to before end."""

    text: str
    responses: tuple[tuple[int, int], ...]


def prompt_language(messages: Sequence[Message]) -> str:
    """The language of the prompt: Arabic if at least half of the letters of the user's last message are, else English.

    So "Translate مرحبا" has an English prompt and "ترجم كلمة welcome" an Arabic one (8 letters of 15). A message
    without letters has an English prompt.
    """
    return detect_language(next(message.content for message in reversed(messages) if message.role == "user"))


def harmless(text: str) -> str:
    """A text in which no marker of a role or section stands: each gets a space after its first character.

    The markers are those of the template, also in other letter case or spacing. They are plain text to a tokenizer, so
    one that a user writes would begin a turn, and one in a response would teach a model to write it.
    """
    return _markers().sub(lambda marker: f"{marker[0][0]} {marker[0][1:]}", text)


def render(messages: Sequence[Message], language: str) -> Rendered:
    """Render a conversation, its texts made harmless, with the prompt of a language.

    The same text as transformers' `apply_chat_template` gives with language=..., without the end of text, which is no
    text here: the caller appends its id. Raises DataError where the template refuses the messages.
    """
    environment, template = _compiled()
    shown = [{"role": message.role, "content": harmless(message.content)} for message in messages]
    environment.begin()
    for chunk in template.generate(messages=shown, language=language, eos_token=""):
        environment.written.append(chunk)
        environment.length += len(chunk)
    return Rendered("".join(environment.written), tuple(environment.responses))


class _Recording(Environment):
    """An environment that counts what a template has written so far, and notes where its responses stand."""

    length: int
    written: list[str]
    responses: list[tuple[int, int]]

    def begin(self) -> None:
        self.length, self.written, self.responses = 0, [], []


class _Generation(Extension):
    """The blocks {% generation %} of a template: the text that a model is to write."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Macro) -> str:
        text = str(caller())
        environment = self.environment
        assert isinstance(environment, _Recording)
        # All that stands before the block has been written: the template yields each part as it comes to it.
        environment.responses.append((environment.length, environment.length + len(text)))
        return text


@cache
def _compiled() -> tuple[_Recording, Any]:
    def refuse(message: str) -> NoReturn:
        raise DataError(message)

    # With the settings of transformers' own environment.
    environment = _Recording(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation])
    environment.globals["raise_exception"] = refuse
    return environment, environment.from_string(chat_template())


@cache
def _markers() -> re.Pattern[str]:
    found = sorted(set(re.findall(r"\[\|\w+\|\]|###\s*\w+\s*:", chat_template())))
    assert found, "the template has no markers"
    spaced = (r"\s*".join(map(re.escape, re.findall(r"\w+|[^\w\s]+", marker))) for marker in found)
    return re.compile("|".join(spaced), re.IGNORECASE)
