"""GGUF files: the header is read strictly; new files get their full size and header before tensors are written.

Format (version 3): magic, version, number of tensors, number of keys; the keys with typed values; for each tensor its
name, its sizes (the last axis first), element type and offset; then the data, each tensor at a multiple of the
alignment. Integers are little-endian, texts are preceded by their length. Types and their numbers are those of the
package `gguf`. Its reader trusts files, so this module has its own.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_VERSION, GGMLQuantizationType, GGUFValueType
from gguf.quants import dequantize, quantize

from cerebras_jais.atomic import sync
from cerebras_jais.files import MIB, open_regular
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.tensors import FileTensor, Shape

MAGIC = b"GGUF"
KINDS = ("F32", "F16", "Q8_0", "Q4_0")
"""Element types, as GGUF names them."""
_KIND_OF = {int(GGMLQuantizationType[kind]): kind for kind in KINDS}
_LARGEST_HEADER = 64 * MIB  # a vocabulary of 250,000 tokens takes a quarter
_MOST_ENTRIES = 4_000_000  # of one array; no vocabulary has as many tokens or merges
_LONGEST_NAME = 63  # bytes of a tensor's name in llama.cpp
_LONGEST_KEY = 65535
_MOST_AXES = 4
_LARGEST_ALIGNMENT = 1 << 16

_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<B",
}

Value = str | bool | int | float | list[str] | list[int] | list[float]
"""A value of the metadata; whole numbers are written as uint32, in lists as int32, other numbers as float32."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: shape with the last axis last, and its element type."""

    name: str
    shape: Shape
    kind: str
    """One of KINDS."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of one element of a vector."""
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self._columns // block * size

    @property
    def _columns(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // self._columns * self.row_bytes

    def stored(self, path: Path, offset: int) -> FileTensor:
        """Its bytes in a file, one row of bytes for each of its rows, or for each element of a vector."""
        rows = math.prod(self.shape) // self._columns
        return FileTensor(self.name, (rows, self.row_bytes), "uint8", path, offset)


def fits(kind: str, shape: Shape) -> bool:
    """Whether a tensor can have an element type: the rows of a matrix are whole blocks of it, a vector has none."""
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return block == 1 or (len(shape) > 1 and shape[-1] % block == 0)


def encode(values: np.ndarray, kind: str) -> np.ndarray:
    """Values as GGUF stores them.

    Args:
        values: [rows, columns] or [elements], float32 or float16; columns are whole blocks of the type.
        kind: one of KINDS. Numbers that float16 cannot represent become infinite.

    Returns:
        uint8 [rows, bytes of a row].
    """
    rows = values.reshape(len(values), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        coded = np.ascontiguousarray(quantize(rows, GGMLQuantizationType[kind]))
    return coded.view(np.uint8).reshape(len(rows), -1)


def decode(stored: np.ndarray, kind: str) -> np.ndarray:
    """The float32 values [rows, columns] of the bytes uint8 [rows, bytes of a row]."""
    with np.errstate(over="ignore", invalid="ignore"):
        values: np.ndarray = dequantize(np.ascontiguousarray(stored), GGMLQuantizationType[kind])
    return values.reshape(len(stored), -1)


# ---- writing --------------------------------------------------------------------------------------------------------


def header(metadata: Mapping[str, Value], tensors: Iterable[GgufTensor]) -> bytes:
    """Everything before the data, padded to where the data begins."""
    tensors = tuple(tensors)
    parts = [MAGIC, struct.pack("<IQQ", GGUF_VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), value_bytes(value)]
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]
        parts += [_text(tensor.name), struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)]
        parts.append(struct.pack("<IQ", GGMLQuantizationType[tensor.kind], offset))
        offset += _padded(tensor.nbytes)
    content = b"".join(parts)
    return content.ljust(_padded(len(content)), b"\0")


def value_bytes(value: Value) -> bytes:
    """A value of the metadata as it stands in a file: its type and its content."""
    if isinstance(value, list):
        kind = _type_of(value[0], GGUFValueType.INT32)
        start = struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(value))
        if kind is GGUFValueType.STRING:
            return start + b"".join(_text(str(item)) for item in value)
        return start + np.array(value, "<f4" if kind is GGUFValueType.FLOAT32 else "<i4").tobytes()
    kind = _type_of(value, GGUFValueType.UINT32)
    content = _text(value) if isinstance(value, str) else struct.pack(_SCALARS[kind], value)
    return struct.pack("<I", kind) + content


def _type_of(value: Any, whole: GGUFValueType) -> GGUFValueType:
    if isinstance(value, str):
        return GGUFValueType.STRING
    if isinstance(value, bool):
        return GGUFValueType.BOOL
    return GGUFValueType.FLOAT32 if isinstance(value, float) else whole


def _text(text: str) -> bytes:
    content = text.encode("utf-8")
    return struct.pack("<Q", len(content)) + content


def _padded(size: int, alignment: int = GGUF_DEFAULT_ALIGNMENT) -> int:
    return -(-size // alignment) * alignment


def create_file(path: Path, metadata: Mapping[str, Value], tensors: Iterable[GgufTensor]) -> None:
    """Create a file with its header and full size, without data; no file of the name may exist."""
    tensors = tuple(tensors)
    start = header(metadata, tensors)
    with open(path, "xb") as file:
        file.write(start)
        file.truncate(len(start) + sum(_padded(tensor.nbytes) for tensor in tensors))
    sync(path)


def stored_tensors(path: Path, metadata: Mapping[str, Value], tensors: Iterable[GgufTensor]) -> dict[str, FileTensor]:
    """The bytes of the tensors in a file that `create_file` made, by name."""
    tensors = tuple(tensors)
    at = len(header(metadata, tensors))
    found: dict[str, FileTensor] = {}
    for tensor in tensors:
        found[tensor.name] = tensor.stored(path, at)
        at += _padded(tensor.nbytes)
    return found


# ---- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GgufFile:
    """The header of a GGUF file."""

    path: Path
    metadata: Mapping[str, bytes]
    """Key -> the value as it stands in the file (`value_bytes`, `shown_value`)."""
    tensors: Mapping[str, GgufTensor]
    stored: Mapping[str, FileTensor]
    """The bytes of each tensor."""


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a file and check it against the size of the file; no data is read.

    Raises:
        ConversionError: the file is missing, truncated, damaged, or has what `to-gguf` never writes: another version or
            byte order, another element type, an array of arrays.
    """
    with open_regular(path, ConversionError) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            content = file.read(min(size, _LARGEST_HEADER))
        except OSError as error:
            raise ConversionError(f"{path}: cannot be read: {error.strerror}") from error
    reader = _Reader(path, content, size)
    if reader.take(4) != MAGIC:
        raise ConversionError(f"{path}: is not a GGUF file; check the name, or convert the model again")
    version, tensor_count, key_count = reader.numbers("<IQQ")
    if version != GGUF_VERSION:
        raise ConversionError(
            f"{path}: is GGUF of version {version} or of another byte order; only version {GGUF_VERSION}, "
            "little-endian, is supported"
        )
    metadata: dict[str, bytes] = {}
    for _ in range(key_count):
        key = reader.text(_LONGEST_KEY, "a key")
        if key in metadata:
            raise reader.damage(f"the key {key[:100]!r} twice")
        metadata[key] = reader.value(key)
    alignment = _alignment(reader, metadata)
    tensors: dict[str, GgufTensor] = {}
    offset = 0
    for _ in range(tensor_count):
        tensor, begin = reader.tensor()
        if tensor.name in tensors:
            raise reader.damage(f"the tensor {tensor.name!r} twice")
        if begin != offset:
            raise reader.damage(f"the tensor {tensor.name!r} where it overlaps another or leaves a gap")
        tensors[tensor.name] = tensor
        offset += _padded(tensor.nbytes, alignment)
    start = _padded(reader.at, alignment)
    last = next(reversed(tensors.values()), None)
    unpadded = start + offset - (_padded(last.nbytes, alignment) - last.nbytes if last else 0)
    if size not in (unpadded, start + offset):
        raise ConversionError(
            f"{path}: has {size} bytes but its header describes {start + offset}; it is truncated or damaged, convert "
            "the model or download it again"
        )
    stored: dict[str, FileTensor] = {}
    at = start
    for name, tensor in tensors.items():
        stored[name] = tensor.stored(path, at)
        at += _padded(tensor.nbytes, alignment)
    return GgufFile(path, metadata, tensors, stored)


def _alignment(reader: _Reader, metadata: Mapping[str, bytes]) -> int:
    kept = metadata.get("general.alignment")
    if kept is None:
        return GGUF_DEFAULT_ALIGNMENT
    alignment = struct.unpack("<I", kept[4:])[0] if kept[:4] == struct.pack("<I", GGUFValueType.UINT32) else 0
    if not 8 <= alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise reader.damage("an alignment that is no power of two between 8 and 65536")
    return alignment


def shown_value(stored: bytes | None) -> str:
    """A value of the metadata for a message, shortened."""
    if stored is None:
        return "none"
    kind = GGUFValueType(struct.unpack("<I", stored[:4])[0])
    if kind is GGUFValueType.ARRAY:
        return f"an array of {struct.unpack('<Q', stored[8:16])[0]:,}"
    if kind is GGUFValueType.STRING:
        text = stored[12:].decode("utf-8", "replace")
        return repr(text if len(text) <= 60 else f"{text[:60]}…")
    (value,) = struct.unpack(_SCALARS[kind], stored[4:])
    return f"{value:g}" if isinstance(value, float) else str(bool(value) if kind is GGUFValueType.BOOL else value)


class _Reader:
    """Reads a header from front to back; whatever does not fit is ConversionError."""

    def __init__(self, path: Path, content: bytes, size: int) -> None:
        self._path = path
        self._content = content
        self._whole = len(content) == size
        self.at = 0

    def damage(self, problem: str) -> ConversionError:
        return ConversionError(
            f"{self._path}: its header has {problem}; the file is damaged, convert the model or download it again"
        )

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > len(self._content) - self.at:
            if self._whole:
                raise ConversionError(
                    f"{self._path}: ends inside its header; it is truncated or damaged, convert the model or download "
                    "it again"
                )
            raise ConversionError(f"{self._path}: its header is larger than {_LARGEST_HEADER // MIB} MiB, the limit")
        self.at += count
        return self._content[self.at - count : self.at]

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def text(self, longest: int, what: str) -> str:
        """A text of UTF-8 and at most so many bytes, not empty."""
        (length,) = self.numbers("<Q")
        if not 1 <= length <= longest:
            raise self.damage(f"{what} of {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damage(f"{what} that is not UTF-8") from None

    def value(self, key: str) -> bytes:
        """The bytes of a value, type included, after they are checked to be one."""
        start = self.at
        kind = self._type(key)
        if kind is not GGUFValueType.ARRAY:
            self._scalar(kind, key)
            return self._content[start : self.at]
        inner = self._type(key)
        (count,) = self.numbers("<Q")
        if inner is GGUFValueType.ARRAY or count > _MOST_ENTRIES:
            what = "an array of arrays" if inner is GGUFValueType.ARRAY else f"an array of {count:,}"
            raise self.damage(f"{what} under {key[:100]!r}")
        if inner is GGUFValueType.STRING:
            self._pass_texts(count)
        else:
            content = self.take(count * struct.calcsize(_SCALARS[inner]))
            if inner is GGUFValueType.BOOL and content.strip(b"\0\1"):
                raise self.damage(f"a truth value that is none under {key[:100]!r}")
        return self._content[start : self.at]

    def _pass_texts(self, count: int) -> None:
        """Go past texts, of which there can be millions."""
        length_of, last = struct.Struct("<Q").unpack_from, len(self._content) - 8
        at = self.at
        for _ in range(count):
            if at > last:
                break
            at += 8 + length_of(self._content, at)[0]
        else:
            self.take(at - self.at)
            return
        self.take(len(self._content) + 1 - self.at)  # raises: the header ends within them

    def _type(self, key: str) -> GGUFValueType:
        (number,) = self.numbers("<I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.damage(f"a value of the unknown type {number} under {key[:100]!r}") from None

    def _scalar(self, kind: GGUFValueType, key: str) -> None:
        if kind is GGUFValueType.STRING:
            self.take(self.numbers("<Q")[0])
            return
        (value,) = self.numbers(_SCALARS[kind])
        if kind is GGUFValueType.BOOL and value > 1:
            raise self.damage(f"a truth value that is none under {key[:100]!r}")

    def tensor(self) -> tuple[GgufTensor, int]:
        """The next tensor and its offset in the data."""
        name = self.text(_LONGEST_NAME, "a tensor's name")
        (axes,) = self.numbers("<I")
        if not 1 <= axes <= _MOST_AXES:
            raise self.damage(f"{axes} axes for the tensor {name!r}")
        sizes = self.numbers(f"<{axes}Q")
        number, offset = self.numbers("<IQ")
        if number not in _KIND_OF:
            raise ConversionError(
                f"{self._path}: tensor {name!r} has GGUF's element type {number}; only {', '.join(KINDS)} are supported"
            )
        shape, kind = sizes[::-1], _KIND_OF[number]
        if 0 in sizes or math.prod(sizes) >= 1 << 60:
            raise self.damage(f"a shape for the tensor {name!r} that no file can hold")
        if not fits(kind, shape):
            raise self.damage(f"rows for the tensor {name!r} that are no whole blocks of {kind}")
        return GgufTensor(name, shape, kind), offset
