"""Loss and bits per byte of a model on documents, and on the responses of conversations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from cerebras_jais.chat.forward import Forward
from cerebras_jais.data.documents import Document, language_of
from cerebras_jais.evaluate.scoring.scorer import log_probabilities
from cerebras_jais.evaluate.scoring.tree import Request
from cerebras_jais.model.decoder import LanguageModel


@dataclass(frozen=True)
class Score:
    """How well a model predicts the documents of one language.

    Attributes:
        language: "ar", "en", or what the documents say of themselves.
        documents: how many, or how many conversations.
        tokens: predicted tokens, the end of each document or last response included.
        n_bytes: UTF-8 bytes of the text they stand for.
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


class Scored(NamedTuple):
    """One text to score.

    Attributes:
        ids: token ids [n].
        counted: which of them count, [n]; the first does not.
        n_bytes: UTF-8 bytes of the text that those stand for.
    """

    language: str
    ids: Sequence[int]
    counted: Sequence[bool]
    n_bytes: int


def score_documents(
    model: LanguageModel | Forward,
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
        model: in float32, or as it generates, whatever its weights.
        encode: a document to its token ids, without special tokens.
    """
    length = max_sequence_length or model.config.max_position_embeddings

    def scored() -> Iterator[Scored]:
        for document in documents:
            ids = [eos_token_id, *encode(document), eos_token_id]
            counted = [False, *[True] * (len(ids) - 1)]
            yield Scored(language_of(document), ids, counted, len(document.text.encode("utf-8")))

    return score_texts(model, scored(), length)


@torch.inference_mode()
def score_texts(model: LanguageModel | Forward, texts: Iterable[Scored], length: int) -> list[Score]:
    """Score the tokens of texts that count, language by language in order of first appearance.

    A text longer than `length` is cut into pieces, each starting from the last token of the one before.
    """
    totals: dict[str, list[float]] = {}
    if isinstance(model, LanguageModel):
        model.eval()
    for text in texts:
        total = totals.setdefault(text.language, [0, 0, 0, 0.0])
        total[0] += 1
        total[1] += sum(text.counted)
        total[2] += text.n_bytes
        for start in range(0, len(text.ids) - 1, length):
            end = start + length + 1
            total[3] += _nats(model, text.ids[start:end], text.counted[start:end])
    return [Score(lang, int(d), int(t), int(b), n) for lang, (d, t, b, n) in totals.items()]


def _nats(model: LanguageModel | Forward, ids: Sequence[int], counted: Sequence[bool]) -> float:
    if not any(counted[1:]):
        return 0.0
    if isinstance(model, Forward):
        counts = np.array(counted[1:])
        parts = log_probabilities(model, [Request(tuple(ids), len(ids) - 1)])
        return -sum(float(part.log_p[counts[part.positions]].sum()) for part in parts)
    device = model.model.embedding_layer.word_embeddings.weight.device
    row, mask = torch.tensor([ids], device=device), torch.tensor([counted[1:]], dtype=torch.int64, device=device)
    batch = {"input_ids": row[:, :-1], "labels": row[:, 1:], "attention_mask": mask}
    model.check_token_ids(row)
    return model.mean_loss(batch) * sum(counted[1:])
