"""Contract: every piece is in one row and no row is too full; rows are about as many as best fit decreasing needs, and
clearly fewer where no piece is short."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.filling import fill_rows


def rows_of(lengths, capacity):
    pieces, sizes = fill_rows(np.array(lengths, dtype=np.int64), capacity)
    return np.split(pieces, np.cumsum(sizes)[:-1]) if len(sizes) else []


def best_fit_decreasing(lengths, capacity):
    """The number of rows of the usual method, by a plain search."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append(min(fitting, default=capacity) - length)
    return len(rooms)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 90), st.data())
def test_every_piece_is_in_one_row_that_it_fits(capacity, data):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=60))
    rows = rows_of(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    waste = [capacity - sum(lengths[index] for index in row) for row in rows]
    later = [
        min((lengths[index] for row in rows[number + 1 :] for index in row), default=99) for number in range(len(rows))
    ]
    assert all(room < shortest for room, shortest in zip(waste, later, strict=True)), (
        "nothing that fits is left waiting"
    )


def one_by_one(lengths, capacity):
    """The rule of `fill_rows` by plain search, one row after the other: the lengths of each."""
    waiting = Counter(lengths)

    def taken(length):
        waiting[length] -= 1
        if not waiting[length]:
            del waiting[length]
        return length

    while waiting:
        shortest, longest = min(waiting), max(waiting)
        row = [taken(longest)]
        while fitting := [length for length in waiting if length <= capacity - sum(row)]:
            room = capacity - sum(row)
            pairs = [
                longer
                for longer in fitting
                if 2 * longer >= room and room - longer in waiting and (2 * longer != room or waiting[longer] > 1)
            ]
            fillable = [
                length
                for length in fitting
                if any(n * shortest <= room - length <= n * longest for n in range(capacity // shortest + 1))
            ]
            if room in waiting:
                row.append(taken(room))
            elif pairs:
                row += [taken(min(pairs)), taken(room - min(pairs))]
            else:
                row.append(taken(max(fillable or fitting)))
        yield sorted(row)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.data())
def test_rows_made_many_at_once_are_those_that_come_one_by_one(capacity, data):
    kinds = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=5))
    lengths = data.draw(st.lists(st.sampled_from(kinds), max_size=60))
    made = [sorted(lengths[index] for index in row) for row in rows_of(lengths, capacity)]
    assert made == list(one_by_one(lengths, capacity))


def drawn(kind, count):
    rng = np.random.default_rng(0)
    if kind == "texts":  # long ones cut
        return [1 + int(n) % 2048 for n in rng.lognormal(np.log(500), 1.0, size=count)]
    if kind == "any length":
        return rng.integers(1, 2049, size=count).tolist()
    return np.minimum(150 + rng.lognormal(np.log(80), 0.8, size=count), 2048).astype(int).tolist()


@pytest.mark.parametrize(("kind", "fill"), [("texts", 0.999), ("any length", 0.99), ("conversations", 0.99)])
def test_natural_lengths_fill_the_rows(kind, fill):
    lengths = drawn(kind, 5000)
    rows = rows_of(lengths, 2048)
    assert sum(lengths) / (len(rows) * 2048) > fill


def test_a_window_of_documents_of_ordinary_lengths_is_packed_without_a_gap():
    """Log-normal, median 500, sigma 1, long ones folded: 99.95% is asked."""
    drawn_lengths = np.random.default_rng(0).lognormal(np.log(500), 1.0, size=2**17).astype(np.int64) + 1
    whole = (drawn_lengths - 1) // 2048
    lengths = np.concatenate([np.full(whole.sum(), 2048), drawn_lengths - 2048 * whole])
    pieces, sizes = fill_rows(lengths, 2048)
    assert sizes.sum() == len(pieces) == len(lengths)
    assert np.add.reduceat(lengths[pieces], np.cumsum(sizes) - sizes).max() <= 2048
    assert lengths.sum() / (2048 * len(sizes)) > 0.9999


def test_pieces_that_are_none_of_them_short_need_fewer_rows_than_best_fit_decreasing():
    lengths = drawn("conversations", 3000)
    assert len(rows_of(lengths, 2048)) < 0.99 * best_fit_decreasing(lengths, 2048)
    texts = drawn("texts", 3000)
    assert len(rows_of(texts, 2048)) <= best_fit_decreasing(texts, 2048) + 1
