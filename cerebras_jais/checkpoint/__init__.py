"""The .mdl file of Cerebras PyTorch 2.10, read lazily and written whole or not at all, without any Cerebras package.

The tree of values, the tensors and the metadata belong here; HDF5 itself is in `hdf5`, and which tensors a model has
is known to `model`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cerebras_jais.atomic import replacing  # noqa: F401
    from cerebras_jais.checkpoint.errors import CheckpointError  # noqa: F401
    from cerebras_jais.checkpoint.reader import Checkpoint, open_checkpoint  # noqa: F401
    from cerebras_jais.checkpoint.scalars import read_number, read_step  # noqa: F401
    from cerebras_jais.checkpoint.tensors import LazyTensor, StoredTensor, UnreadableLeaf  # noqa: F401
    from cerebras_jais.checkpoint.writer import create_empty_checkpoint, mark_complete, save_checkpoint  # noqa: F401

_HOMES = {
    "Checkpoint": "reader",
    "CheckpointError": "errors",
    "LazyTensor": "tensors",
    "UnreadableLeaf": "tensors",
    "StoredTensor": "tensors",
    "create_empty_checkpoint": "writer",
    "mark_complete": "writer",
    "open_checkpoint": "reader",
    "read_number": "scalars",
    "read_step": "scalars",
    "replacing": "cerebras_jais.atomic",
    "save_checkpoint": "writer",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name] if "." in _HOMES[name] else f"{__name__}.{_HOMES[name]}"), name)
