"""Open a checkpoint that Cerebras PyTorch 2.10 wrote: its structure at once, its tensors one by one when asked for.

Layout (format 0.5): the root's attribute `__spec__` describes the nested structure; each leaf has an attribute
`<flat key>.__metadata__` with its type, and, when it is a tensor, a dataset of that name; `__SUCCESS__` is
written last. Source: cerebras.pytorch/storage/load.py and serializers.py, cerebras.appliance/storage.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from cerebras_jais.checkpoint import tree as treespec
from cerebras_jais.checkpoint.dtypes import ELEMENT_TYPES, NAME_BY_CODE, ElementType
from cerebras_jais.checkpoint.errors import CheckpointError, as_checkpoint_error
from cerebras_jais.checkpoint.hdf5.guarded import GuardedFile
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.checkpoint.tensors import StoredTensor, UnreadableLeaf
from cerebras_jais.modelzoo_version import RELEASE
from cerebras_jais.wording import suggestion

FORMAT_VERSION = 0.5
ABOUT = ".__metadata__"
"""Ends the name of the attribute that describes a leaf, after its flat key."""
_MAX_ELEMENTS = 1 << 62


class Checkpoint:
    """An open checkpoint; use it in a `with` block, its tensors can be read until the block ends."""

    def __init__(self, file: GuardedFile, tree: Any, leaves: Mapping[str, Any], skipped: tuple[str, ...]) -> None:
        self._file = file
        self.version: float = FORMAT_VERSION
        """Version of the file format."""
        self.tree: Any = tree
        """The nested state as stored; leaves are StoredTensor, UnreadableLeaf, str, int, float, bool or None."""
        self.leaves: Mapping[str, Any] = MappingProxyType(_Leaves(file.path, leaves))
        """The same leaves by flat key, in stored order."""
        tensors = {key: leaf for key, leaf in leaves.items() if isinstance(leaf, StoredTensor)}
        self.tensors: Mapping[str, StoredTensor] = MappingProxyType(_Leaves(file.path, tensors, leaves))
        """The tensors by flat key, aliases included, in stored order."""
        self.skipped_objects: tuple[str, ...] = skipped
        """Flat keys of the leaves that `on_object="skip"` left out."""

    @property
    def path(self) -> Path:
        return self._file.path

    @property
    def metadata(self) -> list[Any]:
        """The `__metadata__` list that a trainer adds (one record per run: version, model_name, params), or []."""
        found = self.tree.get("__metadata__") if isinstance(self.tree, dict) else None
        return found if isinstance(found, list) else []

    def check_unchanged(self) -> None:
        """Raise CheckpointError when the file was written to since it was opened (by its size and its time)."""
        self._file.check_unchanged()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    on_object: Literal["refuse", "skip"] = "refuse",
    descriptions: Descriptions | None = None,
) -> Checkpoint:
    """Open a .mdl checkpoint lazily: structure and headers are read and checked, tensor data is not.

    A leaf that is not read (a pickled object, a tensor in another file, a compiled graph) does not prevent reading the
    others.

    Args:
        path: the file.
        on_object: what is done with such a leaf. "refuse": it is an UnreadableLeaf in the tree whose `read()` raises;
            "skip": it is left out (None inside a list or tuple) and named in `skipped_objects`.
        descriptions: a child that a command started with all of its files; None starts one for this file.

    Raises CheckpointError for a file that is missing, incomplete, damaged, of another format, or whose tensors do not
    fit their descriptions.
    """
    file = GuardedFile(path, descriptions)
    try:
        return _read_structure(file, on_object)
    except BaseException:
        file.close()
        raise


class _Leaves(dict[str, Any]):
    """A dict that explains a missing key."""

    def __init__(self, path: Path, leaves: Mapping[str, Any], everything: Mapping[str, Any] | None = None) -> None:
        super().__init__(leaves)
        self._path = path
        self._everything = everything or leaves

    def __missing__(self, key: str) -> Any:
        other = self._everything.get(key)
        if isinstance(other, UnreadableLeaf):
            return other.read()
        if key in self._everything:
            raise CheckpointError(f"{self._path}: '{key}' is not a tensor but the value {other!r}")
        hint = suggestion(str(key), self, otherwise="`checkpoint-convert inspect` shows what it holds")
        raise CheckpointError(f"{self._path}: has no tensor '{key}'; {hint}")


def _read_structure(file: GuardedFile, on_object: str) -> Checkpoint:
    text = file.attribute("__spec__")
    _check_version(file, file.attribute("__version__"), has_spec=text is not None)
    if not file.attribute("__SUCCESS__"):
        raise CheckpointError(f"{file.path}: was only partly written, its writer was interrupted; use another one")
    with as_checkpoint_error(file.path, "reading its structure"):
        _, dumped = json.loads(text)
    try:
        spec = treespec.loads(dumped)
        keys = treespec.flat_keys(spec)
        treespec.refuse_duplicates(keys)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    if spec.is_leaf:
        raise CheckpointError(f"{file.path}: holds a single value, not a state of named tensors")

    found = {key: _read_leaf(file, key) for key in keys}
    leaves = {key: _resolve(file, key, found) for key in keys}
    skipped: tuple[str, ...] = ()
    if on_object == "skip":
        skipped = tuple(key for key, leaf in leaves.items() if isinstance(leaf, UnreadableLeaf))
    kept = leaves | dict.fromkeys(skipped, treespec.DROPPED)
    with as_checkpoint_error(file.path, "building its structure"):
        tree = treespec.unflatten(spec, iter(kept.values()))
    return Checkpoint(file, tree, leaves, skipped)


def _check_version(file: GuardedFile, version: Any, has_spec: bool) -> None:
    if version is None and not has_spec:
        raise CheckpointError(f"{file.path}: is an HDF5 file but not a Cerebras checkpoint (it has no '__spec__')")
    if not isinstance(version, (int, float)) or version < FORMAT_VERSION:
        raise CheckpointError(
            f"{file.path}: has the old format {version} of earlier releases, which holds pickled code; "
            f"load and save it once with cerebras.pytorch {RELEASE} to bring it to format {FORMAT_VERSION}"
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file.path}: has the format {version}; only {FORMAT_VERSION}, of cerebras.pytorch {RELEASE}, is known"
        )


class _Link(str):
    """The flat key that a leaf is another name for, before it is resolved."""


def _read_leaf(file: GuardedFile, key: str) -> Any:
    text = file.attribute(f"{key}{ABOUT}")
    if not isinstance(text, str):
        raise CheckpointError(f"{file.path}: has no metadata for '{key}'; the file is damaged")
    with as_checkpoint_error(file.path, f"reading the description of '{key}'"):
        record = json.loads(text)
        if key in record["__objects__"]:
            return _leaf_from(file, key, record[f"{key}{ABOUT}"])
        return _refuse_nested(file, key, record[f"{key}.1{ABOUT}"]["__TYPE__"])


def _leaf_from(file: GuardedFile, key: str, about: dict[str, Any]) -> Any:
    kind = about["__TYPE__"]
    if kind == "ScalarSerializer":
        return _typed(file, key, about["scalar_value"], (bool, int, float))
    if kind == "StringSerializer":
        return _typed(file, key, about["string_value"], (str,))
    if kind == "NoneSerializer":
        return None
    if kind == "LinkedObject":
        return _Link(_typed(file, key, about["key"], (str,)))
    if kind == "DeferredFullTensor":
        value = _typed(file, key, about["fill_value"], (bool, int, float, type(None)))
        shape, element = _shape(file, key, about["shape"]), _torch_type(file, key, about["dtype"])
        if value is not None and element.memory.kind in "iu":
            limits = np.iinfo(element.memory)
            if not limits.min <= value <= limits.max:
                raise CheckpointError(f"{file.path}: '{key}' is filled with {value}, which {element.name} cannot hold")
        return StoredTensor(key, shape, element.name, fill_value=value, file=file)
    if kind == "TorchTensorSerializer":
        return _torch_tensor(file, key, about)
    if kind == "NumpyArraySerializer":
        return _numpy_array(file, key, about)
    if kind == "ObjectSerializer":
        return UnreadableLeaf(key, "a pickled Python object, which is never unpickled", file)
    if "deferred_object_cls" in about:
        return UnreadableLeaf(key, f"stored in another file, {about['path']}, which is not followed", file)
    return UnreadableLeaf(key, f"of the unknown kind {kind!r}", file)


def _refuse_nested(file: GuardedFile, key: str, kind: Any) -> UnreadableLeaf:
    # A nested leaf is the pair (parts, metadata); the metadata's place in it is 1.
    if kind == "DeferredGraphTensor":
        return UnreadableLeaf(key, "a tensor still to be computed by a compiled graph", file)
    if kind == "DeferredTorchTensor":
        return UnreadableLeaf(key, "a tensor stored in another file, which is not followed", file)
    return UnreadableLeaf(key, f"of the unknown kind {kind!r}", file)


def _torch_tensor(file: GuardedFile, key: str, about: dict[str, Any]) -> StoredTensor:
    (stated,) = about["shapes"]
    shape = _shape(file, key, stated)
    if "dtypes" in about:
        element = _torch_type(file, key, about["dtypes"][0])
    else:
        element = ELEMENT_TYPES[NAME_BY_CODE[about["rtfx_dtypes"][0]]]
    header = file.header(key)
    if header.shape != shape or header.dtype != element.disk:
        raise CheckpointError(
            f"{file.path}: tensor '{key}' should be {element.name} {list(shape)} but its data is "
            f"{header.type_name} {list(header.shape)}; the file is damaged"
        )
    return StoredTensor(key, shape, element.name, header=header, file=file)


def _numpy_array(file: GuardedFile, key: str, about: dict[str, Any]) -> StoredTensor | UnreadableLeaf:
    header = file.header(key)
    if header.dtype is None:
        return UnreadableLeaf(key, f"an array of the type {header.type_name}, which is not read", file)
    is_bfloat16 = about.get("is_bfloat16") and header.dtype == ELEMENT_TYPES["bfloat16"].disk
    element = ELEMENT_TYPES["bfloat16" if is_bfloat16 else header.dtype.name]
    return StoredTensor(key, header.shape, element.name, kind="numpy", header=header, file=file)


def _torch_type(file: GuardedFile, key: str, name: Any) -> ElementType:
    prefix, _, short = str(name).partition(".")
    if prefix != "torch" or short not in ELEMENT_TYPES:
        raise CheckpointError(f"{file.path}: tensor '{key}' has the unknown element type {name!r}")
    return ELEMENT_TYPES[short]


def _shape(file: GuardedFile, key: str, stated: Any) -> tuple[int, ...]:
    sound = isinstance(stated, list) and all(type(size) is int and size >= 0 for size in stated)
    if not sound or len(stated) > 32 or math.prod(stated) > _MAX_ELEMENTS:
        raise CheckpointError(f"{file.path}: tensor '{key}' claims the impossible shape {str(stated)[:80]}")
    return tuple(stated)


def _typed(file: GuardedFile, key: str, value: Any, types: tuple[type, ...]) -> Any:
    if not isinstance(value, types):
        raise CheckpointError(
            f"{file.path}: '{key}' holds a {type(value).__name__}, which does not belong there; it is damaged"
        )
    return value


def _resolve(file: GuardedFile, key: str, found: Mapping[str, Any]) -> Any:
    leaf, target, seen = found[key], key, {key}
    while isinstance(leaf, _Link):
        target = str(leaf)
        if target in seen or target not in found:
            problem = "which links back to itself" if target in seen else "which does not exist"
            raise CheckpointError(f"{file.path}: '{key}' is a link to '{target}', {problem}; the file is damaged")
        seen.add(target)
        leaf = found[target]
    if target == key:
        return leaf
    if isinstance(leaf, StoredTensor):
        return StoredTensor(
            key, leaf.shape, leaf.dtype, leaf.kind, target, leaf.fill_value, header=leaf.header, file=leaf.file
        )
    return UnreadableLeaf(key, leaf.reason, file) if isinstance(leaf, UnreadableLeaf) else leaf
