"""What benchmarks of training share: the rows of a step, its FLOPs, and a step of the reference path."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a process that only starts others, and one of the Model Zoo, load neither
    import torch
    from torch import Tensor

    from cerebras_jais.model.config import DecoderConfig
    from cerebras_jais.model.decoder import LanguageModel

DOCUMENTS = (300, 500, 700, 500)  # tokens, over and over, of packed rows


@dataclass(frozen=True)
class Work:
    """What a step reads: rows of a length, and the lengths of the documents in each (one where it is not packed)."""

    rows: int
    documents: tuple[int, ...]
    packed: bool

    @property
    def length(self) -> int:
        return sum(self.documents)

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def name(self) -> str:
        return f"{self.rows} x {self.length}{', packed' if self.packed else ''}"


def plain_rows(rows: int, length: int) -> Work:
    return Work(rows, (length,), packed=False)


def packed_rows(rows: int, length: int, sizes: tuple[int, ...] = DOCUMENTS) -> Work:
    """Rows filled with documents of these sizes in turn, the last one cut."""
    documents: list[int] = []
    for size in itertools.cycle(sizes):
        documents.append(min(size, length - sum(documents)))
        if sum(documents) == length:
            return Work(rows, tuple(documents), packed=True)
    raise AssertionError("a cycle does not end")


def token_batch(work: Work, vocabulary: int, device: str = "cpu") -> dict[str, Tensor]:
    """Random tokens as the decoder takes them, int32 [rows, length] each."""
    import torch

    ids = torch.randint(0, vocabulary, (work.rows, work.length + 1), dtype=torch.int32)
    batch = {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous()}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if work.packed:
        positions = torch.cat([torch.arange(size, dtype=torch.int32) for size in work.documents])
        spans = torch.cat([torch.arange(size - 1, -1, -1, dtype=torch.int32) for size in work.documents])
        batch["position_ids"], batch["attention_span"] = (x.repeat(work.rows, 1) for x in (positions, spans))
    return {name: rows.to(device) for name, rows in batch.items()}


def flops_of_forward(config: DecoderConfig, work: Work) -> float:
    """Of the matrix products: 2 per weight and token, and attention's, of visible pairs alone.

    A training step has three times as many, for the gradients of inputs and weights; what is computed again to save
    memory does not count.
    """
    h, f, n, v = config.hidden_size, config.filter_size, config.num_hidden_layers, config.vocab_size
    weights = n * (4 * h * h + 3 * h * f) + v * h
    pairs = work.rows * sum(size * size / 2 for size in work.documents)
    return 2 * (weights * work.tokens + n * 2 * h * pairs)


def training_step(model: LanguageModel, device: str, dtype: torch.dtype | None) -> Callable[[dict[str, Tensor]], None]:
    """A step of AdamW with clipping, as `fit` takes it; float32 weights, and `dtype` in the products."""
    import torch

    from cerebras_jais.model.precision import forward_precision, step_precision
    from cerebras_jais.optimizer.adamw import build_adamw
    from cerebras_jais.optimizer.groups import named_tensors, parameter_groups

    groups = parameter_groups(model, model.config, weight_decay=0.1)
    optimizer = build_adamw(
        groups, named_tensors(model), learning_rate=1e-4, betas=(0.9, 0.95), eps=1e-8, correct_bias=True
    )

    def step(batch: dict[str, Tensor]) -> None:
        optimizer.zero_grad()
        with step_precision(device, dtype):
            with forward_precision(device, dtype):
                loss = model(batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step
