"""The .mdl file of Cerebras PyTorch 2.10, read lazily and written whole or not at all, without torch.

The tree of values, the tensors and the metadata belong here; HDF5 itself is in `hdf5`, and which tensors a model has
is known to `model`.
"""

from cerebras_jais.checkpoint.errors import CheckpointError
from cerebras_jais.checkpoint.reader import Checkpoint, open_checkpoint
from cerebras_jais.checkpoint.scalars import read_number, read_step
from cerebras_jais.checkpoint.tensors import LazyTensor, StoredTensor, UnreadableLeaf
from cerebras_jais.checkpoint.writer import create_empty_checkpoint, mark_complete, save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LazyTensor",
    "StoredTensor",
    "UnreadableLeaf",
    "create_empty_checkpoint",
    "mark_complete",
    "open_checkpoint",
    "read_number",
    "read_step",
    "save_checkpoint",
]
