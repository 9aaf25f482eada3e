"""Pieces put into rows so that little room is left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return rows as lists of indices into `lengths`, every length being 1 to `capacity`, each index in one row.

    A row begins with the longest piece that waits. Then come, again and again, the one or the two pieces that fill it
    exactly, if there are such, else the longest that leaves a room that others can fill: between k times the shortest
    and k times the longest for some k. Best fit decreasing, the usual method, leaves 2 to 3% of the rows empty where
    every piece is longer than some length, as each example of a conversation holds the same prompt.

    Pieces of one length are interchangeable, and the lengths that wait are the bits of a whole number, so that each
    question is a few operations on `capacity` bits. A piece takes 0.5 to 2 microseconds of one core up to a capacity of
    8,192, 6 to 9 at 131,072, and 65 to 165 at 2^20 (measured, the higher figures on a loaded machine).
    """
    waiting: defaultdict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        waiting[length].append(index)
    for indices in waiting.values():
        indices.reverse()  # the first is taken first
    there = sum(1 << length for length in waiting)  # bit n: a piece of length n waits
    reverse = sum(1 << (capacity - length) for length in waiting)  # bit capacity - n: the same
    rows: list[list[int]] = []
    bounds, fillable = (0, 0), 0
    while there:
        shortest, longest = (there & -there).bit_length() - 1, there.bit_length() - 1
        if bounds != (shortest, longest):
            bounds, fillable = (shortest, longest), _fillable(shortest, longest, capacity)
        row: list[int] = []
        room, chosen = capacity, [longest]
        while chosen:
            for length in chosen:
                row.append(waiting[length].pop())
                if not waiting[length]:
                    there ^= 1 << length
                    reverse ^= 1 << (capacity - length)
                room -= length
            chosen = _next_pieces(room, there, reverse >> (capacity - room), fillable >> (capacity - room), waiting)
        rows.append(row)
    return rows


def _next_pieces(
    room: int, there: int, partners: int, leaving_fillable: int, waiting: dict[int, list[int]]
) -> list[int]:
    """The lengths to put into a room next: one or two that fill it, the best one that does not, or none.

    Args:
        there: bit n is set where a piece of length n waits.
        partners: bit n is set where one of length room - n does.
        leaving_fillable: bit n is set where a room of room - n can be filled.
    """
    fitting = there & ((2 << room) - 1)
    if not fitting or there >> room & 1:
        return [room] if fitting else []
    half = (room + 1) // 2
    pairs = (there & partners) >> half  # the longer ones of two
    if pairs:
        longer = half + (pairs & -pairs).bit_length() - 1
        if 2 * longer != room or len(waiting[longer]) > 1:
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
