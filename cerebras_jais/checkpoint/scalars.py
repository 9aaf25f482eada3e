"""The numbers of a checkpoint: its step, its position in the data, the state of its loss scale.

They come from a file, so each is held to a range before it counts.
"""

from __future__ import annotations

import math
import os
from typing import Any

from cerebras_jais.checkpoint.errors import CheckpointError
from cerebras_jais.checkpoint.tensors import StoredTensor
from cerebras_jais.ranges import COUNT_OR_NONE, Range


def read_number(value: Any, bounds: Range, key: str, path: str | os.PathLike[str]) -> int | float:
    """A number of a checkpoint, stored as such or as an array of one element.

    Args:
        value: what the tree of the checkpoint has at `key`.
        bounds: what it may be.
        key: for the message.
        path: the file, for the message.

    Raises CheckpointError for anything else: text, NaN, a number out of range.
    """
    if isinstance(value, StoredTensor):
        value = value.read() if value.shape in ((), (1,)) else f"an array of shape {list(value.shape)}"
    if hasattr(value, "item") and math.prod(value.shape) == 1:  # of numpy or of torch, which is not imported here
        value = value.item()
    problem = bounds.problem(value)
    if problem is not None:
        raise CheckpointError(f"{path}: {key} {problem}; the file is damaged, use another checkpoint")
    return int(value) if bounds.whole else float(value)


def read_step(tree: Any, path: str | os.PathLike[str]) -> int:
    """The `global_step` of a checkpoint's tree, 0 where it has none; raises CheckpointError as `read_number` does."""
    return int(read_number(tree["global_step"], COUNT_OR_NONE, "global_step", path)) if "global_step" in tree else 0
