"""The text of a CIRH program as frozen dataclasses: arguments, operations in order, results.

CIRH is a dialect of MLIR whose text stands one operation a line:

    func @graph(%arg0: tensor<12x1xf32> {tf.resource_name = "state.model..."}, ...)
        -> (tensor<12x1xbf16> {cs.output_name = "output_..."}, ...) {
      %cst = cirh.Const dense<2.5> : tensor<12x1xbf16>
      %0 = cirh.Cast %arg0 {Truncate = false} : tensor<12x1xf32> -> tensor<12x1xbf16> loc(#loc7)
      %1 = cirh.Mul %0, %cst : tensor<12x1xbf16>
      return %1, ... : tensor<12x1xbf16>, ...
    }
    #loc7 = loc("model.fwd/aten::_to_copy"(callsite(...)))

The dialect is not documented. The grammar of attributes, types and locations is MLIR's (mlir.llvm.org/docs/LangRef);
the forms of the lines are those that cerebras_pytorch 2.10.0 prints, the head of a function on one line. Operands of
one type share it: `Compare %a, %b : tensor<4xf32> -> tensor<4xi1>`, and so do operands and results: `Mul` above.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from cerebras_jais.errors import UserError
from cerebras_jais.ranges import shown

T = TypeVar("T")

# Bytes of an element; i1 is a byte, as a mask is in memory.
BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "i1": 1}


class ProgramError(UserError):
    """Text that is not a program this reader knows; the message names the line."""


@dataclass(frozen=True)
class TensorType:
    """Shape and element type, such as (12, 1) and "f32"; f16 is the CS system's cbfloat16 where configured."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of its elements, without padding."""
        return self.elements * BYTES[self.dtype]

    def __str__(self) -> str:
        return f"tensor<{''.join(f'{size}x' for size in self.shape)}{self.dtype}>"


@dataclass(frozen=True)
class Dense:
    """The numbers of a constant, flat, in row-major order; one number stands for all elements."""

    type: TensorType
    values: tuple[float | int | bool, ...]


@dataclass(frozen=True)
class Argument:
    """What the program is given.

    Attributes:
        name: in the program, such as "%arg3".
        resource: of a weight or state, the path of its key in a checkpoint, such as "model.model.ln_f.weight"; or None.
        input: of a tensor of the batch, its feature, such as "input_ids"; or None.
        alias: the number of the result that is its next value, or None where the program has none.
    """

    name: str
    type: TensorType
    resource: str | None
    input: str | None
    alias: int | None


@dataclass(frozen=True)
class Result:
    """What the program returns: a value, and the name that the trainer fetches it by, such as "loss", or None."""

    value: str
    type: TensorType
    output: str | None


@dataclass(frozen=True)
class Operation:
    """One line: `results = cirh.kind operands {attributes} : types`.

    Attributes of the line are bool, int, float, str, None (a bare name), Dense, tuples and mappings of these; the
    number of a Const is its attribute "value". `source` is the module and the PyTorch operation that the line was
    lowered from, such as "model.fwd/aten::mul", where the text tells it.
    """

    line: int
    kind: str
    results: tuple[str, ...]
    operands: tuple[str, ...]
    attributes: Mapping[str, Any]
    operand_types: tuple[TensorType, ...]
    result_types: tuple[TensorType, ...]
    source: str = ""


@dataclass(frozen=True)
class Program:
    """One step; `Argument.alias` counts in `results`, `attributes` are those of the function (`cs.fp16_type`)."""

    arguments: tuple[Argument, ...]
    operations: tuple[Operation, ...]
    results: tuple[Result, ...]
    attributes: Mapping[str, Any]


_VALUE = r"%[\w$.-]+(?:#\d+)?"
_FUNCTION = re.compile(r"\s*func(?:\.func)? (?:\w+ )?@[\w$.]+\(")
_OPERATION = re.compile(rf"\s*(?:(%[\w$.-]+)(?::(\d{{1,3}}))?((?:, {_VALUE})*) = )?cirh\.(\w+)")
_OPERANDS = re.compile(rf"[ (]*({_VALUE}(?:, {_VALUE})*)?\)? *")
_RETURN = re.compile(rf"\s*return(?: ({_VALUE}(?:, {_VALUE})*) : (.*))?$")
_TENSOR = re.compile(r"tensor<((?:[0-9]{1,18}x)*)([a-z]\w*)>")  # a size of 18 digits is below 2^63
_FRAME = re.compile(r"\s*(?:module\b.*\{|\}|//.*)?\s*$")
_LOCATION = re.compile(r" loc\((?:unknown|(#loc\d*)|.*)\)$")
_SOURCE = re.compile(r'^(#loc\d*) = loc\((?:unknown\)|"([^"]*)")', re.MULTILINE)


def read_program(text: str) -> Program:
    """The program of a text with one function.

    Raises ProgramError, with the line, for text it does not know.
    """
    sources = dict(_SOURCE.findall(text))
    arguments: tuple[Argument, ...] | None = None
    operations: list[Operation] = []
    known: dict[str, TensorType] = {}
    outputs: tuple[tuple[TensorType, str | None], ...] = ()
    attributes: Mapping[str, Any] = {}
    results: tuple[Result, ...] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#loc"):
            continue
        location = _LOCATION.search(line)
        line = line if location is None else line[: location.start()]
        if (match := _OPERATION.match(line)) is not None and arguments is not None:
            source = sources.get(location[1], "") if location is not None else ""
            operation = _operation(number, line, match, source)
            _check_operands(number, operation.operands, operation.operand_types, known)
            known |= zip(operation.results, operation.result_types, strict=True)
            operations.append(operation)
        elif (match := _FUNCTION.match(line)) is not None:
            if arguments is not None:
                raise ProgramError(f"line {number}: a second function; a program has one")
            arguments, outputs, attributes = _head(_Scanner(number, line, match.end()))
            known = {argument.name: argument.type for argument in arguments}
        elif (match := _RETURN.match(line)) is not None and arguments is not None:
            names, types = _names(match[1]), _types(number, match[2] or "")
            _check_operands(number, names, types, known)
            if types != tuple(type_ for type_, _ in outputs):
                raise ProgramError(f"line {number}: returns other types than the head of the function says")
            results = tuple(Result(name, *output) for name, output in zip(names, outputs, strict=True))
        elif _FRAME.match(line) is None:
            raise ProgramError(f"line {number}: not a line of a CIRH program: {_short(line)}")
    if arguments is None or results is None:
        raise ProgramError("not a CIRH program: it has no function with a return")
    aliases = [argument.alias for argument in arguments if argument.alias is not None]
    if len(set(aliases)) != len(aliases) or not set(aliases) <= set(range(len(results))):
        raise ProgramError("the results that tf.aliasing_output names are not one for each argument")
    return Program(arguments, tuple(operations), results, attributes)


def _check_operands(
    number: int, names: tuple[str, ...], types: tuple[TensorType, ...], known: Mapping[str, TensorType]
) -> None:
    if len(names) != len(types):
        raise ProgramError(f"line {number}: {len(names)} values but {len(types)} types")
    for name, type_ in zip(names, types, strict=True):
        if known.get(name) != type_:
            what = f"is {known[name]}" if name in known else "is not defined"
            raise ProgramError(f"line {number}: {name} {what}, and is used as {type_}")


def _operation(number: int, line: str, match: re.Match[str], source: str) -> Operation:
    first, count, more, kind = match.groups()
    results = () if first is None else (first, *_names(more.removeprefix(", ")))
    if count is not None:
        results = tuple(f"{first}#{index}" for index in range(int(count)))
    after = _OPERANDS.match(line, match.end())
    assert after is not None, "every part of the pattern is optional"
    at = after.end()
    attributes: Mapping[str, Any] = {}
    if line.startswith("{", at):
        end = _end_of_braces(number, line, at)
        attributes, at = _attributes(number, line[at:end]), end
    types = line[at:].strip()
    if types.startswith("dense<"):  # the number of a constant, whose type is the result's
        scanner = _Scanner(number, line, at)
        value = scanner.value()
        attributes, types = {**attributes, "value": value}, f": {value.type}{line[scanner.at :]}"
    if not types.startswith(":"):
        raise ProgramError(f"line {number}: cirh.{kind} without its types: {_short(line)}")
    operands = _names(after[1])
    taken, arrow, given = types[1:].partition("->")
    operand_types, result_types = _types(number, taken), _types(number, given)
    if not arrow:  # all have one type
        result_types = operand_types * len(results)
    if len(operand_types) == 1:
        operand_types *= len(operands)
    if len(operand_types) != len(operands) or len(result_types) != len(results):
        raise ProgramError(f"line {number}: cirh.{kind} has other numbers of values and of types: {_short(line)}")
    if kind == "Const":
        dense = attributes.get("value")
        if not isinstance(dense, Dense) or result_types != (dense.type,):
            raise ProgramError(f"line {number}: cirh.Const must have a value dense<...> of its one result's type")
    return Operation(number, kind, results, operands, attributes, operand_types, result_types, source)


def _head(
    scanner: _Scanner,
) -> tuple[tuple[Argument, ...], tuple[tuple[TensorType, str | None], ...], dict[str, Any]]:
    """Arguments, types and names of results, and attributes of a function, from behind its opening bracket."""
    arguments = []
    while not scanner.take(")"):
        name = scanner.match(_NAME, "an argument")[0]
        scanner.need(":")
        type_ = scanner.type()
        attributes = scanner.mapping() if scanner.take("{") else {}
        scanner.location()
        scanner.take(",")
        resource = _name_of(scanner, attributes, "tf.resource_name", "state.")
        feature = _name_of(scanner, attributes, "cs.input_name", "input_")
        alias = _attribute(scanner, attributes, "tf.aliasing_output", int, "a whole number")
        arguments.append(Argument(name, type_, resource, feature, alias))
    results = []
    if scanner.take("->"):
        bracketed = scanner.take("(")
        while True:
            type_ = scanner.type()
            attributes = scanner.mapping() if bracketed and scanner.take("{") else {}
            results.append((type_, _name_of(scanner, attributes, "cs.output_name", "output_")))
            if not scanner.take(","):
                break
        if bracketed:
            scanner.need(")")
    own = scanner.mapping() if scanner.take("attributes {") else {}
    _attribute(scanner, own, "cs.fp16_type", str, "a text")
    return tuple(arguments), tuple(results), own


def _attribute(scanner: _Scanner, attributes: Mapping[str, Any], key: str, kind: type[T], what: str) -> T | None:
    """An attribute of the function's head, None where it is not there; ProgramError for one of another type."""
    value = attributes.get(key)
    if value is not None and type(value) is not kind:  # true is no whole number
        raise ProgramError(f"line {scanner.number}: {key} must be {what}")
    return value


def _name_of(scanner: _Scanner, attributes: Mapping[str, Any], key: str, prefix: str) -> str | None:
    """A name among attributes, without its prefix; messages print it as it is."""
    name = _attribute(scanner, attributes, key, str, "a text")
    if name is not None and not name.isprintable():
        raise ProgramError(f"line {scanner.number}: {key} must be printable text (got {shown(name)})")
    return None if name is None else name.removeprefix(prefix)


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(text.split(", ")) if text else ()


def _types(number: int, text: str) -> tuple[TensorType, ...]:
    found = tuple(_type(*match.groups()) for match in _TENSOR.finditer(text))
    if re.sub(r"[\s(),]", "", _TENSOR.sub("", text)):
        raise ProgramError(f"line {number}: not types of tensors: {_short(text)}")
    if any(type_.dtype not in BYTES for type_ in found):
        raise ProgramError(f"line {number}: an element type that is not known: {_short(text)}")
    return found


@lru_cache(maxsize=4096)
def _type(sizes: str, dtype: str) -> TensorType:
    return TensorType(tuple(int(size) for size in sizes.split("x")[:-1]), dtype)


def _short(text: str) -> str:
    return shown(text.strip())


# ---- attributes ------------------------------------------------------------------------------------------------------

_NAME = re.compile(r"%[\w$.-]+")
_KEY = re.compile(r'[A-Za-z_][\w$.]*|"[^"]*"')
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NUMBER = re.compile(r"0x[0-9A-Fa-f]+|[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
_TYPE_OF_NUMBER = re.compile(r" : (?:[a-z]+\d+|index)")
_WORD = re.compile(r"true|false|unit")
_PLACE = re.compile(r"\s*loc\((?:unknown|#loc\d*)\)")
_SPACE = re.compile(r"\s*")
_ELEMENT = re.compile(r"true|false|0x[0-9A-Fa-f]+|[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


class _Scanner:
    """Reads MLIR's attributes from a place in a line."""

    def __init__(self, number: int, line: str, at: int = 0):
        self.number, self.line, self.at = number, line, at

    def take(self, text: str) -> bool:
        """Whether the next characters, spaces apart, are `text`; moves behind them."""
        at = self._after_space()
        if self.line.startswith(text, at):
            self.at = at + len(text)
            return True
        return False

    def need(self, text: str) -> None:
        if not self.take(text):
            raise self.error(f"{text!r}")

    def match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.line, self._after_space())
        if found is None:
            raise self.error(what)
        self.at = found.end()
        return found

    def error(self, what: str) -> ProgramError:
        return ProgramError(f"line {self.number}: {what} is expected before: {_short(self.line[self.at :])}")

    def type(self) -> TensorType:
        return _types(self.number, self.match(_TENSOR, "the type of a tensor")[0])[0]

    def location(self) -> None:
        """Move behind `loc(...)`, if one is here."""
        self.at += len(found[0]) if (found := _PLACE.match(self.line, self.at)) is not None else 0

    def mapping(self) -> dict[str, Any]:
        """`key = value, ...}`, from behind the opening brace; a key alone has the value None."""
        found: dict[str, Any] = {}
        while not self.take("}"):
            key = self.match(_KEY, "a key")[0].strip('"')
            found[key] = self.value() if self.take("=") else None
            self.take(",")
        return found

    def value(self) -> Any:
        try:
            return self._value()
        except (LookupError, OverflowError, RecursionError, ValueError, struct.error):
            raise self.error("a value that its type can have") from None

    def _value(self) -> Any:
        if self.take("{"):
            return self.mapping()
        if self.take("["):
            items = []
            while not self.take("]"):
                items.append(self.value())
                self.take(",")
            return tuple(items)
        if self.take("dense<"):
            return self._dense()
        at = self._after_space()
        if (found := _STRING.match(self.line, at)) is not None:
            self.at = found.end()
            return found[1]
        if (found := _WORD.match(self.line, at)) is not None:
            self.at = found.end()
            return {"true": True, "false": False}.get(found[0])
        text = self.match(_NUMBER, "a value")[0]
        type_ = _TYPE_OF_NUMBER.match(self.line, self.at)
        self.at = self.at if type_ is None else type_.end()
        return _number(text, type_[0][3:] if type_ else "i64")

    def _dense(self) -> Dense:
        end = self.line.index(">", self.at) if ">" in self.line[self.at :] else -1
        body = self.line[self.at : end]
        self.at = end + 1
        self.need(":")
        type_ = self.type()
        values = tuple(_dense_values(body, type_))
        if len(values) not in (1, type_.elements):
            raise self.error(f"a constant of {type_.elements} elements, not {len(values)},")
        return Dense(type_, values)

    def _after_space(self) -> int:
        found = _SPACE.match(self.line, self.at)
        return self.at if found is None else found.end()


def _dense_values(body: str, type_: TensorType) -> Iterator[float | int | bool]:
    """The numbers between the brackets of dense<...>: one, nested lists, or the bytes of all as one hex string."""
    if body.startswith('"0x'):
        raw = bytes.fromhex(body[3:-1])
        size = BYTES[type_.dtype]
        for at in range(0, len(raw), size):
            yield from_bits(int.from_bytes(raw[at : at + size], "little"), type_.dtype)
        return
    for found in _ELEMENT.finditer(body):
        yield _number(found[0], type_.dtype)


def _number(text: str, dtype: str) -> float | int | bool:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith("0x"):
        return from_bits(int(text, 16), dtype)
    if "f" in dtype:
        return _nearest(float(text), dtype)
    whole = int(text)
    if not -(2**63) <= whole < 2**64:
        raise OverflowError
    return whole


def _nearest(value: float, dtype: str) -> float:
    """The number of a type that is meant: the text has no more digits than tell it from its neighbours, or seven."""
    if dtype == "bf16":
        bits = int.from_bytes(struct.pack("<f", value), "little")
        return float(from_bits((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, "bf16"))
    form = {"f16": "<e", "f32": "<f", "f64": "<d"}[dtype]
    nearest: float = struct.unpack(form, struct.pack(form, value))[0]
    return nearest


def from_bits(bits: int, dtype: str) -> float | int | bool:
    """The number that MLIR writes as these bits; f16 there is IEEE half, whatever the CS system takes it for."""
    if dtype == "i1":
        return bool(bits)
    if dtype.startswith("i"):
        top = 1 << (8 * BYTES[dtype] - 1)
        return (bits & (top - 1)) - (bits & top)
    if dtype == "bf16":
        bits, dtype = bits << 16, "f32"
    form = {"f16": ("<H", "<e"), "f32": ("<I", "<f"), "f64": ("<Q", "<d")}[dtype]
    value: float = struct.unpack(form[1], struct.pack(form[0], bits))[0]
    return value


@lru_cache(maxsize=4096)
def _cached_attributes(text: str) -> Mapping[str, Any]:
    return _Scanner(0, text, 1).mapping()


def _attributes(number: int, text: str) -> Mapping[str, Any]:
    """The attributes between braces; most lines of a program repeat those of others, which are read once."""
    try:
        return _cached_attributes(text)
    except ProgramError as error:
        raise ProgramError(str(error).replace("line 0:", f"line {number}:", 1)) from None


def _end_of_braces(number: int, line: str, at: int) -> int:
    """Where the braces that open at `at` have closed; braces inside strings do not count."""
    depth = 0
    for found in _BRACE.finditer(line, at):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return found.end()
    raise ProgramError(f"line {number}: braces that do not close: {_short(line[at:])}")


_BRACE = re.compile(r'[{}]|"(?:[^"\\]|\\.)*"')
