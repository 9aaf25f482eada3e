"""The pieces in a tokenizer.model, read without the package sentencepiece.

Format: protobuf's wire format; of the message ModelProto (sentencepiece_model.proto) the fields below are read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cerebras_jais.files import MIB, read_bytes
from checkpoint_convert.errors import ConversionError

_LARGEST = 64 * MIB
_BPE = 2
# Numbers of fields: of ModelProto, of a piece, of TrainerSpec, of NormalizerSpec.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_PIECE, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE = 3
_CHARACTERS, _PREFIX = 2, 3
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


@dataclass(frozen=True)
class Piece:
    """A token: of two neighbours, those are joined that give the highest score."""

    text: str
    score: float
    kind: int
    """1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte: the numbers of GGUF too."""


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer.model says."""

    pieces: tuple[Piece, ...]
    adds_space: bool
    """Whether a space is put before a text."""


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a tokenizer.model of byte-pair encoding.

    Raises:
        ConversionError: the file is damaged, of another algorithm, or normalises text, which llama.cpp does not.
    """
    content = read_bytes(path, _LARGEST, ConversionError)
    pieces: list[Piece] = []
    algorithm, adds_space, normalises = 1, True, False
    try:
        for field, value in _fields(content):
            if field == _PIECES and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif field == _TRAINER and isinstance(value, bytes):
                algorithm = int(dict(_fields(value)).get(_MODEL_TYPE, algorithm))
            elif field == _NORMALIZER and isinstance(value, bytes):
                found = dict(_fields(value))
                normalises, adds_space = bool(found.get(_CHARACTERS)), bool(found.get(_PREFIX, True))
    except (ValueError, IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise ConversionError(f"{path}: is not a model of SentencePiece, or damaged; copy it again") from error
    if not pieces:
        raise ConversionError(f"{path}: has no pieces; copy it again")
    if algorithm != _BPE:
        raise ConversionError(f"{path}: is not a model of byte-pair encoding; llama.cpp cuts text by BPE only")
    if normalises:
        raise ConversionError(
            f"{path}: normalises text, which llama.cpp does not; its ids for a text would be other ones"
        )
    return SentencePieceModel(tuple(pieces), adds_space)


def _piece(content: bytes) -> Piece:
    found = dict(_fields(content))
    text = found.get(_PIECE, b"")
    if not isinstance(text, bytes):
        raise TypeError("a text that is none")
    return Piece(text.decode("utf-8"), float(found.get(_SCORE, 0.0)), int(found.get(_TYPE, 1)))


def _fields(content: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field of a message; ValueError or IndexError where it is none."""
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(content, at)
            yield field, value
        elif wire == _FOUR:
            yield field, struct.unpack_from("<f", content, at)[0]
            at += 4
        elif wire == _EIGHT:
            yield field, struct.unpack_from("<d", content, at)[0]
            at += 8
        elif wire == _BYTES:
            length, at = _varint(content, at)
            if length > len(content) - at:
                raise ValueError("a field ends behind its message")
            yield field, content[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {wire}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")
