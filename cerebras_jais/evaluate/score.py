"""Loss and bits per byte of a model on documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from cerebras_jais.data.documents import Document, language_of
from cerebras_jais.model.decoder import LanguageModel


@dataclass(frozen=True)
class Score:
    """How well a model predicts the documents of one language.

    Attributes:
        language: "ar", "en", or what the documents say of themselves.
        documents: how many.
        tokens: predicted tokens, the end of each document included.
        n_bytes: UTF-8 bytes of the text.
        nats: sum of -ln p over the tokens.
    """

    language: str
    documents: int
    tokens: int
    n_bytes: int
    nats: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per UTF-8 byte of text: comparable across tokenizers, which the loss per token is not."""
        return self.nats / math.log(2) / self.n_bytes


@torch.inference_mode()
def score_documents(
    model: LanguageModel,
    documents: Iterable[Document],
    encode: Callable[[Document], list[int]],
    eos_token_id: int,
    *,
    max_sequence_length: int | None = None,
) -> list[Score]:
    """Score each language of the documents, in order of first appearance.

    Every document is read alone, after an end-of-document token, and predicts all its tokens and its own end. Longer
    ones are cut into pieces of `max_sequence_length` (default: the model's), each piece starting from the last token
    of the one before.

    Args:
        encode: a document to its token ids, without special tokens.
    """
    length = max_sequence_length or model.config.max_position_embeddings
    totals: dict[str, list[float]] = {}
    model.eval()
    for document in documents:
        ids = [eos_token_id, *encode(document), eos_token_id]
        total = totals.setdefault(language_of(document), [0, 0, 0, 0.0])
        total[0] += 1
        total[1] += len(ids) - 1
        total[2] += len(document.text.encode("utf-8"))
        total[3] += sum(_nats(model, piece) for piece in _pieces(ids, length))
    return [Score(lang, int(d), int(t), int(b), n) for lang, (d, t, b, n) in totals.items()]


def _pieces(ids: list[int], length: int) -> Iterator[list[int]]:
    for start in range(0, len(ids) - 1, length):
        yield ids[start : start + length + 1]


def _nats(model: LanguageModel, ids: list[int]) -> float:
    device = model.model.embedding_layer.word_embeddings.weight.device
    row = torch.tensor([ids], device=device)
    batch = {"input_ids": row[:, :-1], "labels": row[:, 1:], "attention_mask": torch.ones_like(row[:, 1:])}
    model.check_token_ids(row)
    return model.mean_loss(batch) * (len(ids) - 1)
