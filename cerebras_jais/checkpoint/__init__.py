"""The .mdl file of Cerebras PyTorch 2.10: read lazily, written whole or not at all, without any Cerebras package."""

from cerebras_jais.checkpoint.errors import CheckpointError
from cerebras_jais.checkpoint.files import replacing
from cerebras_jais.checkpoint.filling import Filler, filling
from cerebras_jais.checkpoint.leaves import LazyTensor, RefusedLeaf, StoredTensor
from cerebras_jais.checkpoint.reader import Checkpoint, open_checkpoint
from cerebras_jais.checkpoint.writer import lay_out_checkpoint, mark_complete, save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Filler",
    "LazyTensor",
    "RefusedLeaf",
    "StoredTensor",
    "filling",
    "lay_out_checkpoint",
    "mark_complete",
    "open_checkpoint",
    "replacing",
    "save_checkpoint",
]
