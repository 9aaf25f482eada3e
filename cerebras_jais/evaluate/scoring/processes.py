"""The same scores by several processes, each with the model and a part of the batches."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from cerebras_jais.chat.forward import Forward
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.scoring.scorer import BATCH_TOKENS, Scored, log_probabilities
from cerebras_jais.evaluate.scoring.tree import Request

_PATIENCE = 1.0  # seconds between looks at whether the processes live
_WAITING = 8  # batches of a process that are not yet taken


def log_probabilities_of_processes(
    forward: Forward,
    open_forward: Callable[[int], Forward],
    requests: Sequence[Request],
    answered: Collection[int],
    processes: int,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Scored]:
    """What `log_probabilities` gives, in another order, made by this process and `processes` - 1 others.

    Args:
        forward: the model of this process.
        open_forward: opens the model of another, by its number from 1 on; it can be pickled.

    Raises UserError where a process cannot open its model, or ends before its work does. None outlives the iterator,
    nor this process.
    """
    context = multiprocessing.get_context("spawn")
    found: Any = context.Queue(_WAITING * processes)
    common = (open_forward, requests, set(answered), batch_tokens, found, os.getpid())
    workers = [
        context.Process(target=_work, args=((number, processes), *common), daemon=True)
        for number in range(1, processes)
    ]
    try:
        for worker in workers:
            worker.start()
        yield from log_probabilities(forward, requests, answered, batch_tokens=batch_tokens, part=(0, processes))
        ended = 0
        while ended < len(workers):
            try:
                scored = found.get(timeout=_PATIENCE)
            except queue.Empty:
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    raise UserError(
                        "a process of the evaluation has ended before its work; give more memory or fewer --processes, "
                        "and run the command again, which goes on"
                    ) from None
                continue
            if isinstance(scored, UserError):
                raise scored
            if scored is None:
                ended += 1
            else:
                yield scored
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()


def _work(
    part: tuple[int, int],
    open_forward: Callable[[int], Forward],
    requests: Sequence[Request],
    answered: Collection[int],
    batch_tokens: int,
    found: Any,
    parent: int,
) -> None:
    """Put what a part of the batches gives into a queue, then None; end where the process that asked has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    try:
        forward = open_forward(part[0])
    except UserError as error:
        found.put(error)
        return
    for scored in log_probabilities(forward, requests, answered, batch_tokens=batch_tokens, part=part):
        while True:
            if os.getppid() != parent:
                os._exit(1)
            try:
                found.put(scored, timeout=_PATIENCE)
                break
            except queue.Full:
                continue
    found.put(None)
