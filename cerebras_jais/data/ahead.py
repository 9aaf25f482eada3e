"""Work on one item in a thread while the next item is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def one_ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield work(item) for each item, in order; one is worked on in a thread while the caller's makes the next.

    It pays where the work leaves Python's lock to others (tokenizers, HDF5, compression). At most two items are held.
    What `work` raises comes out where its result would.
    """
    with ThreadPoolExecutor(1) as thread:
        before = None
        for item in items:
            result = thread.submit(work, item)
            if before is not None:
                yield before.result()
            before = result
        if before is not None:
            yield before.result()
