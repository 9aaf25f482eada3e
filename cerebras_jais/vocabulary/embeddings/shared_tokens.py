"""The tokens of two tokenizers compared by their text, byte-level BPE against SentencePiece-style BPE.

A piece is what tokenizer.json has: `Ġthe` in a byte-level vocabulary, `▁the` in a SentencePiece one. Its text is the
UTF-8 bytes that it stands for, here b" the" for both.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cerebras_jais.vocabulary.bpe import (
    CHARACTERS_OF_BYTES,
    SPACE,
    Pair,
    Symbols,
    is_byte_piece,
    merged,
    read_bpe,
)
from cerebras_jais.vocabulary.errors import VocabularyError

LONGEST = 512  # bytes of a token's text; a longer one has no counterpart, and its segmentation would take the square


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one BPE tokenizer."""

    file: Path
    pieces: Mapping[str, int]
    """Piece -> id, special tokens included."""
    texts: Mapping[int, bytes]
    """Id -> text; special tokens and those of more than LONGEST bytes have none."""
    ids: Mapping[bytes, int]
    """Text -> id. Of a piece and a byte-fallback token with one text, this is the piece."""
    ranks: Mapping[Pair, int]
    """Pair of pieces -> rank."""
    byte_level: bool

    @property
    def size(self) -> int:
        """The largest id + 1."""
        return max(self.pieces.values()) + 1

    @cached_property
    def _names(self) -> dict[int, str]:
        return {number: piece for piece, number in self.pieces.items()}

    def segment(self, text: bytes, without: int | None = None) -> tuple[int, ...]:
        """The ids of a text as one word, merged by rank, without the normaliser and the split into words.

        Args:
            text: at most some hundred bytes.
            without: the id of a token that may not be made. Smaller ones spell its text; bytes do where it is a
                letter, and nothing where it is a byte.
        """
        banned = None if without is None else self._names[without]
        parts = merged(self._letters(text, banned), self.ranks, banned)
        return tuple(self.pieces[part] for part in parts)

    def _letters(self, text: bytes, banned: str | None) -> list[str]:
        """The smallest pieces of a text: characters, or tokens of bytes where the vocabulary lacks one."""

        def known(pieces: Iterable[str]) -> list[str]:
            return [piece for piece in pieces if piece in self.pieces and piece != banned]

        if self.byte_level:
            return known(CHARACTERS_OF_BYTES[byte] for byte in text)
        letters: list[str] = []
        for character in text.decode("utf-8", errors="surrogateescape").replace(" ", SPACE):
            spelled = character.encode("utf-8", errors="surrogateescape")
            letters += known([character]) or known(f"<0x{byte:02X}>" for byte in spelled)
        return letters


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a folder's tokenizer.json, or of the file itself.

    Raises:
        UserError: it cannot be read, or is no BPE that is byte-level or in the way of SentencePiece.
    """
    read = read_bpe(folder)
    byte_level = read.symbols is Symbols.BYTES
    added = {token["content"]: token["special"] for token in read.state.get("added_tokens") or []}
    special = {piece for piece, is_special in added.items() if is_special} | {read.state["model"].get("unk_token")}
    pieces: dict[str, int] = dict(read.tokenizer.get_vocab())
    texts: dict[int, bytes] = {}
    ids: dict[bytes, int] = {}
    for piece, number in pieces.items():
        text = piece.encode() if piece in added else read.bytes_of(piece)
        if piece in special or text is None or len(text) > LONGEST:
            continue
        texts[number] = text
        if text not in ids or not is_byte_piece(piece):
            ids[text] = number
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    return Vocabulary(file, pieces, texts, ids, read.ranks, byte_level)


def shared_tokens(base: Vocabulary, donor: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the tokens with one text in both, int64 [tokens] each, in the order of the base's.

    Half a letter of a byte-level vocabulary is not among them, nor is a control character: no text trains it.
    """
    pairs = sorted((own, donor.ids[text]) for text, own in base.ids.items() if text in donor.ids and _is_text(text))
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _is_text(spelled: bytes) -> bool:
    """Whether bytes are whole UTF-8 without control characters, apart from white space."""
    try:
        text = spelled.decode()
    except UnicodeDecodeError:
        return False
    return all(unicodedata.category(letter) != "Cc" or letter.isspace() for letter in text)


def new_tokens(base: Vocabulary, extended: Vocabulary) -> list[int]:
    """The ids that an extended tokenizer has beyond its base.

    Raises:
        VocabularyError: a token of the base has another id in it, or it has no new one.
    """
    for piece, number in base.pieces.items():
        if extended.pieces.get(piece) != number:
            raise VocabularyError(
                f"{extended.file}: the token {piece!r} has the id {extended.pieces.get(piece)}, but {number} in "
                f"{base.file}; give a tokenizer that keeps the ids of the base"
            )
    new = sorted(set(extended.pieces.values()) - set(base.pieces.values()))
    if not new:
        raise VocabularyError(f"{extended.file}: has no token beyond those of {base.file}; give the extended tokenizer")
    if new[0] < base.size:
        raise VocabularyError(
            f"{extended.file}: its new token {new[0]} has an id below those of {base.file}; give new tokens ids from "
            f"{base.size} on"
        )
    return new


def sources_of(ids: list[int], extended: Vocabulary, other: Vocabulary) -> dict[int, tuple[int, ...]]:
    """For each new id, the tokens of another vocabulary that spell it: the one with its text, else its segmentation.

    Special tokens have none.
    """
    found: dict[int, tuple[int, ...]] = {}
    for number in ids:
        text = extended.texts.get(number)
        if text is None:
            found[number] = ()
        else:
            found[number] = (other.ids[text],) if text in other.ids else other.segment(text)
    return found
