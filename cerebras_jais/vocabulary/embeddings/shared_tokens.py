"""The tokens of two tokenizers compared by their text, byte-level BPE against SentencePiece-style BPE.

A piece is what tokenizer.json has: `Ġthe` in a byte-level vocabulary, `▁the` in a SentencePiece one. Its text is the
UTF-8 bytes that it stands for, here b" the" for both.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from cerebras_jais.vocabulary.bpe import SPACE, Symbols, read_bpe
from cerebras_jais.vocabulary.errors import VocabularyError

LONGEST = 512  # bytes of a token's text; a longer one has no counterpart, and its segmentation would take the square
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def _characters_of_bytes() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table, published)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_CHARACTERS = _characters_of_bytes()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


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
    merges: Mapping[tuple[str, str], int]
    """Pair of pieces -> rank."""
    byte_level: bool

    @property
    def size(self) -> int:
        """The largest id + 1."""
        return max(self.pieces.values()) + 1

    def segment(self, text: bytes, without: int | None = None) -> tuple[int, ...]:
        """The ids of a text as one word, merged by rank, without the normaliser and the split into words.

        Args:
            text: at most some hundred bytes.
            without: the id of a token that may not be made. Smaller ones spell its text; bytes do where it is a
                letter, and nothing where it is a byte.
        """
        symbols = [letter for letter in self._letters(text, without) if self.pieces.get(letter, without) != without]
        while True:
            pairs = [
                (rank, place)
                for place, pair in enumerate(pairwise(symbols))
                if (rank := self.merges.get(pair)) is not None and self.pieces[pair[0] + pair[1]] != without
            ]
            if not pairs:
                return tuple(self.pieces[symbol] for symbol in symbols)
            _, place = min(pairs)
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]

    def _letters(self, text: bytes, without: int | None) -> list[str]:
        """The smallest pieces of a text: characters, or tokens of bytes where the vocabulary lacks one."""
        if self.byte_level:
            return [_CHARACTERS[byte] for byte in text]
        letters: list[str] = []
        for character in text.decode("utf-8", errors="surrogateescape").replace(" ", SPACE):
            known = self.pieces.get(character, without) != without
            spelled = character.encode("utf-8", errors="surrogateescape")
            letters += [character] if known else [f"<0x{byte:02X}>" for byte in spelled]
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
        text = piece.encode() if piece in added else _text_of(piece, byte_level)
        if piece in special or text is None or len(text) > LONGEST:
            continue
        texts[number] = text
        if text not in ids or not _BYTE_PIECE.fullmatch(piece):
            ids[text] = number
    merges = {pair: rank for rank, pair in enumerate(read.merges)}
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    return Vocabulary(file, pieces, texts, ids, merges, byte_level)


def _text_of(piece: str, byte_level: bool) -> bytes | None:
    """The bytes that a piece stands for; None where it is not spelled in the vocabulary's alphabet."""
    if byte_level:
        return bytes(_BYTES[c] for c in piece) if all(c in _BYTES for c in piece) else None
    found = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(found[1], 16)]) if found else piece.replace(SPACE, " ").encode()


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
