"""Rows of stored matrices, read by their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from checkpoint_convert.formats.tensors import Tensor

_GAP = 8  # rows between two wanted ones that are read with them, since a read costs as much as some rows
BLOCK_BYTES = 64 << 20
"""Of a block of rows in float32."""


def read_rows(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """Rows of a matrix in any order, float32 [numbers, columns]; only they and a few between them are read."""
    wanted, places = np.unique(numbers, return_inverse=True)
    rows = np.empty((len(wanted), tensor.shape[1]), np.float32)
    gap = max(_GAP, tensor.chunk_rows or 0)
    most = max(gap, BLOCK_BYTES // (4 * tensor.shape[1]))
    for start, stop in _runs(wanted, gap, most):
        first = int(wanted[start])
        found = tensor.read_rows(first, int(wanted[stop - 1]) + 1)
        rows[start:stop] = found[wanted[start:stop] - first].astype(np.float32)
    return rows if np.array_equal(wanted, numbers) else rows[places.reshape(-1)]


def _runs(wanted: np.ndarray, gap: int, most: int) -> Iterator[tuple[int, int]]:
    """Divide rising numbers where more than `gap` lie between two, and into runs that span at most `most`."""
    start = 0
    for place in range(1, len(wanted) + 1):
        if place == len(wanted) or wanted[place] - wanted[place - 1] > gap or wanted[place] - wanted[start] >= most:
            yield start, place
            start = place


def mean_rows(tensor: Tensor, groups: Sequence[tuple[int, ...]], otherwise: np.ndarray) -> np.ndarray:
    """The mean of the rows of each group, float32 [groups, columns]; `otherwise` [columns] for an empty group."""
    sizes = np.array([len(group) for group in groups])
    rows = read_rows(tensor, np.array([number for group in groups for number in group], dtype=np.int64))
    if (sizes == 1).all():
        return rows
    sums = np.zeros((len(groups), tensor.shape[1]), np.float32)
    np.add.at(sums, np.repeat(np.arange(len(groups)), sizes), rows)
    sums[sizes > 0] /= sizes[sizes > 0, None]
    sums[sizes == 0] = otherwise
    return sums


def blocks(count: int, columns: int) -> Iterator[tuple[int, int]]:
    """Divide `count` rows of so many columns into blocks of BLOCK_BYTES in float32."""
    step = max(1, BLOCK_BYTES // (4 * columns))
    for start in range(0, count, step):
        yield start, min(start + step, count)
