"""The shape of a nested state: the treespec that torch's pytree writes as JSON, parsed and written without torch.

A treespec is `[1, NODE]`; NODE is `{"type": name | null, "context": JSON text | null, "children_spec": [NODE, ...]}`.
The context of a mapping is the list of its keys (integers stay integers); a leaf has neither type nor context nor
children. Source: torch 2.4 utils/_pytree.py, `treespec_dumps`; keys: cerebras.pytorch/utils/nest.py, `recurse_spec`.
"""

import json
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cerebras_jais.checkpoint.errors import CheckpointError

_MAPPINGS: dict[str, type] = {"builtins.dict": dict, "collections.OrderedDict": OrderedDict}
_SEQUENCES: dict[str, type] = {
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.set": set,
    "collections.deque": deque,
}
_NAMES: dict[type, str] = {kind: name for name, kind in (_MAPPINGS | _SEQUENCES).items()}
_KEY_TYPES = (str, int, float, bool, type(None))
# Far below Python's own limit, so that a hostile depth ends in a message; real states are about six deep.
_MAX_DEPTH = 128


@dataclass(frozen=True)
class TreeSpec:
    """One node: a leaf when `kind` is None, else a container with `keys` (mappings only) and `children`."""

    kind: type | None = None
    keys: tuple[Any, ...] | None = None
    children: tuple["TreeSpec", ...] = ()

    @property
    def is_leaf(self) -> bool:
        return self.kind is None


LEAF = TreeSpec()
DROPPED: Any = object()
"""Stands for a leaf that `unflatten` leaves out."""


def flatten(state: Any) -> tuple[list[str], list[Any], TreeSpec]:
    """Take a nested state apart into flat keys ("a.0.b"), leaves in the same order, and its treespec.

    dict, OrderedDict, list, tuple, set and deque of exactly these types are containers; all else is a leaf. Dots inside
    keys are not escaped, so two leaves can claim one flat key: that is refused with a CheckpointError, as are keys that
    JSON cannot carry and a nesting deeper than 128.
    """
    leaves: list[Any] = []
    spec = _flatten(state, leaves, (), frozenset())
    keys = flat_keys(spec)
    refuse_duplicates(keys)
    return keys, leaves, spec


def flat_keys(spec: TreeSpec) -> list[str]:
    """Return the flat key of every leaf, in order."""
    return [".".join(path) for path in _paths(spec, ())]


def refuse_duplicates(keys: Sequence[str]) -> None:
    """Raise CheckpointError when two leaves have the same flat key."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise CheckpointError(f"two leaves are both named '{key}'; rename a key: a dot inside a key is not escaped")
        seen.add(key)


def unflatten(spec: TreeSpec, leaves: Iterator[Any]) -> Any:
    """Build the nested state from its treespec and its leaves in order.

    A leaf that is `DROPPED` is left out of a mapping or set and becomes None in a sequence, whose other positions must
    not move.
    """
    if spec.kind is None:
        return next(leaves)
    values = [unflatten(child, leaves) for child in spec.children]
    if spec.keys is not None:
        return spec.kind((key, value) for key, value in zip(spec.keys, values, strict=True) if value is not DROPPED)
    if spec.kind is set:
        return {value for value in values if value is not DROPPED}
    return spec.kind(None if value is DROPPED else value for value in values)


def dumps(spec: TreeSpec) -> str:
    """Write a treespec as torch 2.4's `treespec_dumps` does, character for character."""
    return json.dumps((1, _to_json(spec)))


def loads(text: str) -> TreeSpec:
    """Parse a treespec; raises CheckpointError when it is malformed or names a container type that is not supported."""
    try:
        protocol, root = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the description of the checkpoint's structure cannot be parsed: {error}") from error
    if protocol != 1:
        raise CheckpointError(f"the checkpoint's structure is described by protocol {protocol!r}; only 1 is known")
    return _from_json(root, 0)


def skeleton(spec: TreeSpec) -> Any:
    """Return the state with "*" for each leaf, or None where JSON cannot show it (sets, deques)."""
    filled = unflatten(spec, iter(lambda: "*", None))
    try:
        json.dumps(filled)
    except TypeError:
        return None
    return filled


def _flatten(value: Any, leaves: list[Any], path: tuple[str, ...], open_ids: frozenset[int]) -> TreeSpec:
    kind = type(value)
    if kind not in _NAMES:
        leaves.append(value)
        return LEAF
    where = ".".join(path) or "the state"
    if id(value) in open_ids:
        raise CheckpointError(f"'{where}' contains itself; a checkpoint cannot hold a cycle")
    if len(path) >= _MAX_DEPTH:
        raise CheckpointError(f"'{where}' is nested deeper than {_MAX_DEPTH}")
    if kind is deque and value.maxlen is not None:
        raise CheckpointError(f"'{where}' is a deque with a maximal length; store a list")
    open_ids |= {id(value)}
    keys = tuple(value) if kind in (dict, OrderedDict) else None
    for key in keys or ():
        if type(key) not in _KEY_TYPES or key != key:
            raise CheckpointError(f"'{where}' has the key {key!r}; keys must be strings or numbers")
    items: Sequence[tuple[Any, Any]] = list(value.items() if keys is not None else enumerate(value))
    children = tuple(_flatten(child, leaves, (*path, str(name)), open_ids) for name, child in items)
    return TreeSpec(kind, keys, children)


def _paths(spec: TreeSpec, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if spec.is_leaf:
        yield path
        return
    names = range(len(spec.children)) if spec.keys is None else spec.keys
    for name, child in zip(names, spec.children, strict=True):
        yield from _paths(child, (*path, str(name)))


def _to_json(spec: TreeSpec) -> dict[str, Any]:
    if spec.kind is None:
        return {"type": None, "context": None, "children_spec": []}
    context = json.dumps(None if spec.keys is None else list(spec.keys))
    return {"type": _NAMES[spec.kind], "context": context, "children_spec": [_to_json(c) for c in spec.children]}


def _from_json(node: Any, depth: int) -> TreeSpec:
    if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
        raise CheckpointError("the description of the checkpoint's structure is malformed")
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"the checkpoint's structure is nested deeper than {_MAX_DEPTH}")
    name, children = node.get("type"), node["children_spec"]
    if name is None:
        if children or node.get("context") is not None:
            raise CheckpointError("the description of the checkpoint's structure has a leaf with content")
        return LEAF
    if not isinstance(name, str) or name not in _MAPPINGS | _SEQUENCES:
        raise CheckpointError(
            f"the checkpoint holds a container of type {name!r}; save it again with dicts, lists and tuples only"
        )
    keys = _keys_from_json(node.get("context"), name, len(children))
    kind = (_MAPPINGS | _SEQUENCES)[name]
    return TreeSpec(kind, keys, tuple(_from_json(child, depth + 1) for child in children))


def _keys_from_json(context: Any, name: str, count: int) -> tuple[Any, ...] | None:
    try:
        keys = json.loads(context)
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the context of a {name} in the checkpoint's structure cannot be parsed") from error
    if name in _SEQUENCES:
        if keys is not None:
            raise CheckpointError(f"a {name} in the checkpoint's structure has the unknown context {keys!r}")
        return None
    if not isinstance(keys, list) or len(keys) != count or not all(isinstance(key, _KEY_TYPES) for key in keys):
        raise CheckpointError(f"the keys of a {name} in the checkpoint's structure do not fit its children")
    if len(set(keys)) != count:
        raise CheckpointError(f"a {name} in the checkpoint's structure has a key twice")
    return tuple(keys)
