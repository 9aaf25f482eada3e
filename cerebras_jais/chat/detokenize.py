"""Token ids to text piece by piece: bytes of each token, an incremental UTF-8 decoder, stop strings."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cerebras_jais.errors import UserError
from cerebras_jais.vocabulary.bpe import CHARACTERS_OF_BYTES, is_byte_piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TokenBytes:
    """What each token of a vocabulary stands for.

    Attributes:
        of: id -> bytes; other ids stand for nothing.
        single: ids of SentencePiece's tokens for single bytes. A run of them is text as a whole or not at all.
        drops_space: whether the first space of a text is not part of it.
    """

    of: Mapping[int, bytes]
    single: Collection[int]
    drops_space: bool


def token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    """The table of a tokenizer, as it decodes without special tokens. Raises UserError for an unknown kind."""
    state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    steps = state.get("decoders", [state])
    kinds = [step.get("type") for step in steps]
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = {number: piece for piece, number in tokenizer.get_vocab().items() if number not in special}
    if kinds == ["ByteLevel"]:
        return TokenBytes({number: _byte_level(piece) for number, piece in vocabulary.items()}, (), False)
    if set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"} and {"Replace", "Metaspace"} & set(
        kinds
    ):
        singles = {n for n, piece in vocabulary.items() if is_byte_piece(piece)} if "ByteFallback" in kinds else set()
        of = {
            number: bytes([int(piece[3:5], 16)]) if number in singles else piece.replace("▁", " ").encode()
            for number, piece in vocabulary.items()
        }
        return TokenBytes(of, frozenset(singles), any(map(_drops_space, steps)))
    raise UserError(
        f"tokenizer.json: its decoder {', '.join(map(str, kinds))} is not known; give a byte-level BPE as Jais has, or "
        "a BPE with byte fallback as Llama has"
    )


def _byte_level(piece: str) -> bytes:
    if all(character in _BYTE_OF_CHARACTER for character in piece):
        return bytes(_BYTE_OF_CHARACTER[character] for character in piece)
    return piece.encode()


def _drops_space(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Strip":
        return bool(step.get("start"))
    return step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never"


class Detokenizer:
    """Text of one answer from its tokens, without characters cut in two.

    What is given out joins to what the tokenizer decodes. A run of SentencePiece's tokens for single bytes is held to
    its end, because the tokenizer decodes it as a whole, or each byte to U+FFFD.

    Args:
        table: of the tokenizer.
        at_start: whether the tokens begin a text, whose first space may go; else they follow a prompt.
    """

    def __init__(self, table: TokenBytes, *, at_start: bool = False) -> None:
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._run = b""
        self._drop = table.drops_space and at_start

    def add(self, token: int) -> str:
        """The text that a further token completes."""
        found = self._table.of.get(token, b"")
        if token in self._table.single:
            self._run += found
            return ""
        # A token without text, such as a special one, does not end a run: the tokenizer leaves it out first.
        if self._run and token in self._table.of:
            return self._out(self._end_of_run() + self._decoder.decode(found))
        return self._out(self._decoder.decode(found))

    def end(self) -> str:
        """The rest of the text."""
        return self._out(self._end_of_run() + self._decoder.decode(b"", final=True))

    def _end_of_run(self) -> str:
        run, self._run = self._run, b""
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _out(self, text: str) -> str:
        if self._drop and text:
            self._drop = False
            return text.removeprefix(" ")
        return text


class StopStrings:
    """Cuts a text, given in parts, before the first stop string; what may begin one is held back.

    Attributes:
        stopped: whether one was met; nothing comes after it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._pattern = re.compile("|".join(map(re.escape, sorted(stops, key=len)))) if stops else None
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """What of the text so far is certain to be before a stop string, and was not given out yet."""
        if self._pattern is None:
            return text
        text = self._held + text
        found = self._pattern.search(text)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[: found.start()]
        longest = max((self._beginning(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]

    def end(self) -> str:
        """What is held back, where no stop string came of it."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """The length of the longest end of a text that begins a stop string."""
        return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


_BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(CHARACTERS_OF_BYTES)}
