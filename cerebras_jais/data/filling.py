"""Pieces put into rows so that little room is left."""

from __future__ import annotations

from collections import Counter

import numpy as np


def fill_rows(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of pieces: the pieces row by row, as indices into `lengths`, and how many of them each row has.

    Every length, int [n], is 1 to `capacity`; each index stands once in the first array, int64 [n]; the second is
    int64 [rows].

    A row begins with the longest piece that waits. Then come, again and again, the one or the two pieces that fill it
    exactly, if there are such, else the longest that leaves a room that others can fill: between k times the shortest
    and k times the longest for some k. Best fit decreasing, the usual method, leaves 2 to 3% of the rows empty where
    every piece is longer than some length, as each example of a conversation holds the same prompt.

    Pieces of one length are interchangeable, and the lengths that wait are the bits of a whole number, so that each
    question is a few operations on `capacity` bits. As long as no length runs out the next row is as the one before, so
    as many of them are made at once: there are no more kinds of rows than lengths. A million documents of ordinary
    lengths take 0.2 seconds of one processor at a capacity of 2,048; where few lengths are equal a piece takes 1.5
    microseconds at 16,384, 7 at 131,072 and 60 at 2^20 (measured).
    """
    by_length = np.argsort(lengths, kind="stable")
    kinds, firsts, counts = np.unique(lengths[by_length], return_index=True, return_counts=True)
    waiting = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    next_of = dict(zip(kinds.tolist(), firsts.tolist(), strict=True))  # the place in by_length
    pieces: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []
    for row, repeats in _kinds_of_rows(waiting, capacity):
        places = np.empty((repeats, len(row)), dtype=np.int64)
        seen: Counter[int] = Counter()
        times = Counter(row)
        for column, length in enumerate(row):
            # Piece k of a length in row r is the (r times[length] + k)-th that waits.
            start = next_of[length] + seen[length]
            places[:, column] = range(start, start + repeats * times[length], times[length])
            seen[length] += 1
        for length, count in times.items():
            next_of[length] += repeats * count
        pieces.append(places.ravel())
        sizes.append((len(row), repeats))
    if not pieces:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return by_length[np.concatenate(pieces)], np.repeat(*np.asarray(sizes, dtype=np.int64).T)


def _kinds_of_rows(waiting: dict[int, int], capacity: int) -> list[tuple[list[int], int]]:
    """The lengths of a row and how many such rows are made, until nothing waits: `waiting` has a count of each length.

    A row takes the same lengths as the one before unless one of them has run out: of the lengths that wait a rule takes
    the least or the greatest that is good enough, so those that are not taken do not matter.
    """
    there = sum(1 << length for length in waiting)  # bit n: a piece of length n waits
    reverse = sum(1 << (capacity - length) for length in waiting)  # bit capacity - n: the same
    kinds: list[tuple[list[int], int]] = []
    bounds, fillable = (0, 0), 0
    while there:
        shortest, longest = (there & -there).bit_length() - 1, there.bit_length() - 1
        if bounds != (shortest, longest):
            bounds, fillable = (shortest, longest), _fillable(shortest, longest, capacity)
        row: list[int] = []
        room, chosen = capacity, [longest]
        while chosen:
            for length in chosen:
                row.append(length)
                waiting[length] -= 1
                if not waiting[length]:
                    there ^= 1 << length
                    reverse ^= 1 << (capacity - length)
                room -= length
            chosen = _next_pieces(room, there, reverse >> (capacity - room), fillable >> (capacity - room), waiting)
        times = Counter(row)
        more = min(waiting[length] // count for length, count in times.items())
        for length, count in times.items() if more else ():
            waiting[length] -= more * count
            if not waiting[length]:
                there ^= 1 << length
                reverse ^= 1 << (capacity - length)
        kinds.append((row, 1 + more))
    return kinds


def _next_pieces(room: int, there: int, partners: int, leaving_fillable: int, waiting: dict[int, int]) -> list[int]:
    """The lengths to put into a room next: one or two that fill it, the best one that does not, or none.

    Args:
        there: bit n is set where a piece of length n waits.
        partners: bit n is set where one of length room - n does.
        leaving_fillable: bit n is set where a room of room - n can be filled.
        waiting: how many of each length do.
    """
    fitting = there & ((2 << room) - 1)
    if not fitting or there >> room & 1:
        return [room] if fitting else []
    half = (room + 1) // 2
    pairs = (there & partners) >> half  # the longer ones of two
    if pairs & 1 and 2 * half == room and waiting[half] < 2:
        pairs ^= 1
    if pairs:
        longer = half + (pairs & -pairs).bit_length() - 1
        return [longer, room - longer]
    return [((fitting & leaving_fillable) or fitting).bit_length() - 1]


def _fillable(shortest: int, longest: int, capacity: int) -> int:
    """The rooms that pieces between two lengths fill, if enough such lengths wait: bit capacity - room is set."""
    rooms = 1 << capacity  # no room
    for count in range(1, capacity // shortest + 1):
        least, most = count * shortest, min(count * longest, capacity)
        if most + 1 >= least + shortest:  # no gap before what one piece more fills, nor after it
            return int(rooms | (1 << (capacity - least + 1)) - 1)
        rooms |= ((1 << (most - least + 1)) - 1) << (capacity - most)
    return rooms
