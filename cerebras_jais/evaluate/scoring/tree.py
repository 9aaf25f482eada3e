"""Sequences of tokens as a tree, each token once, walked in batches.

The sequences are sorted, so that those with a common beginning stand together, and the tree is walked depth first. All
that a later token needs of an earlier batch then lies on the path from the root to where the batch begins, whether it
is the context of one question's options or a preamble of many questions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_LONGEST_CHAIN = 256


@dataclass(frozen=True)
class Request:
    """Tokens of which the last `predicted` are scored; at least one stands before them where any is."""

    tokens: tuple[int, ...]
    predicted: int

    def __post_init__(self) -> None:
        assert 0 <= self.predicted < max(1, len(self.tokens)), "a token is predicted by those before it"


@dataclass(frozen=True)
class Chain:
    """Nodes `start` to `end`, each the parent of the next; `ancestors` are the nodes above the first, root first."""

    start: int
    end: int
    ancestors: np.ndarray


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads: chains of consecutive nodes.

    Attributes:
        nodes: of each scored token the node that predicts it, int64 [scored], ascending.
        targets: the scored tokens, int64 [scored].
        requests: the number of the request of each, int64 [scored].
    """

    chains: tuple[Chain, ...]
    nodes: np.ndarray
    targets: np.ndarray
    requests: np.ndarray

    @property
    def start(self) -> int:
        """The first node."""
        return self.chains[0].start

    @property
    def end(self) -> int:
        """The node behind the last."""
        return self.chains[-1].end

    @property
    def past(self) -> np.ndarray:
        """The nodes of earlier batches whose keys and values this one needs, ascending."""
        return self.chains[0].ancestors


@dataclass(frozen=True)
class Tree:
    """All nodes and the batches that they are read in.

    Attributes:
        tokens: of each node, int64 [nodes].
        depths: position of each node in its sequences, int64 [nodes].
    """

    tokens: np.ndarray
    depths: np.ndarray
    batches: tuple[Batch, ...]


def plan(requests: Sequence[Request], *, tokens: int, attended: int) -> Tree:
    """The tree of requests, in batches that depend on nothing but the arguments.

    Args:
        tokens: that a batch has at most.
        attended: pairs of query and key that a batch has at most, unless a single token has more.
    """
    order = sorted(
        (n for n, request in enumerate(requests) if request.predicted), key=lambda n: requests[n].tokens[:-1]
    )
    path, before = np.empty(0, np.int64), np.empty(0, np.int64)
    fresh: list[np.ndarray] = []
    depths: list[np.ndarray] = []
    groups: list[list[Chain]] = [[]]
    size = pairs = 0
    scored: list[tuple[np.ndarray, np.ndarray, int]] = []
    total = 0
    for number in order:
        request = requests[number]
        row = np.array(request.tokens, np.int64)
        inputs = row[:-1]
        shared = _common(before, inputs)
        path = np.concatenate([path[:shared], np.arange(total, total + len(inputs) - shared)])
        fresh.append(inputs[shared:])
        depths.append(np.arange(shared, len(inputs)))
        scored.append((path[len(path) - request.predicted :], row[-request.predicted :], number))
        # A batch ends before a sequence that does not fit, so that most of them lie in one batch.
        whole = len(inputs) - shared
        if groups[-1] and (size + whole > tokens or pairs + whole * len(inputs) > attended):
            groups.append([])
            size = pairs = 0
        at = shared
        while at < len(inputs):
            room = min(tokens - size, max(0, attended - pairs) // (at + 1))
            length = min(len(inputs) - at, _LONGEST_CHAIN, room)
            while length > 1 and pairs + length * (at + length) > attended:
                length //= 2
            if length < 1 and groups[-1]:
                groups.append([])
                size = pairs = 0
                continue
            length = max(1, length)
            groups[-1].append(Chain(total, total + length, path[:at]))
            size, pairs, total, at = size + length, pairs + length * (at + length), total + length, at + length
        before = inputs
    if not total:
        return Tree(np.empty(0, np.int64), np.empty(0, np.int64), ())
    return Tree(np.concatenate(fresh), np.concatenate(depths), _batches(groups, scored))


def unanswered(batches: Sequence[Batch], answered: Collection[int]) -> list[int]:
    """The numbers of the batches that score a token of a request which is not answered."""
    done = np.array(sorted(answered), np.int64)
    return [number for number, batch in enumerate(batches) if not np.isin(batch.requests, done).all()]


def needed(batches: Sequence[Batch], numbers: Iterable[int]) -> list[int]:
    """The numbers of the batches to be read for some of them: these, and those that own the past of one."""
    starts = np.array([batch.start for batch in batches], np.int64)
    wanted = set(numbers)
    for number in range(len(batches) - 1, -1, -1):
        if number in wanted:
            wanted.update((np.searchsorted(starts, batches[number].past, side="right") - 1).tolist())
    return sorted(wanted)


def _batches(groups: list[list[Chain]], scored: list[tuple[np.ndarray, np.ndarray, int]]) -> tuple[Batch, ...]:
    nodes = np.concatenate([nodes for nodes, _, _ in scored])
    targets = np.concatenate([targets for _, targets, _ in scored])
    numbers = np.concatenate([np.full(len(nodes), number, np.int64) for nodes, _, number in scored])
    by_node = np.argsort(nodes, kind="stable")
    nodes, targets, numbers = nodes[by_node], targets[by_node], numbers[by_node]
    found = []
    for chains in groups:
        first, last = np.searchsorted(nodes, [chains[0].start, chains[-1].end])
        found.append(Batch(tuple(chains), nodes[first:last], targets[first:last], numbers[first:last]))
    return tuple(found)


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences begin with together."""
    shortest = min(len(one), len(other))
    differing = np.flatnonzero(one[:shortest] != other[:shortest])
    return int(differing[0]) if len(differing) else shortest
