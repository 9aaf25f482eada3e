"""Tokenizers whose vocabulary can be read or extended: byte-pair encoding over bytes, or characters (SentencePiece).

A token is a `piece`, a string of the tokenizer's own symbols. SentencePiece writes ▁ for a space; a byte-level
tokenizer writes one character for each byte, Ġ for a space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebras_jais.data.tokenizer import LARGEST, load_tokenizer, vocabulary_size
from cerebras_jais.encoding import encode_texts, reading_text_as_data
from cerebras_jais.files import parse_json, read_text, shown_path
from cerebras_jais.vocabulary.errors import VocabularyError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE = "▁"
Pair = tuple[str, str]
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _characters_of_bytes() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table, published)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


CHARACTERS_OF_BYTES = _characters_of_bytes()
_BYTES = {character: byte for byte, character in enumerate(CHARACTERS_OF_BYTES)}


class Symbols(StrEnum):
    """What the pieces of a tokenizer are made of."""

    BYTES = "byte-level"
    CHARACTERS = "SentencePiece"


@dataclass(frozen=True)
class BpeTokenizer:
    """A tokenizer of byte-pair encoding."""

    folder: Path
    tokenizer: Tokenizer
    state: dict[str, Any]
    """What tokenizer.json holds."""
    symbols: Symbols

    @property
    def vocabulary(self) -> dict[str, int]:
        """The id of each piece, added tokens left out."""
        pieces: dict[str, int] = self.state["model"]["vocab"]
        return pieces

    @property
    def entries(self) -> int:
        """The largest id + 1, added tokens included."""
        return vocabulary_size(self.tokenizer)

    @cached_property
    def merges(self) -> list[Pair]:
        """The merges, first ones first; tokenizer.json has each as a list of two or as a text with a space."""
        pairs = (tuple(merge.split(" ", 1)) if isinstance(merge, str) else merge for merge in self._merges)
        return [(left, right) for left, right in pairs]

    @property
    def _merges(self) -> list[Any]:
        merges: list[Any] = self.state["model"]["merges"]
        return merges

    @cached_property
    def ranks(self) -> dict[Pair, int]:
        """The place of each merge; of one that stands twice the last, which `tokenizers` takes."""
        return {pair: rank for rank, pair in enumerate(self.merges)}

    def piece_of(self, text: str) -> str:
        """The piece that stands for a text."""
        if self.symbols is Symbols.CHARACTERS:
            return text.replace(" ", SPACE)
        return "".join(CHARACTERS_OF_BYTES[byte] for byte in text.encode("utf-8"))

    def bytes_of(self, piece: str) -> bytes | None:
        """The UTF-8 bytes that a piece stands for; None where it is not spelled in the vocabulary's symbols."""
        if self.symbols is Symbols.BYTES:
            return bytes(_BYTES[char] for char in piece) if all(char in _BYTES for char in piece) else None
        if is_byte_piece(piece):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE, " ").encode("utf-8")

    def text_of(self, piece: str) -> str | None:
        """The text that a piece stands for; None if it is cut inside a character."""
        spelled = self.bytes_of(piece)
        try:
            return None if spelled is None else spelled.decode("utf-8")
        except UnicodeDecodeError:
            return None

    @cached_property
    def _bare(self) -> Tokenizer:
        from tokenizers import Tokenizer

        bare = reading_text_as_data(Tokenizer.from_str(self.tokenizer.to_str()))
        if self.symbols is Symbols.CHARACTERS:
            bare.normalizer = None
            bare.pre_tokenizer = None
        return bare

    def segment(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that stand inside a longer text: no space is put before them, but one of theirs is kept."""
        if self.symbols is Symbols.CHARACTERS:
            texts = [text.replace(" ", SPACE) for text in texts]
        return encode_texts(self._bare, texts)

    def keeps_whole(self, text: str) -> bool:
        """Whether normaliser and pre-tokeniser leave a text in one part, so that one token can stand for it."""
        if self.tokenizer.normalizer is not None:
            text = self.tokenizer.normalizer.normalize_str(text)
        if self.tokenizer.pre_tokenizer is None:
            parts = [text]
        else:
            parts = [part for part, _ in self.tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        return len(parts) == 1

    def changes(self, text: str) -> bool:
        """Whether the normaliser writes other characters for a text, spaces apart."""
        if self.tokenizer.normalizer is None:
            return False
        normal: str = self.tokenizer.normalizer.normalize_str(text)
        return normal.replace(SPACE, "").replace(" ", "") != text.replace(" ", "")


def is_byte_piece(piece: str) -> bool:
    """Whether a piece is one of SentencePiece's for single bytes, such as <0x0A>."""
    return _BYTE_PIECE.fullmatch(piece) is not None


def merged(parts: Iterable[str], ranks: Mapping[Pair, int], without: str | None = None) -> list[str]:
    """Join neighbours, the pair of the lowest rank first, until no pair has one; `without` is a piece not to make."""
    parts = list(parts)
    while True:
        best, at = math.inf, -1
        for place, pair in enumerate(pairwise(parts)):
            rank = ranks.get(pair, math.inf)
            if rank < best and (without is None or pair[0] + pair[1] != without):
                best, at = rank, place
        if at < 0:
            return parts
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def read_bpe(folder: str | Path, *, to_extend: bool = False) -> BpeTokenizer:
    """Read a folder with tokenizer.json.

    Args:
        folder: it; the file itself will do.
        to_extend: whether merges are to be added: then every text must be spelled, by bytes where it must.

    Raises VocabularyError for other kinds of tokenizers (Unigram, WordPiece, ...), and DataError for what cannot be
    read.
    """
    folder = Path(folder)
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    if not file.exists() and (folder / "tokenizer.model").exists():
        raise VocabularyError(
            f"{shown_path(file)}: no such file, and tokenizer.model alone is not enough; make it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    tokenizer = load_tokenizer(folder)
    state = parse_json(read_text(file, LARGEST, VocabularyError), shown_path(file), VocabularyError)
    model = state["model"]
    kind = type(tokenizer.model).__name__
    if kind != "BPE":
        hint = ": it chooses tokens by their probabilities, and has no merges to add to" if kind == "Unigram" else ""
        raise VocabularyError(f"{shown_path(file)}: is a {kind} tokenizer{hint}; only byte-pair encoding (BPE) will do")
    affix = next((key for key in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(key)), None)
    if affix is not None:
        raise VocabularyError(f"{shown_path(file)}: marks the parts of words ({affix}); give a tokenizer that does not")
    steps = _types(state.get("pre_tokenizer")) | _types(state.get("decoder"))
    if "ByteLevel" in steps:
        symbols = Symbols.BYTES
    elif model.get("byte_fallback") or "Metaspace" in steps or SPACE in model["vocab"]:
        symbols = Symbols.CHARACTERS
        if to_extend and not model.get("byte_fallback"):
            raise VocabularyError(
                f"{shown_path(file)}: has no byte fallback, so some texts cannot be spelled; give a base that has it, "
                "such as Llama-2, or a byte-level one"
            )
    else:
        raise VocabularyError(
            f"{shown_path(file)}: is neither byte-level nor in the way of SentencePiece; give a tokenizer that is"
        )
    return BpeTokenizer(file.parent, tokenizer, state, symbols)


def _types(step: Any) -> set[str]:
    """The types of a step of tokenizer.json and of those inside it."""
    if not isinstance(step, dict):
        return set()
    inner = [part for value in step.values() if isinstance(value, list) for part in value]
    return {str(step.get("type"))}.union(*map(_types, inner))
