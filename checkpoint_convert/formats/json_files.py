"""JSON objects in files: read strictly, written with indentation and flushed to the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import write_text
from cerebras_jais.files import MIB, read_bytes
from cerebras_jais.ranges import shown
from checkpoint_convert.errors import ConversionError

_LARGEST = 64 * MIB  # an index names a tensor in 100 bytes


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; ConversionError for no object, a key twice, NaN or Infinity."""
    return parse_object(path, read_bytes(path, _LARGEST, ConversionError))


def parse_object(path: Path, text: bytes) -> dict[str, Any]:
    """Parse the content of a file as read_json does; `path` is its name in messages."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ConversionError(f"{path}: its JSON has a key twice; the file is damaged, download it again")
        return found

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{shown(number)} is no number of JSON")
        return value

    try:  # json itself would take UTF-16 too
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once, parse_float=finite, parse_constant=finite)
        if b"\\u" in text:  # half of a surrogate pair cannot be written as UTF-8
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path}: its JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConversionError(f"{path}: its JSON is not an object; the file is damaged, download it again")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with indentation, flushed to the disk."""
    write_text(path, json_text(value))


def json_text(value: Mapping[str, Any]) -> str:
    """A JSON object with indentation, as write_json writes it."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
