"""A conversation as the text that a chat model reads: the catalog's template around its messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from jinja2 import Environment, Template, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.data.clean.languages import is_arabic_script
from cerebras_jais.data.documents import DataError

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

LANGUAGES = ("ar", "en")  # those of the prompts
_MOST_KEPT = 100  # messages of a conversation whose prompt is kept for the next of the same roles


class Message(NamedTuple):
    """One turn; the role is "system", "user" or "assistant"."""

    role: str
    content: str


class Rendered(NamedTuple):
    """A conversation as text, without end of text: before each message a part of the prompt, nothing after the last."""

    frame: tuple[str, ...]
    contents: tuple[str, ...]
    responses: tuple[bool, ...]
    """Which of the messages are responses."""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(part for pair in zip(self.frame, self.contents, strict=True) for part in pair)


def prompt_language(messages: Sequence[Message]) -> str:
    """The language of the prompt: Arabic if at least half of the letters of the user's last message are, else English.

    So "Translate مرحبا" has an English prompt and "ترجم كلمة welcome" an Arabic one (8 letters of 15). A message
    without letters has an English prompt.
    """
    last = next(message.content for message in reversed(messages) if message.role == "user")
    return "ar" if is_arabic_script(last) else "en"


def harmless(text: str, normalizer: Normalizer | None = None) -> str:
    """A text in which no marker of a role or section stands: each gets a space after its first character.

    The markers are those of the template, also in other letter case or spacing. They are plain text to a tokenizer, so
    one that a user writes would begin a turn, and one in a response would teach a model to write it.

    Args:
        text: of a message.
        normalizer: of the tokenizer that will read the text. Where it makes a marker of what was none, such as
            full-width letters, its form of the text is taken, which is the same to the tokenizer.
    """
    text = _with_markers_apart(text)
    if normalizer is None:
        return text
    normal = normalizer.normalize_str(text).replace("▁", " ")  # SentencePiece writes ▁ for a space
    mended = _with_markers_apart(normal)
    return text if mended == normal else mended


def _with_markers_apart(text: str) -> str:
    pattern, beginnings = _markers()
    if not any(beginning in text for beginning in beginnings):
        return text
    return pattern.sub(lambda marker: f"{marker[0][0]} {marker[0][1:]}", text)


def render(messages: Sequence[Message], language: str, normalizer: Normalizer | None = None) -> Rendered:
    """Render a conversation, its texts made harmless, with the prompt of a language.

    The same text as transformers' `apply_chat_template` gives with language=..., without the end of text, which is no
    text here: the caller appends its id. Raises DataError where the template refuses the order of the messages.
    """
    roles = tuple(message.role for message in messages)
    frame, responses = (_frame if len(roles) > _MOST_KEPT else _kept_frame)(roles, language)
    return Rendered(frame, tuple(harmless(message.content, normalizer).strip() for message in messages), responses)


def _frame(roles: tuple[str, ...], language: str) -> tuple[tuple[str, ...], tuple[bool, ...]]:
    """What the template puts before each message of these roles, and which messages it calls responses.

    With the language given, the template writes each message trimmed and as it is, and nothing else depends on it. So
    it is run once for a sequence of roles, with a mark in the place of each message.
    """
    environment, template = _compiled()
    marks = {f"\ue000{number}\ue001": number for number in range(len(roles))}
    shown = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    environment.responses.clear()
    parts = re.split("(\ue000[0-9]+\ue001)", template.render(messages=shown, language=language, eos_token=""))
    assert parts[1::2] == [*marks], "the template writes every message, in order"
    assert not parts[-1], "nothing but the end of text follows the last response"
    responses = [False] * len(roles)
    for mark in environment.responses:
        responses[marks[mark]] = True  # a generation block is one message
    return tuple(parts[:-1:2]), tuple(responses)


_kept_frame = lru_cache(maxsize=1024)(_frame)


class _Recording(Environment):
    """An environment that notes the blocks {% generation %}, what a model is to write, while a template is rendered."""

    responses: list[str]


class _Generation(Extension):
    """The tag {% generation %} of transformers."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Macro) -> str:
        text = str(caller())
        assert isinstance(self.environment, _Recording)
        self.environment.responses.append(text)
        return text


@cache
def _compiled() -> tuple[_Recording, Template]:
    def refuse(message: str) -> NoReturn:
        raise DataError(message)

    # With the settings of transformers' own environment.
    environment = _Recording(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation])
    environment.responses = []
    environment.globals["raise_exception"] = refuse
    return environment, environment.from_string(chat_template())


@cache
def _markers() -> tuple[re.Pattern[str], tuple[str, ...]]:
    """The pattern of the template's markers, and what one of them must begin with."""
    found = sorted(set(re.findall(r"\[\|\w+\|\]|###\s*\w+\s*:", chat_template())))
    assert found, "the template has no markers"
    parts = [re.findall(r"\w+|[^\w\s]+", marker) for marker in found]
    spaced = (r"[\s▁]*".join(map(re.escape, marker)) for marker in parts)  # ▁ is a space to SentencePiece
    return re.compile("|".join(spaced), re.IGNORECASE), tuple({marker[0] for marker in parts})
