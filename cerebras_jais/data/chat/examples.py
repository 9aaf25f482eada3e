"""Conversations as tokens, each with whether it is trained, and made to fit a context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cerebras_jais.data.chat.prompts import LANGUAGES, Message, Rendered, render
from cerebras_jais.data.chat.reading import Conversation
from cerebras_jais.data.documents import Document
from cerebras_jais.data.tokenizer import check_end_of_text, check_round_trip
from cerebras_jais.encoding import encodings

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


class TooLong(StrEnum):
    """What is done with an example that is longer than a row."""

    DROP = "drop"
    """It is left out."""
    CUT_TURNS = "cut-turns"
    """The user's oldest message and its response go, again and again; left out if the last ones are too long."""
    CUT_RESPONSE = "cut-response"
    """The last response ends where the row does, without end of text; left out if nothing of it would remain."""


class Example(NamedTuple):
    """Token ids, int32 [n], and which of them are trained, bool [n]."""

    ids: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class PromptEncoder:
    """Turns conversations into examples with one tokenizer.

    Attributes:
        heads: the text before the user's first message, for each language, with its ids; none where the tokenizer could
            join it with what follows.
    """

    tokenizer: Tokenizer
    eos_id: int
    heads: tuple[tuple[str, np.ndarray], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, eos_id: int) -> PromptEncoder:
        """The encoder of a tokenizer that reads text as data."""
        heads = [_head(language) for language in LANGUAGES] if _splits_before_spaces(tokenizer) else []
        ids = [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings(tokenizer, heads)]
        return cls(tokenizer, eos_id, tuple(zip(heads, ids, strict=True)))

    def encode(self, rendered: Sequence[Rendered]) -> Iterator[Example]:
        """Yield the examples of conversations: their tokens, and the end of text behind the last response.

        Trained are the tokens of each response and that end. After an earlier response the template goes on with the
        marker of the user's turn, which a model must not learn to write, so nothing behind it is trained. The first
        token of a response may hold the space before it; one that holds letters of a response and of what is around
        it is not trained.
        """
        begun = [self._head_of(text) for text, _ in rendered]
        rests = [text[len(head) :] for (head, _), (text, _) in zip(begun, rendered, strict=True)]
        for (head, ids), encoding, conversation in zip(begun, encodings(self.tokenizer, rests), rendered, strict=True):
            yield self._example(conversation, len(head), ids, encoding)

    def _head_of(self, text: str) -> tuple[str, np.ndarray]:
        return next((head for head in self.heads if text.startswith(head[0])), ("", _NO_IDS))

    def _example(self, rendered: Rendered, offset: int, head: np.ndarray, rest: Encoding) -> Example:
        found = rest.ids
        ids = np.empty(len(head) + len(found) + 1, dtype=np.int32)
        ids[: len(head)] = head
        ids[len(head) : -1] = found
        ids[-1] = self.eos_id
        trained = np.zeros(len(ids), dtype=bool)
        length = len(rendered.text) - offset
        for start, end in rendered.responses:
            first, last = (_token_at(rest, place - offset, length) for place in (start, end))
            begun = rest.token_to_chars(first) if first < len(found) else None
            if begun is not None and rendered.text[offset + begun[0] : start].strip():
                first += 1
            trained[len(head) + first : len(head) + last] = True
        trained[-1] = True
        return Example(ids, trained)


def check_example(tokenizer: Tokenizer, conversation: Conversation, text: str, ids: np.ndarray, eos_id: int) -> None:
    """Raise DataError if the tokens of a conversation, its end left out, hold the end of text or give other text."""
    document = Document(text, conversation.language, conversation.place)
    check_end_of_text(document, ids.tolist(), eos_id)
    check_round_trip(tokenizer, document, ids.tolist())


def without_oldest_turn(conversation: Conversation) -> Conversation | None:
    """A conversation without the user's first message and its response; None where no other is left."""
    kept = [message for message in conversation.messages if message.role == "system"]
    turns = conversation.messages[len(kept) + 2 :]
    return replace(conversation, messages=(*kept, *turns)) if turns else None


def cut_response(example: Example, max_sequence_length: int) -> Example | None:
    """An example cut to the tokens that a row takes; None where none of its last response would remain."""
    untrained = np.flatnonzero(~example.trained)
    kept = max_sequence_length + 1
    return None if kept <= untrained[-1] + 1 else Example(example.ids[:kept], example.trained[:kept])


_NO_IDS = np.empty(0, dtype=np.int32)


def _token_at(encoding: Encoding, place: int, length: int) -> int:
    """The number of the token that has the character at a place, or of the first one after it that has any."""
    for character in range(place, length):
        token = encoding.char_to_token(character)
        if token is not None:
            return int(token)
    return len(encoding.ids)


def _head(language: str) -> str:
    """The rendered text before the user's first message, without the space before it."""
    mark = "x"
    text, _ = render([Message("user", mark), Message("assistant", mark)], language)
    other, _ = render([Message("user", "y"), Message("assistant", mark)], language)
    at = next(place for place, (a, b) in enumerate(zip(text, other, strict=True)) if a != b)
    return text[:at].rstrip()


def _splits_before_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer always ends a token before a space, so that a text may be encoded in parts cut there.

    GPT-2's pattern does, as all byte-level tokenizers of the family have it, unless a normaliser or a token that is
    searched for in the text first takes what is on both sides.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    splitter = tokenizer.pre_tokenizer
    searched = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    return isinstance(splitter, ByteLevel) and splitter.use_regex and tokenizer.normalizer is None and not searched
