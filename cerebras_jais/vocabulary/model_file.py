"""SentencePiece's tokenizer.model: read, and written with more pieces.

Only what changes is described here; the rest of the file is kept as it is. The class of the package `sentencepiece`
describes all of it, but needs a later protobuf than Cerebras pins.
Format: sentencepiece/src/sentencepiece_model.proto.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebras_jais.encoding import encode_texts
from cerebras_jais.files import MIB, read_bytes, shown_path
from cerebras_jais.vocabulary.errors import VocabularyError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST = 64 * MIB
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_BPE = 2
_BATCH = 256  # texts


@dataclass(frozen=True)
class ScoredPiece:
    """A piece of tokenizer.model: of two neighbours, those are joined that give the highest score."""

    piece: str
    score: float
    type: int


@dataclass(frozen=True)
class ModelFile:
    """The pieces of a tokenizer.model by id, and its content."""

    path: Path
    pieces: tuple[ScoredPiece, ...]
    content: bytes


def read_model_file(path: Path) -> ModelFile:
    """Read a tokenizer.model of byte-pair encoding; VocabularyError for anything else."""
    from google.protobuf.message import DecodeError

    content = read_bytes(path, LARGEST, VocabularyError)
    model = _message()()
    try:
        model.ParseFromString(content)
    except DecodeError as damage:
        raise VocabularyError(
            f"{shown_path(path)}: is no model of SentencePiece, or damaged; copy it again"
        ) from damage
    if not model.pieces:
        raise VocabularyError(f"{shown_path(path)}: has no pieces; give the base's own tokenizer.model")
    if model.trainer_spec.model_type != _BPE:
        raise VocabularyError(
            f"{shown_path(path)}: is no model of byte-pair encoding (BPE), as tokenizer.json beside it is; give the "
            "tokenizer.model that belongs to it"
        )
    return ModelFile(path, tuple(ScoredPiece(p.piece, p.score, p.type) for p in model.pieces), content)


def extended_model(base: ModelFile, entries: Sequence[ScoredPiece]) -> bytes:
    """The content of a tokenizer.model with further pieces; the scores of the base are kept bit for bit."""
    model = _message()()
    model.ParseFromString(base.content)
    for entry in entries:
        model.pieces.add(piece=entry.piece, score=entry.score, type=entry.type)
    model.trainer_spec.vocab_size = len(model.pieces)
    content: bytes = model.SerializeToString()
    return content


def scores_between(low: float, high: float, count: int) -> list[float] | None:
    """`count` scores below `low` and above `high`, one apart from the next; None where float32 has no room for them."""
    scores = [float(np.float32(np.floor(low) - number)) for number in range(1, count + 1)]
    falling = all(before > after for before, after in pairwise([low, *scores, high]))
    return scores if falling else None


def count_equal(content: bytes, tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int] | None:
    """On how many of how many texts a tokenizer.model gives the ids of tokenizer.json; None without `sentencepiece`."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        return None
    processor, remaining = SentencePieceProcessor(model_proto=content), iter(texts)
    equal = count = 0
    while batch := list(islice(remaining, _BATCH)):
        pairs = zip(encode_texts(tokenizer, batch), processor.encode(batch), strict=True)
        equal, count = equal + sum(ours == theirs for ours, theirs in pairs), count + len(batch)
    return equal, count


@cache
def _message() -> Any:
    """The class of a model, of which fields that are not named here are kept unread."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="cerebras_jais/tokenizer_model.proto", package="cerebras_jais")

    def message(name: str, *fields: tuple[str, int, int, str | None], repeated: str = "") -> None:
        described = file.message_type.add(name=name)
        for field_name, number, kind, other in fields:
            label = field.LABEL_REPEATED if field_name == repeated else field.LABEL_OPTIONAL
            added = described.field.add(name=field_name, number=number, type=kind, label=label)
            if kind == field.TYPE_MESSAGE:
                added.type_name = f".cerebras_jais.{other}"
            elif other is not None:
                added.default_value = other

    message(
        "Piece",
        ("piece", 1, field.TYPE_STRING, None),
        ("score", 2, field.TYPE_FLOAT, None),
        ("type", 3, field.TYPE_INT32, str(NORMAL)),
    )
    message("Trainer", ("model_type", 3, field.TYPE_INT32, "1"), ("vocab_size", 4, field.TYPE_INT32, None))
    message(
        "Model",
        ("pieces", 1, field.TYPE_MESSAGE, "Piece"),
        ("trainer_spec", 2, field.TYPE_MESSAGE, "Trainer"),
        repeated="pieces",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    descriptor = pool.FindMessageTypeByName("cerebras_jais.Model")
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)
