"""Write a checkpoint that Cerebras PyTorch 2.10 and the Model Zoo's trainer load: whole, or not at all.

By default every tensor is one contiguous range of the file whose place is fixed before the first byte of data moves,
so the ranges can also be filled by others (`create_empty_checkpoint`, then `mark_complete`). HDF5 writes the structure
only, the data goes past it. Layout and metadata: cerebras.pytorch/storage/save.py and serializers.py of 2.10.
"""

import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cerebras_jais.atomic import replacing
from cerebras_jais.checkpoint import tree as treespec
from cerebras_jais.checkpoint.dtypes import ELEMENT_TYPES, ElementType, element_type_of
from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error
from cerebras_jais.checkpoint.hdf5.isolate import note_own
from cerebras_jais.checkpoint.hdf5.write import writing
from cerebras_jais.checkpoint.packed_writer import chunk_shape, filling
from cerebras_jais.checkpoint.reader import ABOUT, FORMAT_VERSION
from cerebras_jais.checkpoint.tensors import Kind, LazyTensor, StoredTensor, UnreadableLeaf
from cerebras_jais.modelzoo_version import VERSION

# The release whose format this is; loaders look at the version in the state's own `__metadata__`, not at this one.
# Rows of a stored tensor are copied in pieces of about this size, so that a big one is never in memory whole.
_COPY_BYTES = 64 << 20
# Threads that pack beside the one that reads and writes.
_PACKING_THREADS = min(4, os.cpu_count() or 1)
# Bytes on the disk for the structure: the texts about one leaf, its header and their indices.
_STRUCTURE_BYTES = 4096

if TYPE_CHECKING:
    import h5py

Source = np.ndarray | StoredTensor | LazyTensor
Compression = Literal["lz4"] | None


def save_checkpoint(
    path: str | os.PathLike[str], state: Any, *, compression: Compression = None, overwrite: bool = False
) -> None:
    """Write a nested state to a new .mdl file, one tensor at a time.

    `state` nests dict, OrderedDict, list, tuple (set, deque); its leaves are np.ndarray (bfloat16: ml_dtypes),
    StoredTensor of an open checkpoint, LazyTensor, bool, int, float, str or None. An array becomes a torch.Tensor when
    `cerebras.pytorch.load` reads it, a 0-d array a 0-d tensor, a Python number a Python number. The same tensor object
    at several places, or two names of one stored tensor, is written once and linked. `compression="lz4"` packs the data
    as Cerebras does. The file appears at `path` complete and flushed to the disk, or not at all.

    Raises CheckpointError, before anything is written, for a leaf or key that the format cannot hold, for an existing
    path unless `overwrite`, and for a disk without enough space; an exception of a LazyTensor passes through unchanged.
    """
    plan = _plan(path, state)
    for tensor in plan.tensors:
        if isinstance(tensor.source, LazyTensor) and tensor.source.read is None:
            raise CheckpointError(f"{path}: tensor '{tensor.key}' is a LazyTensor without `read`; give it one")
    with replacing(path, overwrite=overwrite, size=plan.size, error=CheckpointError) as temporary:
        offsets = _create(temporary, plan, compression)
        _write_ranges(temporary, plan, offsets)
        if compression is not None:
            _write_chunks(temporary, plan, offsets)
        mark_complete(temporary)
    note_own(path)


def create_empty_checkpoint(
    path: str | os.PathLike[str], state: Any, *, compression: Compression = None, complete: bool = False
) -> dict[str, int]:
    """Create the file with everything but the tensors' bytes and return where in it each tensor's bytes belong.

    `state` as for `save_checkpoint`; nothing of its tensors is read, so LazyTensor needs no `read`. The result maps
    flat key to the byte offset of the tensor's row-major little-endian data (bfloat16 as its bit pattern, bool as one
    byte); links, constants and empty tensors have none, nor have those that `compression="lz4"` packs (all but 0-d
    ones), which are filled by `filling`. One state gives the same bytes every time. The file cannot be loaded until
    `mark_complete`; use it on the temporary path that `replacing` yields. `complete` sets that mark at once, for a
    caller that fills the file where no reader finds it and moves it when it is full. Raises CheckpointError when
    `path` exists.
    """
    return _create(Path(path), _plan(path, state), compression, complete)


def mark_complete(path: str | os.PathLike[str]) -> None:
    """Set the mark of a completely written checkpoint, without which no reader accepts it."""
    with as_checkpoint_error(Path(path), "marking it complete"), writing(Path(path), create=False) as file:
        file.attrs["__SUCCESS__"] = True


@dataclass(frozen=True)
class _PlannedTensor:
    key: str
    shape: tuple[int, ...]
    element: ElementType
    about: dict[str, Any]
    source: Source

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.element.itemsize


@dataclass(frozen=True)
class _Plan:
    attributes: dict[str, str]
    tensors: list[_PlannedTensor]

    @property
    def size(self) -> int:
        texts = sum(len(text) for text in self.attributes.values())
        return sum(t.nbytes for t in self.tensors) + texts + _STRUCTURE_BYTES * len(self.attributes)


def _plan(path: str | os.PathLike[str], state: Any) -> _Plan:
    """Check the whole state and decide what is written where, without reading a tensor."""
    try:
        keys, leaves, spec = treespec.flatten(state)
        if spec.is_leaf:
            raise CheckpointError("a checkpoint is a dict or list of values, not a single value")
        if not keys:
            raise CheckpointError("the state is empty; there is nothing to write")
        attributes = {"__spec__": json.dumps([treespec.skeleton(spec), treespec.dumps(spec)])}
        tensors: list[_PlannedTensor] = []
        written: dict[Any, str] = {}
        for key, leaf in zip(keys, leaves, strict=True):
            about = _about_plain(key, leaf)
            if about is None and (first := written.setdefault(_identity(leaf), key)) != key:
                about = {"key": first, "__LINKED__": True, "__TYPE__": "LinkedObject", "__NONE__": True}
            if about is None:
                tensor = _plan_tensor(key, leaf)
                about = tensor.about
                tensors.append(tensor)
            attributes[f"{key}{ABOUT}"] = _describe(key, about)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return _Plan(attributes, tensors)


def _describe(key: str, about: dict[str, Any]) -> str:
    own = treespec.TreeSpec(dict, (key,), (treespec.LEAF,))
    record = {
        "__spec__": [{key: "*"}, treespec.dumps(own)],
        "__objects__": [key],
        f"{key}{ABOUT}": about,
    }
    try:
        text = json.dumps(record)
        key.encode()
    except ValueError as error:
        raise CheckpointError(f"'{key}' cannot be stored: {error}") from error
    if "\0" in key:
        raise CheckpointError(f"{key!r} cannot be stored: a key must not contain the character NUL")
    return text


def _about_plain(key: str, leaf: Any) -> dict[str, Any] | None:
    """Return the metadata of a leaf that has no data of its own; None for a tensor that has."""
    if type(leaf) in (bool, int, float):
        return {"scalar_value": leaf, "__TYPE__": "ScalarSerializer", "__NONE__": True}
    if type(leaf) is str:
        return {"string_value": leaf, "__TYPE__": "StringSerializer", "__NONE__": True}
    if leaf is None:
        return {"__TYPE__": "NoneSerializer", "__NONE__": True}
    if isinstance(leaf, StoredTensor) and leaf.is_constant:
        filled = {"shape": list(leaf.shape), "dtype": f"torch.{leaf.dtype}", "fill_value": leaf.fill_value}
        return filled | {"__TYPE__": "DeferredFullTensor", "__NONE__": True}
    if isinstance(leaf, (np.ndarray, StoredTensor, LazyTensor)):
        return None
    if isinstance(leaf, UnreadableLeaf):
        leaf.read()
    raise CheckpointError(
        f"'{key}' is a {type(leaf).__module__}.{type(leaf).__qualname__}, which a checkpoint cannot hold; "
        "give a numpy array, a Python number, a text or None"
    )


def _identity(leaf: Source) -> Any:
    if isinstance(leaf, StoredTensor):
        return id(leaf.file), leaf.linked_to or leaf.key
    return id(leaf)


def _plan_tensor(key: str, leaf: Source) -> _PlannedTensor:
    if "/" in key or key in ("", "."):
        raise CheckpointError(f"the tensor name '{key}' cannot be stored; it must not be empty or contain '/'")
    kind: Kind = "torch"
    if isinstance(leaf, np.ndarray):
        element = element_type_of(leaf.dtype)
        dtype = str(leaf.dtype)
    else:
        element, dtype, kind = ELEMENT_TYPES.get(leaf.dtype), leaf.dtype, leaf.kind
    if element is None or (element.code is None and kind == "torch"):
        raise CheckpointError(f"tensor '{key}' is of type {dtype}, which a checkpoint cannot hold; convert it first")
    shape = tuple(int(size) for size in leaf.shape)
    if any(size < 0 for size in shape):
        raise CheckpointError(f"tensor '{key}' has the impossible shape {shape}")
    about: dict[str, Any]
    if kind == "numpy":
        about = {"is_bfloat16": element.name == "bfloat16", "__TYPE__": "NumpyArraySerializer", "__NUMPY__": True}
    else:
        about = {
            "__TORCH__": True,
            "shapes": [list(shape)],
            "dtypes": [f"torch.{element.name}"],
            "rtfx_dtypes": [element.code],
            "__TYPE__": "TorchTensorSerializer",
            "__NUMPY__": True,
        }
    return _PlannedTensor(key, shape, element, about | {"compressed": False}, leaf)


def _create(path: Path, plan: _Plan, compression: Compression, complete: bool = False) -> dict[str, int]:
    """Write the structure: attributes, and datasets whose place is taken but not filled. Returns their offsets."""
    import h5py

    offsets: dict[str, int] = {}
    with as_checkpoint_error(path, "creating it"), writing(path, create=True) as file:
        attributes = file.attrs
        attributes["__version__"] = FORMAT_VERSION
        attributes["__cstorch_version__"] = VERSION
        for name, text in plan.attributes.items():
            attributes.create(name, text, dtype=h5py.string_dtype())
        for tensor in plan.tensors:
            if compression == "lz4" and tensor.nbytes and tensor.shape:
                import hdf5plugin  # here, since its import takes as long as that of numpy

                dataset = file.create_dataset(
                    tensor.key,
                    tensor.shape,
                    tensor.element.disk,
                    chunks=chunk_shape(tensor.shape),
                    **hdf5plugin.LZ4(),
                )
            else:
                dataset = _create_contiguous(file, tensor)
                offset = dataset.id.get_offset()
                if tensor.nbytes:
                    offsets[tensor.key] = offset
            dataset.attrs.update(tensor.about)
        if complete:
            attributes["__SUCCESS__"] = True
    return offsets


def _create_contiguous(file: "h5py.File", tensor: _PlannedTensor) -> "h5py.Dataset":
    import h5py

    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    plan.set_obj_track_times(False)  # one state gives the same bytes every time
    disk = h5py.h5t.py_create(tensor.element.disk, logical=True)
    space = h5py.h5s.create_simple(tensor.shape) if tensor.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    return h5py.Dataset(h5py.h5d.create(file.id, tensor.key.encode(), disk, space, plan))


def _pieces(path: Path, tensor: _PlannedTensor, unit: int | None = None) -> Iterator[np.ndarray]:
    """Yield the tensor's data in order, as row-major little-endian arrays of whole rows in the disk's dtype.

    A piece that is not the last has a multiple of `unit` rows, or of what is unpacked together at the source.
    """
    source, element = tensor.source, tensor.element
    if isinstance(source, StoredTensor):
        if not source.shape or source.nbytes <= _COPY_BYTES:
            yield source.read().view(element.disk)
            return
        unit = unit or source.chunk_rows or 1
        rows = max(1, _COPY_BYTES * source.shape[0] // source.nbytes // unit) * unit
        for start in range(0, source.shape[0], rows):
            yield source.read_rows(start, min(start + rows, source.shape[0])).view(element.disk)
        return
    if isinstance(source, np.ndarray):
        values = source
    else:
        assert source.read is not None  # checked before anything was written
        values = source.read()
    if not isinstance(values, np.ndarray) or values.shape != tensor.shape or element_type_of(values.dtype) != element:
        given = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
        raise CheckpointError(
            f"{path}: tensor '{tensor.key}' should be {element.name} {tensor.shape} but its source is {given}"
        )
    yield np.require(values, element.memory, "C").view(element.disk)


def _write_ranges(path: Path, plan: _Plan, offsets: dict[str, int]) -> None:
    with open(path, "r+b", buffering=0) as file:
        for tensor in plan.tensors:
            offset = offsets.get(tensor.key, -1)
            for piece in _pieces(path, tensor) if tensor.key in offsets else ():
                left = piece.reshape(-1).view(np.uint8).data
                while left:
                    with as_checkpoint_error(path, f"writing tensor '{tensor.key}'"):
                        count = os.pwrite(file.fileno(), left, offset)
                    left, offset = left[count:], offset + count


def _write_chunks(path: Path, plan: _Plan, offsets: dict[str, int]) -> None:
    with ThreadPoolExecutor(_PACKING_THREADS) as pool, filling(path, packing=pool.map) as filler:
        for tensor in plan.tensors:
            if not tensor.nbytes or tensor.key in offsets:
                continue
            start = 0
            for piece in _pieces(path, tensor, unit=chunk_shape(tensor.shape)[0]):
                filler.write(tensor.key, (start, *(0 for _ in tensor.shape[1:])), piece)
                start += len(piece)
