"""JSON objects in files: read strictly, written readable and flushed to the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import write_text
from cerebras_jais.files import MIB, read_bytes
from checkpoint_convert.errors import ConversionError

_LARGEST = 64 * MIB  # an index names a tensor in 100 bytes


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ConversionError when it is not one or names a key twice."""
    return parse_object(path, read_bytes(path, _LARGEST, ConversionError))


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """The JSON object that a file has as UTF-8 text; ConversionError when it is not one or names a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ConversionError(f"{path}: its JSON names a key twice; it is damaged")
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)  # json itself would take UTF-16 too
        if b"\\u" in text:  # may be half of a character, which nothing can write
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: its JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: its JSON is not an object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, readable, flushed to the disk."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
