"""Models in pickle files (`pytorch_model.bin`), read without unpickling: nothing in them is imported, called or run.

Format: torch.save's archive (torch_archive.py) of storages and of one pickle (protocol 2), a dict of tensors. A tensor
is a call of `torch._utils._rebuild_tensor_v2` on a storage, an offset, a shape and strides. `_Machine` interprets the
pickle. It knows these few calls by name and records their arguments; any other name is refused. A sharded model also
has `pytorch_model.bin.index.json`.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_convert.formats.safetensors import open_weights
from checkpoint_convert.formats.tensors import MOST_AXES, FileTensor, is_array_shape, np_dtype
from checkpoint_convert.formats.torch_archive import Archive, Entry, damage, read_archive, refusal

INDEX = "pytorch_model.bin.index.json"
SINGLE = "pytorch_model.bin"

# Limits for hostile pickles.
_DEEPEST_STACK = 10_000  # values; a pickler writes a dict in batches of 1,000 items
_LONGEST_NAME = 4_096  # bytes of a string

_STORAGES = {
    "torch BoolStorage": "bool",
    "torch ByteStorage": "uint8",
    "torch CharStorage": "int8",
    "torch ShortStorage": "int16",
    "torch IntStorage": "int32",
    "torch LongStorage": "int64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch.storage UntypedStorage": None,
}
# Types without a storage class of their own are named beside an untyped storage.
_DTYPES = {
    f"torch {name}": name for name in ("uint16", "uint32", "uint64", *(name for name in _STORAGES.values() if name))
}
_DICT = "collections OrderedDict"
_TENSOR, _TYPED_TENSOR = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3"
_PARAMETER = "torch._utils _rebuild_parameter"
_GLOBALS = {_DICT, _TENSOR, _TYPED_TENSOR, _PARAMETER, *_STORAGES, *_DTYPES}


def open_bin_model(directory: str | os.PathLike[str]) -> dict[str, FileTensor]:
    """The tensors of `pytorch_model.bin`, or of its shards, by name; no data is read.

    Tensors that share a storage (tied weights) share bytes of the file.

    Raises:
        ConversionError: neither file in the directory, an index that does not fit its shards, a damaged file, or a
            pickle that is more than a dict of plain tensors.
    """
    return open_weights(Path(directory), INDEX, SINGLE, read_bin)


def read_bin(path: Path) -> dict[str, FileTensor]:
    """The tensors of one file that torch.save wrote, by name; every offset is checked against the size of the file.

    Raises:
        ConversionError: the file is missing, damaged, in torch's format from before 1.6, or holds anything but a
            dict of contiguous plain tensors.
    """
    archive = read_archive(path)
    return {name: _locate(path, name, tensor) for name, tensor in _Machine(path, archive).run().items()}


# ---- the pickle -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Global:
    """A module and a name in it, with a space between; never looked up."""

    name: str


class _Integers(tuple[int, ...]):
    """A tuple of integers: the only tuple allowed inside another one."""


@dataclass(frozen=True)
class _Storage:
    """The bytes of an entry `data/<key>`; dtype is None where each tensor names its own."""

    entry: Entry
    dtype: str | None
    elements: int


@dataclass(frozen=True)
class _Tensor:
    """The arguments of `_rebuild_tensor_v2`; offset and strides count elements."""

    storage: _Storage
    dtype: str
    offset: int
    shape: _Integers
    strides: _Integers


@dataclass
class _Machine:
    """Interprets a pickle of integers, strings, tuples, dicts and the records above."""

    path: Path
    archive: Archive
    at: int = 0
    """Offset of the next byte of the pickle."""
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    """Heights of the stack at the open marks."""
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)

    def run(self) -> dict[str, _Tensor]:
        """The dict of tensors that the pickle describes."""
        if self.archive.pickle[:2] != b"\x80\2":
            raise refusal(self.path, "its pickle is not of protocol 2, torch.save's own")
        self.at = 2
        while (opcode := self.take(1)) != b".":
            self.step(opcode)
            if len(self.stack) + len(self.marks) > _DEEPEST_STACK:
                raise refusal(self.path, "its pickle puts more values on its stack than a model needs")
        state = self.pop()
        if self.stack or self.marks or self.at != len(self.archive.pickle):
            raise damage(self.path, "its pickle has left-over values or bytes")
        if not isinstance(state, dict):
            raise refusal(self.path, "holds something other than a dict of tensors")
        for name, value in state.items():
            if not isinstance(value, _Tensor):
                raise refusal(
                    self.path, f"its entry {name!r} is not a tensor, so it is not the weights of one model alone"
                )
        return state

    def step(self, opcode: bytes) -> None:
        """Run one instruction; the comments give its name in pickletools."""
        stack = self.stack
        match opcode:
            case b"q":  # BINPUT
                self.memo[self.take_number(1)] = self.top()
            case b"h":  # BINGET
                self.recall(self.take_number(1))
            case b"r":  # LONG_BINPUT
                self.memo[self.take_number(4)] = self.top()
            case b"j":  # LONG_BINGET
                self.recall(self.take_number(4))
            case b"(":  # MARK
                self.marks.append(len(stack))
            case b"K":  # BININT1
                stack.append(self.take_number(1))
            case b"M":  # BININT2
                stack.append(self.take_number(2))
            case b"J":  # BININT
                stack.append(self.take_number(4, signed=True))
            case b"\x8a":  # LONG1
                if (length := self.take_number(1)) > 8:
                    raise refusal(self.path, f"its pickle has a number of {length} bytes, more than any size needs")
                stack.append(self.take_number(length, signed=True))
            case b"X":  # BINUNICODE
                length = self.take_number(4)
                if length > _LONGEST_NAME:
                    raise refusal(self.path, f"its pickle has a string of {length} bytes, longer than any name")
                stack.append(self.decode(self.take(length)))
            case b")":  # EMPTY_TUPLE
                stack.append(_Integers())
            case b"\x85" | b"\x86" | b"\x87":  # TUPLE1, TUPLE2, TUPLE3
                self.push_tuple([self.pop() for _ in range(opcode[0] - 0x84)][::-1])
            case b"t":  # TUPLE
                self.push_tuple(self.pop_to_mark())
            case b"R":  # REDUCE
                arguments, function = self.pop(), self.pop()
                stack.append(self.rebuild(function, arguments))
            case b"Q":  # BINPERSID
                stack.append(self.find_storage(self.pop()))
            case b"\x88" | b"\x89":  # NEWTRUE, NEWFALSE
                stack.append(opcode == b"\x88")
            case b"N":  # NONE
                stack.append(None)
            case b"c":  # GLOBAL
                self.push_global()
            case b"}":  # EMPTY_DICT
                stack.append({})
            case b"s":  # SETITEM
                value, key = self.pop(), self.pop()
                self.fill([key, value])
            case b"u":  # SETITEMS
                self.fill(self.pop_to_mark())
            case b"b":  # BUILD: an OrderedDict has the versions of a model's modules, which no tensor uses
                attributes, target = self.pop(), self.top()
                if not (
                    isinstance(target, dict) and isinstance(attributes, dict) and attributes.keys() == {"_metadata"}
                ):
                    raise refusal(self.path, "its pickle sets attributes, which plain tensors do not need")
            case _:
                raise refusal(self.path, f"its pickle has the instruction {opcode!r}, which plain tensors do not need")

    def take(self, count: int) -> bytes:
        found = self.archive.pickle[self.at : self.at + count]
        if len(found) != count:
            raise damage(self.path, "its pickle is cut short")
        self.at += count
        return found

    def take_number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), "little", signed=signed)

    def decode(self, text: bytes) -> str:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise damage(self.path, "its pickle has a name that is not UTF-8") from error

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise damage(self.path, "its pickle pops more values than it pushed")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise damage(self.path, "its pickle pops more values than it pushed")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise damage(self.path, "its pickle refers to a value that it has not stored")
        self.stack.append(self.memo[index])

    def push_tuple(self, values: list[Any]) -> None:
        if all(type(value) is int for value in values):
            self.stack.append(_Integers(values))
        elif any(isinstance(value, tuple) and not isinstance(value, _Integers) for value in values):
            raise refusal(self.path, "its pickle nests tuples deeper than a tensor needs")
        else:
            self.stack.append(tuple(values))

    def push_global(self) -> None:
        parts = self.archive.pickle[self.at : self.at + 2 * _LONGEST_NAME].split(b"\n", 2)
        if len(parts) < 3:
            raise damage(self.path, "its pickle has a name without an end")
        self.at += len(parts[0]) + len(parts[1]) + 2
        module, name = (self.decode(part) for part in parts[:2])
        if f"{module} {name}" not in _GLOBALS:
            raise refusal(self.path, f"its pickle asks for {f'{module}.{name}'!r}, which plain tensors do not need")
        self.stack.append(_Global(f"{module} {name}"))

    def fill(self, items: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise damage(self.path, "its pickle fills something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise refusal(self.path, "its pickle has a key that is not a name")
            if key in target:
                raise damage(self.path, f"its pickle names {key!r} twice")
            target[key] = value

    def find_storage(self, reference: Any) -> _Storage:
        match reference:
            case ("storage", _Global(kind), str(key), str(device), int(elements)) if kind in _STORAGES:
                pass
            case _:
                raise refusal(self.path, "its pickle refers to something that is not a storage")
        if key not in self.archive.storages or device == "meta":
            raise damage(self.path, f"has no data for its storage {key!r}")
        entry, dtype = self.archive.storages[key], _STORAGES[kind]
        if type(elements) is not int or elements * (np_dtype(dtype).itemsize if dtype else 1) != entry.size:
            raise damage(self.path, f"its storage {key!r} has {entry.size} bytes, which is not {elements} elements")
        storage = _Storage(entry, dtype, elements)
        if self.storages.setdefault(key, storage) != storage:
            raise refusal(self.path, f"its storage {key!r} has two element types")
        return storage

    def rebuild(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, _Global) else None
        match arguments:
            case () if name == _DICT:
                return {}
            case (_Tensor() as tensor, bool(), dict(hooks)) if name == _PARAMETER and not hooks:
                return tensor
            case (_Storage() as storage, int(offset), _Integers() as shape, _Integers() as strides, bool(), *rest):
                known = type(offset) is int and len(rest) in (1, 2) and rest[0] == {}
                if name == _TENSOR and known and len(rest) == 1 and storage.dtype:
                    return _Tensor(storage, storage.dtype, offset, shape, strides)
                if name == _TYPED_TENSOR and known and len(rest) == 2 and not storage.dtype:
                    dtype = rest[1].name if isinstance(rest[1], _Global) else ""
                    if dtype in _DTYPES:
                        return _Tensor(storage, _DTYPES[dtype], offset, shape, strides)
        called = name.replace(" ", ".") if name else "something that is not a function"
        raise refusal(self.path, f"its pickle calls {called} in a way that plain tensors do not need")


def _locate(path: Path, name: str, tensor: _Tensor) -> FileTensor:
    """The tensor with its offset in the file; it must be contiguous, row-major and inside its storage."""
    itemsize = np_dtype(tensor.dtype).itemsize
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    fits = len(shape) == len(strides) and all(n >= 0 for n in (*shape, offset))
    if not fits or not is_array_shape(shape, tensor.dtype):
        raise damage(path, f"tensor {name!r} has the shape {list(shape)[:MOST_AXES]} with strides that do not fit it")
    elements, step = math.prod(shape), 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != step and elements:
            raise refusal(path, f"tensor {name!r} is a view that is not contiguous, which is not supported")
        step *= length
    if (offset + elements) * itemsize > tensor.storage.entry.size:
        raise damage(path, f"tensor {name!r} goes beyond the data of its storage")
    return FileTensor(name, tuple(shape), tensor.dtype, path, tensor.storage.entry.offset + offset * itemsize)
