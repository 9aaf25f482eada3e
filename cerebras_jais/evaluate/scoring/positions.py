"""Loss by position: how well a model predicts text further from the beginning than it was trained with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cerebras_jais.atomic import replacing
from cerebras_jais.chat.forward import Forward
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.scoring.scorer import log_probabilities
from cerebras_jais.evaluate.scoring.tree import Request
from cerebras_jais.files import shown_path

TIMES = 4
"""How many times the context a row of text has for a model with ALiBi."""
RANGES = 4
"""How many ranges of positions are told of each context."""


@dataclass(frozen=True)
class Range:
    """The loss at positions `first` to `last` (of the token that is predicted, counted from 1), over all rows.

    Attributes:
        tokens: how many were predicted.
        loss: mean of -ln p, nats.
        error: standard error of that mean; neighbours in a text are not independent, so it is a lower bound.
    """

    first: int
    last: int
    tokens: int
    loss: float
    error: float


def longest_row(forward: Forward) -> int:
    """Tokens that a row may have: TIMES the context with ALiBi, the context with rotary positions."""
    config = forward.config
    return config.max_position_embeddings * (TIMES if config.position_embedding_type == "alibi" else 1)


def rows_of(documents: Iterable[Sequence[int]], eos: int, length: int, at_most: int) -> list[list[int]]:
    """Token ids of documents, one behind the other with an end-of-text token before each, cut into whole rows.

    A row predicts `length` tokens, so it has one more. Raises UserError where the text is shorter than one.
    """
    found: list[list[int]] = []
    waiting: list[int] = []
    for ids in documents:
        waiting += [eos, *ids]
        while len(waiting) > length and len(found) < at_most:
            found.append(waiting[: length + 1])
            waiting = waiting[length + 1 :]
        if len(found) == at_most:
            return found
    if not found:
        raise UserError(
            f"the text has {len(waiting):,} tokens, and one row {length + 1:,} ({TIMES} times the context "
            "for a model with ALiBi, else once); give more text"
        )
    return found


def loss_by_position(forward: Forward, rows: Sequence[Sequence[int]]) -> list[Range]:
    """The loss of rows of one length, each read from its beginning, in RANGES equal ranges of each context."""
    length = len(rows[0]) - 1
    requests = [Request(tuple(row), length) for row in rows]
    sums, squares = np.zeros(length), np.zeros(length)
    for scored in log_probabilities(forward, requests):
        np.add.at(sums, scored.positions, -scored.log_p)
        np.add.at(squares, scored.positions, scored.log_p**2)
    width = max(1, forward.config.max_position_embeddings // RANGES)
    return list(_ranges(sums, squares, len(rows), width))


def _ranges(sums: np.ndarray, squares: np.ndarray, rows: int, width: int) -> Iterator[Range]:
    for start in range(0, len(sums), width):
        end = min(start + width, len(sums))
        tokens = rows * (end - start)
        loss = float(sums[start:end].sum()) / tokens
        variance = max(0.0, float(squares[start:end].sum()) / tokens - loss**2)
        yield Range(start + 1, end, tokens, loss, (variance / tokens) ** 0.5)


def check_plot(path: Path) -> None:
    """Raise UserError for a plot that cannot be written: of another ending than .png, .svg or .pdf, or in no folder."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"{shown_path(path)}: a plot is .png, .svg or .pdf; choose one")
    if not path.parent.is_dir():
        raise UserError(f"{shown_path(path)}: the folder {shown_path(path.parent)} does not exist; create it first")


def plot(ranges: Sequence[Range], context: int, path: Path) -> None:
    """Draw the loss over positions, with the context that the model was trained with.

    Raises UserError as `check_plot` does.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    middle = [(one.first + one.last) / 2 for one in ranges]
    errors = [1.96 * one.error for one in ranges]
    axes.errorbar(middle, [one.loss for one in ranges], yerr=errors, marker="o", capsize=3)
    axes.axvline(context, color="grey", linestyle="--", label=f"trained with {context:,} tokens")
    axes.set(xlabel="position in the text, tokens", ylabel="loss, nats per token")
    axes.legend()
    with replacing(path, overwrite=True) as temporary:
        figure.savefig(temporary, format=path.suffix.lower().lstrip("."))
