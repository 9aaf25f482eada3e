"""How near the rows that a method makes are to the true ones, on shared tokens that no fit has seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cerebras_jais.vocabulary.embeddings.ridge import Done
from cerebras_jais.vocabulary.embeddings.rows import blocks
from checkpoint_convert.formats.tensors import Tensor

RANKED = 128
"""Of the held-out tokens, so many are looked for among all rows of the base."""


@dataclass(frozen=True)
class Judged:
    """One method on one matrix."""

    method: str
    matrix: str
    cosine: float
    """Mean cosine between the row made and the true row."""
    median_rank: float
    """Median, over RANKED tokens, of the rank of the true row among all rows of the base; 1 is the best.

    Rows are ranked by their cosine to the row made, both without the mean row: what all rows have in common changes no
    softmax of a head. Equally near ones share the middle of their ranks."""
    reciprocal_rank: float
    """Mean of 1 / that rank."""
    norm_ratio: float
    """Mean norm of the rows made over that of the true rows."""


def judge(
    matrix: str,
    base: Tensor,
    count: int,
    mean: np.ndarray,
    ids: np.ndarray,
    made: Mapping[str, np.ndarray],
    true: np.ndarray,
    done: Done,
) -> list[Judged]:
    """Judge the rows that several methods make for the same tokens.

    Args:
        matrix: its name in the report.
        base: the matrix.
        count: how many of its rows are of tokens.
        mean: their mean, float32 [columns].
        ids: of the tokens [n].
        made: method -> rows [n, columns], float32.
        true: the true rows [n, columns], float32.
        done: told of floating-point operations.
    """
    ranked = slice(0, RANKED)
    directions = torch.from_numpy(np.concatenate([_unit(rows[ranked] - mean) for rows in made.values()]))
    own = torch.from_numpy(np.tile(_unit(true[ranked] - mean), (len(made), 1)))
    nearness = (directions * own).sum(1, keepdim=True)
    tokens = torch.from_numpy(np.tile(ids[ranked], len(made)))[:, None]
    ranks = torch.ones(len(directions))
    for start, stop in blocks(count, base.shape[1]):
        others = torch.arange(start, stop)[None] != tokens
        nearer = (
            directions @ torch.from_numpy(_unit(base.read_rows(start, stop).astype(np.float32) - mean)).T - nearness
        )
        ranks += ((nearer > 0) & others).sum(1) + ((nearer == 0) & others).sum(1) / 2
        done(2.0 * directions.numel() * (stop - start))
    found = []
    for (method, rows), of_method in zip(made.items(), ranks.reshape(len(made), -1).numpy(), strict=True):
        cosine = (_unit(rows) * _unit(true)).sum(axis=1).mean()
        ratio = _norms(rows).mean() / _norms(true).mean()
        found.append(
            Judged(
                method, matrix, float(cosine), float(np.median(of_method)), float((1 / of_method).mean()), float(ratio)
            )
        )
    return found


def _norms(rows: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.linalg.norm(rows, axis=1)
    return norms


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(_norms(rows), np.float32(1e-30))[:, None]
    return unit
