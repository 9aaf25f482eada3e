"""Conversations as tokens, each with whether it is trained, and made to fit a context."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cerebras_jais.data.chat.prompts import Rendered, render
from cerebras_jais.data.chat.reading import Conversation
from cerebras_jais.data.documents import Document
from cerebras_jais.data.tokenizer import check_end_of_text, check_round_trip
from cerebras_jais.encoding import Encoder, encodings

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


_LONGEST_KEPT = 10_000  # characters of a part of a prompt, a system message in it, whose tokens are kept


class Example(NamedTuple):
    """Token ids, uint32 [n], and which of them are trained, bool [n]."""

    ids: np.ndarray
    trained: np.ndarray


class PromptEncoder:
    """Turns conversations into examples with one tokenizer, which reads text as data.

    Trained are the tokens of each response and the end of text behind the last one. After an earlier response the
    template goes on with the marker of the user's turn, which a model must not learn to write, so nothing behind it is
    trained. A response begins with the space before it, which a model has to write, too. A token that holds letters of
    a response and of what is around it is not trained.

    A tokenizer that always ends a token before white space (`by_messages`) is given the messages alone, and each part
    of the prompt once; others are given the whole text, which is the same and takes twice as long.
    """

    def __init__(self, encoder: Encoder, eos_id: int) -> None:
        self.tokenizer = encoder.tokenizer
        self.eos_id = eos_id
        self._encoder = encoder
        self._end = np.asarray([eos_id], dtype=np.uint32)
        self.by_messages = _splits_before_spaces(encoder.tokenizer)
        self._kept = lru_cache(maxsize=1024)(self._ids_of)

    def render(self, conversation: Conversation) -> Rendered:
        """Render a conversation so that no text of it becomes a marker as this tokenizer reads it."""
        return render(conversation.messages, conversation.language, self.tokenizer.normalizer)

    def encode(self, rendered: Sequence[Rendered], places: Sequence[str] = ()) -> Iterator[Example]:
        """Yield the example of each conversation; errors name it by its place, if places are given."""
        if not self.by_messages:
            whole = encodings(self.tokenizer, [conversation.text for conversation in rendered])
            for conversation, encoding in zip(rendered, whole, strict=True):
                yield self._whole_example(conversation, encoding)
            return
        cut = [_cut_at_messages(conversation) for conversation in rendered]
        texts = [f" {message}" for parts in cut for _, message, _ in parts]

        def place(text: int) -> str:
            owners = [number for number, parts in enumerate(cut) for _ in parts]
            return places[owners[text]] if places else f"conversation {owners[text]}"

        messages = iter(self._encoder.encode(texts, place).split())
        for parts in cut:
            yield self._joined_example(parts, messages)

    def _prompt(self, text: str) -> np.ndarray:
        return (self._ids_of if len(text) > _LONGEST_KEPT else self._kept)(text)

    def _ids_of(self, prompt: str) -> np.ndarray:
        return self._encoder.encode([prompt], "a part of the prompt".format).ids

    def _joined_example(self, conversation: list[tuple[str, str, bool]], messages: Iterator[np.ndarray]) -> Example:
        parts: list[np.ndarray] = []
        places: list[tuple[int, int]] = []
        end = 0
        for before, _, response in conversation:
            parts += [self._prompt(before), next(messages)]
            start, end = end + len(parts[-2]), end + len(parts[-2]) + len(parts[-1])
            places += [(start, end)] * response
        ids = np.concatenate([*parts, self._end])
        trained = np.zeros(len(ids), dtype=bool)
        for start, end in places:
            trained[start:end] = True
        trained[-1] = True
        return Example(ids, trained)

    def _whole_example(self, conversation: Rendered, encoding: Encoding) -> Example:
        ids = np.asarray([*encoding.ids, self.eos_id], dtype=np.uint32)
        trained = np.zeros(len(ids), dtype=bool)
        begins, ends = zip(*encoding.offsets, strict=True)
        end = 0
        for before, message, response in zip(*conversation, strict=True):
            start, end = end + len(before), end + len(before) + len(message)
            if response:
                # Of the character at a place, or the first one after it, the token is the first that ends behind it.
                first = bisect_right(ends, start - 1)
                first += first < len(begins) and begins[first] < start - 1
                trained[first : bisect_right(ends, end)] = True
        trained[-1] = True
        return Example(ids, trained)


def check_example(tokenizer: Tokenizer, conversation: Conversation, text: str, ids: np.ndarray, eos_id: int) -> None:
    """Raise DataError if the tokens of a conversation, its end left out, hold the end of text or give other text."""
    document = Document(text, conversation.language, conversation.place)
    check_end_of_text(document, ids.tolist(), eos_id)
    check_round_trip(tokenizer, document, ids.tolist())


def without_oldest_turns(
    conversation: Conversation, encoder: PromptEncoder, max_sequence_length: int
) -> tuple[Conversation, Rendered, Example] | None:
    """A conversation without as many of its oldest turns as must go to fit a row; None where the last one does not.

    A turn is a message of the user and its response. Fewer turns have fewer tokens, so the number is found by halving:
    of n turns about log2(n) examples are encoded.
    """
    system = sum(message.role == "system" for message in conversation.messages)
    head, turns = conversation.messages[:system], conversation.messages[system:]
    fitting = None
    low, high = 1, len(turns) // 2 - 1
    while low <= high:
        gone = (low + high) // 2 if fitting else high
        shorter = replace(conversation, messages=(*head, *turns[2 * gone :]))
        rendered = encoder.render(shorter)
        (example,) = encoder.encode([rendered])
        if len(example.ids) - 1 <= max_sequence_length:
            fitting, high = (shorter, rendered, example), gone - 1
        elif fitting is None:
            return None
        else:
            low = gone + 1
    return fitting


def cut_response(example: Example, max_sequence_length: int) -> Example | None:
    """An example cut to the tokens that a row takes; None where none of its last response would remain."""
    untrained = np.flatnonzero(~example.trained)
    kept = max_sequence_length + 1
    return None if kept <= untrained[-1] + 1 else Example(example.ids[:kept], example.trained[:kept])


def _cut_at_messages(conversation: Rendered) -> list[tuple[str, str, bool]]:
    """The messages with the part of the prompt before each, which ends before a space, and whether they are responses.

    Before a system message there is no space, so that message counts as a part of the prompt.
    """
    cut = []
    before = ""
    for part, message, response in zip(*conversation, strict=True):
        if part.endswith(" "):
            cut.append((before + part[:-1], message, response))
            before = ""
        else:
            before += part + message
    assert not before
    return cut


def _splits_before_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer always ends a token before white space, so that a text may be encoded in parts cut there.

    GPT-2's pattern does, as all byte-level tokenizers of the family have it, unless a normaliser or a token that is
    searched for in the text first takes what is on both sides, or a space is put before each part.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    splitter = tokenizer.pre_tokenizer
    searched = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    if not isinstance(splitter, ByteLevel) or splitter.add_prefix_space or not splitter.use_regex:
        return False
    return tokenizer.normalizer is None and not searched
