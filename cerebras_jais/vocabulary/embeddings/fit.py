"""The map from a donor's embedding to the matrices of a base, its strength chosen and all methods judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.atomic import sync
from cerebras_jais.vocabulary.embeddings.judge import RANKED, Judged, judge
from cerebras_jais.vocabulary.embeddings.methods import (
    Method,
    RowMaker,
    Sources,
    Statistics,
    drawn,
    mean_of_all,
    mean_of_pieces,
    projected,
    statistics_of,
)
from cerebras_jais.vocabulary.embeddings.ridge import JUDGED_COLUMNS, STRENGTHS, Moments, Normal, Projection
from cerebras_jais.vocabulary.embeddings.rows import mean_rows, read_rows
from cerebras_jais.vocabulary.embeddings.shared_tokens import Vocabulary
from cerebras_jais.vocabulary.errors import VocabularyError
from checkpoint_convert.formats.tensors import Tensor

FEWEST = 20
"""Shared tokens, below which nothing can be learned and judged."""
HELD_OUT = 1024
"""Shared tokens held out at most; never more than a fifth of them."""
_BLOCK = 4096  # rows of a product at a time
_FACTORS = len(STRENGTHS[::2]) + 2 + 2  # of the search, of what is judged and of what is returned
_NORMS_OF = 1024  # new tokens whose norms stand for those of all

Progress = Callable[[float, float], object]
"""Called with floating-point operations: just done, and of all."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix of the base that grows."""

    name: str
    """`embedding` or `head`, for the report."""
    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Problem:
    """What there is to learn from, and what is to be made."""

    base: Vocabulary
    matrices: tuple[Matrix, ...]
    """The embedding, and the head unless it is tied to it."""
    donor: Tensor
    """The donor's embedding."""
    base_ids: np.ndarray
    """Of the shared tokens, int64."""
    donor_ids: np.ndarray
    """Of the same tokens."""
    in_donor: Sources
    """New id -> tokens of the donor that spell it."""
    in_base: Sources
    """New id -> tokens of the base that spell it."""


@dataclass(frozen=True)
class Norms:
    """Mean norms of rows of one matrix."""

    matrix: str
    base: float
    """Of the base's tokens."""
    projected: float
    """Of new tokens (a sample of them), as the projection makes them."""
    factor: float
    """What projected rows are multiplied by."""


@dataclass(frozen=True)
class TransferReport:
    """What was learned, and how well."""

    method: str
    """That made the rows of the new tokens."""
    new_tokens: int
    whole_in_donor: int
    """New tokens that the donor has; others are the mean of the donor's tokens that spell them."""
    padding: int
    """Rows of no token."""
    shared: int
    held_out: int
    strength: float
    """Of the ridge, times the mean diagonal of the centred X'X."""
    r2: Mapping[float, Mapping[str, float]]
    """Strength -> matrix -> held-out R2 of JUDGED_COLUMNS random columns; strengths that rounding ruins are left out"""
    norms: tuple[Norms, ...]
    judged: tuple[Judged, ...]
    """Every method on every matrix."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        found = asdict(self)
        found["r2"] = {f"{strength:g}": dict(values) for strength, values in self.r2.items()}
        return found


@dataclass(frozen=True, eq=False)
class Fitted:
    """What the rows of new tokens are made from."""

    projection: Projection
    """Onto the columns of all matrices side by side."""
    factors: tuple[float, ...]
    """Of each matrix."""
    statistics: tuple[Statistics, ...]
    """Of each matrix."""

    def save(self, path: Path) -> None:
        """Write it to a new file."""
        arrays: dict[str, Any] = {f"mean_{place}": found.mean for place, found in enumerate(self.statistics)}
        arrays["numbers"] = [(found.spread, found.norm) for found in self.statistics]
        with open(path, "xb") as file:
            np.savez(file, factors=self.factors, **vars(self.projection), **arrays)
        sync(path)

    @classmethod
    def load(cls, path: Path) -> Fitted:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as found:
            projection = Projection(found["weight"], found["source_mean"], found["target_mean"])
            numbers = found["numbers"].tolist()
            statistics = (Statistics(found[f"mean_{place}"], *pair) for place, pair in enumerate(numbers))
            return cls(projection, tuple(found["factors"].tolist()), tuple(statistics))

    def makers(self, problem: Problem, method: Method, seed: int) -> list[RowMaker]:
        """What makes the rows of each matrix."""
        return [
            _maker(problem, method, seed, place, projection, factor, statistics)
            for place, (projection, factor, statistics) in enumerate(
                zip(_split(self.projection, problem.matrices), self.factors, self.statistics, strict=True)
            )
        ]


def _maker(
    problem: Problem,
    method: Method,
    seed: int,
    place: int,
    projection: Projection,
    factor: float,
    statistics: Statistics,
) -> RowMaker:
    if method is Method.PROJECTION:
        return projected(problem.donor, problem.in_donor, projection, factor, statistics.mean)
    if method is Method.PIECES:
        return mean_of_pieces(problem.matrices[place].tensor, problem.in_base, statistics.mean)
    return mean_of_all(statistics.mean) if method is Method.MEAN else drawn(statistics, seed, place)


def fit(
    problem: Problem, method: Method, *, base_norms: bool, padding: int, seed: int, progress: Progress
) -> tuple[Fitted, TransferReport]:
    """Learn the projection, choose its strength on held-out tokens, and judge every method on them.

    The strength is that of the best mean R2. The projection that is judged has seen the other shared tokens; the one
    that is returned has seen all.

    Args:
        problem: the matrices and tokens, of which FEWEST at least are shared.
        method: for the report.
        base_norms: whether projected rows are multiplied by what gives them the base's mean norm.
        padding: for the report.
        seed: of the tokens held out, the columns judged, and random rows.
        progress: called now and then.

    Raises:
        UserError: rows that are not finite.
    """
    count = len(problem.base_ids)
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    held, train = (np.sort(part) for part in np.split(order, [min(HELD_OUT, count // 5)]))
    statistics = tuple(statistics_of(matrix.tensor, problem.base.size) for matrix in problem.matrices)

    moments = _first_moments(problem, train)
    work = _Work(problem, moments, len(held), progress)
    _add(moments, problem, train, work.done)
    normal = moments.centred()
    x, y = read_rows(problem.donor, problem.donor_ids[held]), _targets(problem, held)
    _check_finite(problem, normal, x, y)
    r2 = _held_out_r2(problem, normal, x, y, rng, work.done)
    strength = _best(r2)
    factor = normal.factor(strength)
    assert factor is not None, "it was factorised before"
    judged = _judge(problem, statistics, normal.predict(factor, x), held, y, seed, work.done)

    moments.add(x, y)
    del normal, factor, x, y  # before the same again for all tokens
    normal = moments.centred()
    del moments
    factor = normal.factor(strength)
    if factor is None:
        raise VocabularyError(f"{problem.base.file}: the shared tokens' embeddings cannot be factorised; report it")
    projection = normal.solve(factor)
    norms = _norms(problem, projection, statistics, base_norms, rng)
    work.end()
    whole = sum(len(pieces) == 1 for pieces in problem.in_donor.values())
    report = TransferReport(
        method.value, len(problem.in_donor), whole, padding, count, len(held), strength, r2, norms, tuple(judged)
    )
    return Fitted(projection, tuple(found.factor for found in norms), statistics), report


def _check_finite(problem: Problem, normal: Normal, x: np.ndarray, y: np.ndarray) -> None:
    """Raise VocabularyError for infinities or NaN among the shared tokens' rows, held out (x, y) or not."""
    for rows, moments, model in (
        (x, normal.gram.diagonal(), problem.donor),
        (y, normal.cross, problem.matrices[0].tensor),
    ):
        if not (np.isfinite(rows).all() and bool(moments.isfinite().all())):
            raise VocabularyError(
                f"the embedding of a shared token is not finite in {model.storage_id[0]}; give other weights"
            )


class _Work:
    """The floating-point operations of a fit, told as they are done."""

    def __init__(self, problem: Problem, moments: Moments, held: int, progress: Progress) -> None:
        d, m = problem.donor.shape[1], sum(_widths(problem.matrices))
        factors = _FACTORS * d**3 / 3
        ranks = 2.0 * min(held, RANKED) * len(Method) * problem.base.size * m
        self._left = len(problem.base_ids) * moments.flops_of_row + factors + ranks + 2.0 * d * d * m
        self._all, self._progress = self._left, progress

    def done(self, flops: float) -> None:
        self._left -= flops
        self._progress(flops, self._all)

    def end(self) -> None:
        self.done(self._left)


def _widths(matrices: Sequence[Matrix]) -> list[int]:
    return [matrix.tensor.shape[1] for matrix in matrices]


def _split(projection: Projection, matrices: Sequence[Matrix]) -> list[Projection]:
    """The projection onto each matrix."""
    ends = np.cumsum(_widths(matrices))[:-1]
    parts = zip(np.split(projection.weight, ends, axis=1), np.split(projection.target_mean, ends), strict=True)
    return [Projection(weight, projection.source_mean, mean) for weight, mean in parts]


def _targets(problem: Problem, places: np.ndarray) -> np.ndarray:
    """The rows of shared tokens in every matrix, side by side: float32 [places, columns of all]."""
    return np.hstack([read_rows(matrix.tensor, problem.base_ids[places]) for matrix in problem.matrices])


def _first_moments(problem: Problem, train: np.ndarray) -> Moments:
    """Moments without rows, about the means of the first ones."""
    first = train[:_BLOCK]
    return Moments(read_rows(problem.donor, problem.donor_ids[first]).mean(0), _targets(problem, first).mean(0))


def _add(moments: Moments, problem: Problem, places: np.ndarray, done: Callable[[float], object]) -> None:
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        moments.add(read_rows(problem.donor, problem.donor_ids[block]), _targets(problem, block))
        done(len(block) * moments.flops_of_row)


def _held_out_r2(
    problem: Problem,
    normal: Normal,
    x: np.ndarray,
    y: np.ndarray,
    rng: np.random.Generator,
    done: Callable[[float], object],
) -> dict[float, dict[str, float]]:
    """Strength -> matrix -> R2 on held-out rows: of whole decades, and of both half decades beside the best of them."""
    widths = _widths(problem.matrices)
    each = JUDGED_COLUMNS // len(widths)
    chosen = [
        np.sort(rng.choice(width, min(each, width), replace=False)) + sum(widths[:place])
        for place, width in enumerate(widths)
    ]
    columns = np.concatenate(chosen)
    ends = np.cumsum([len(part) for part in chosen])[:-1]

    def r2_of(strengths: Sequence[float]) -> dict[float, dict[str, float]]:
        of_mean, errors = normal.squared_errors(x, y[:, columns], columns, strengths, done)
        totals = np.split(of_mean, ends)
        return {
            strength: {
                matrix.name: 1 - float(missed.sum() / max(total.sum(), np.finfo(np.float32).tiny))
                for matrix, missed, total in zip(problem.matrices, np.split(squares, ends), totals, strict=True)
            }
            for strength, squares in errors.items()
        }

    decades = r2_of(STRENGTHS[::2])
    place = STRENGTHS.index(_best(decades))
    beside = r2_of([STRENGTHS[near] for near in (place - 1, place + 1) if 0 <= near < len(STRENGTHS)])
    return dict(sorted((decades | beside).items()))


def _best(r2: Mapping[float, Mapping[str, float]]) -> float:
    """The strength of the largest mean R2; of equal ones the largest."""
    return max(r2, key=lambda tried: (sum(r2[tried].values()), tried))


def _judge(
    problem: Problem,
    statistics: Sequence[Statistics],
    predicted: np.ndarray,
    held: np.ndarray,
    true: np.ndarray,
    seed: int,
    done: Callable[[float], object],
) -> list[Judged]:
    """Every method on the held-out tokens; pieces are the segmentation without the token itself."""
    base = problem.base
    ids = problem.base_ids[held]
    pieces = [base.segment(base.texts[number], without=number) for number in ids.tolist()]
    ends = np.cumsum(_widths(problem.matrices))[:-1]
    parts = zip(np.split(predicted, ends, axis=1), np.split(true, ends, axis=1), strict=True)
    found = []
    for place, (matrix, (projected_rows, rows)) in enumerate(zip(problem.matrices, parts, strict=True)):
        known = statistics[place]
        made = {
            Method.PROJECTION.value: projected_rows,
            Method.PIECES.value: mean_rows(matrix.tensor, pieces, known.mean),
            Method.MEAN.value: mean_of_all(known.mean)(ids.tolist()),
            Method.RANDOM.value: drawn(known, seed, place)(ids.tolist()),
        }
        found += judge(matrix.name, matrix.tensor, base.size, known.mean, ids, made, rows, done)
    return found


def _norms(
    problem: Problem,
    projection: Projection,
    statistics: Sequence[Statistics],
    base_norms: bool,
    rng: np.random.Generator,
) -> tuple[Norms, ...]:
    """The norms of the base's rows and of new ones, and what the latter are multiplied by."""
    ids = sorted(problem.in_donor)
    sample = np.sort(rng.choice(ids, min(len(ids), _NORMS_OF), replace=False)).tolist()
    found = []
    for matrix, known, part in zip(problem.matrices, statistics, _split(projection, problem.matrices), strict=True):
        rows = projected(problem.donor, problem.in_donor, part, 1.0, known.mean)(sample)
        norm = float(np.linalg.norm(rows, axis=1).mean())
        found.append(Norms(matrix.name, known.norm, norm, known.norm / norm if base_norms and norm else 1.0))
    return tuple(found)
