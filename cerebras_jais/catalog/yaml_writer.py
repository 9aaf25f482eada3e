"""Nested mappings to YAML that people read: keys as ordered, comments beside values, short lists on one line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cerebras_jais.catalog.types import Sourced


@dataclass(frozen=True)
class Note:
    """A value with a comment beside it."""

    value: Any
    comment: str


@dataclass(frozen=True)
class Anchor:
    """A mapping that later ones repeat as `Alias` of its name."""

    name: str
    value: Any


@dataclass(frozen=True)
class Alias:
    """What the anchor of this name holds."""

    name: str


@dataclass(frozen=True)
class Remark:
    """A comment on a line of its own, above the key it is listed before."""

    text: str


_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def to_yaml(tree: Mapping[str, Any], header: Sequence[str] = ()) -> str:
    """The YAML text of a mapping; `header` becomes comment lines at the top.

    A key whose value is a Remark is a comment alone. Floats are written so that YAML 1.1 takes them for floats.
    """
    lines = [f"# {line}".rstrip() for line in header]
    return "\n".join([*lines, *_mapping(tree, 0)]) + "\n"


def _mapping(tree: Mapping[str, Any], indent: int) -> list[str]:
    lines: list[str] = []
    for key, node in tree.items():
        if isinstance(node, Remark):
            lines.append(f"{' ' * indent}# {node.text}")
            continue
        value, comment, anchor = _unwrapped(node)
        head = f"{' ' * indent}{key}:" + (f" &{anchor}" if anchor else "")
        tail = f" # {comment}" if comment else ""
        if isinstance(value, Mapping) and value:
            lines += [head + tail, *_mapping(value, indent + 2)]
        elif _is_block(value):
            lines += [head + tail, *_items(value, indent)]
        else:
            lines.append(f"{head} {_inline(value)}{tail}")
    return lines


def _items(items: Sequence[Any], indent: int) -> list[str]:
    lines: list[str] = []
    for item in items:
        first, *rest = _mapping(item, indent + 2)
        lines += [f"{' ' * indent}- {first.lstrip()}", *rest]
    return lines


def _unwrapped(node: Any) -> tuple[Any, str, str]:
    if isinstance(node, Note):
        value, comment, anchor = _unwrapped(node.value)
        return value, "; ".join(filter(None, (node.comment, comment))), anchor
    if isinstance(node, Sourced):
        return node.value, f"{node.origin}: {node.why}" if node.why else "", ""
    if isinstance(node, Anchor):
        return node.value, "", node.name
    return node, "", ""


def _is_block(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def _inline(value: Any) -> str:
    if isinstance(value, Alias):
        return f"*{value.name}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, Mapping):
        return "{}"
    if isinstance(value, str) and (not _PLAIN.fullmatch(value) or value.lower() in _WORDS):
        return "'" + value.replace("'", "''") + "'"
    return str(value)
