"""A conversion as steps (read, operate, write), made from headers and checked whole before a byte is written.

The same code plans both directions: a direction is only the side that the tensors come from.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.operations import Arrays, Operation, Shape
from checkpoint_convert.rules import JAIS, Side, architecture_of, expected_tensors, grouped, rules, ties
from checkpoint_convert.safetensors_files import TensorToWrite, np_dtype

_BLOCK_BYTES = 64 << 20
_SHOWN = 6
_WEIGHT_TYPES = ("float16", "bfloat16", "float32", "float64")
# What rounding to an element type may do to an ALiBi slope, relative.
_SLOPE_ROUNDING = {"float64": 1e-6, "float32": 1e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}


class Source(Protocol):
    """A tensor that can be read: in a .mdl or in a safetensors file."""

    @property
    def shape(self) -> Shape: ...

    @property
    def dtype(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def read(self) -> np.ndarray: ...

    def read_rows(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class Step:
    """Tensors of one side that become tensors of the other."""

    inputs: tuple[Source, ...]
    operation: Operation
    outputs: tuple[str, ...]
    shapes: tuple[Shape, ...]
    dtype: str

    def run(self) -> Arrays:
        """Read the inputs and return the outputs."""
        return self.operation.forward([source.read() for source in self.inputs])


@dataclass(frozen=True)
class Plan:
    """All steps of a conversion, and the second names that the written side has."""

    steps: tuple[Step, ...]
    aliases: Mapping[str, str]
    """Second name -> first name, on the side that is written."""
    ignored: tuple[str, ...]
    """Tensors of the input that need no place: buffers that code recomputes."""
    parameters: int
    """Number of parameters as transformers counts them: tied ones once, ALiBi slopes too."""
    dtypes: tuple[str, ...]
    """Element types that occur, most common first by bytes."""
    written: dict[str, tuple[Shape, str]] = field(repr=False)
    """Every name that is written, second names included, with shape and element type."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors written, each name counted."""
        return sum(math.prod(shape) * np_dtype(dtype).itemsize for shape, dtype in self.written.values())

    def outputs(self) -> list[TensorToWrite]:
        """What is to be written, in order, second names left out; read in that order, each step runs once."""
        found: list[TensorToWrite] = []
        for step in self.steps:
            results = _Results(step)
            for index, (name, shape) in enumerate(zip(step.outputs, step.shapes, strict=True)):
                found.append(TensorToWrite(name, shape, step.dtype, functools.partial(results.take, index)))
        return found


class _Results:
    """The outputs of a step, held from the first that is taken until each was."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.held: dict[int, np.ndarray] = {}

    def take(self, index: int) -> np.ndarray:
        if index not in self.held:
            self.held = dict(enumerate(self.step.run()))
        return self.held.pop(index)


def make_plan(config: DecoderConfig, side: Side, tensors: Mapping[str, Source]) -> Plan:
    """Plan the conversion of all tensors of a side and check them against what the config demands.

    Args:
        config: the model.
        side: the side that `tensors` come from.
        tensors: by name; on the Cerebras side without the leading `model.`.

    Raises:
        ConversionError: tensors missing or left over, another shape, weights that are no floating-point numbers, mixed
            element types in one projection, a tied head that is not the embedding, slopes that are not ALiBi's.
    """
    expected = expected_tensors(config, side)
    tied = ties(config, side)
    ignored = _check_names(config, side, tensors, expected, tied)
    _check_shapes(tensors, expected)
    _check_types(tensors, expected)
    _check_ties(config, tensors, tied)
    sources = dict(tensors)
    for name, first in tied.items():  # either name may be the only one
        if first not in sources and name in sources:
            sources[first] = sources[name]
        elif name not in sources:
            sources[name] = sources[first]
    if architecture_of(config) is JAIS:
        slopes = next(rule.names(side)[0] for rule in rules(config) if rule.names(side)[0].endswith(".slopes"))
        _check_slopes(config, slopes, sources[slopes])
    return _assemble(config, side, sources, ignored)


def _assemble(config: DecoderConfig, side: Side, sources: Mapping[str, Source], ignored: tuple[str, ...]) -> Plan:
    other: Side = "hugging_face" if side == "cerebras" else "cerebras"
    own_ties, aliases = ties(config, side), ties(config, other)
    steps: list[Step] = []
    written: dict[str, tuple[Shape, str]] = {}
    bytes_of: dict[str, int] = {}
    parameters = 0
    for rule in rules(config):
        inputs = tuple(sources[name] for name in rule.names(side))
        dtypes = {source.dtype for source in inputs}
        if len(dtypes) > 1:
            raise ConversionError(
                f"{', '.join(rule.names(side))} become one tensor but have several types: {', '.join(sorted(dtypes))}"
            )
        dtype = dtypes.pop()
        step = Step(inputs, rule.operation_from(side), rule.names(other), rule.shapes(other), dtype)
        written |= {name: (shape, dtype) for name, shape in zip(step.outputs, step.shapes, strict=True)}
        if not set(rule.names(side)) & own_ties.keys():
            count = sum(math.prod(shape) for shape in step.shapes)
            parameters += count
            bytes_of[dtype] = bytes_of.get(dtype, 0) + count * np_dtype(dtype).itemsize
        steps.append(step)
    written |= {name: written[first] for name, first in aliases.items()}
    by_bytes = sorted(bytes_of, key=lambda dtype: -bytes_of[dtype])
    return Plan(tuple(steps), aliases, ignored, parameters, tuple(by_bytes), written)


def _check_names(
    config: DecoderConfig,
    side: Side,
    tensors: Mapping[str, Source],
    expected: Mapping[str, Shape],
    tied: Mapping[str, str],
) -> tuple[str, ...]:
    """Every expected name is there and no other; returns the names that may be ignored."""
    surplus = [name for name in tensors if name not in expected]
    ignored = [name for name in surplus if side == "hugging_face" and architecture_of(config).ignored.fullmatch(name)]
    left_over = [name for name in surplus if name not in ignored]
    given = set(tensors) | {tied[name] for name in tied if name in tensors}
    given |= {name for name, first in tied.items() if first in given}
    missing = [name for name in expected if name not in given]
    problems = []
    if missing:
        hint = ""
        if "lm_head.weight" in missing and not config.share_embedding_weights:
            hint = " (is the head tied to the embedding? then the config must say so)"
        problems.append(f"missing: {_listed(missing)}{hint}")
    if left_over:
        problems.append(f"not in such a model: {_listed(left_over)}")
    if problems:
        raise ConversionError(f"the tensors are not those that the config demands; {'; '.join(problems)}")
    return tuple(ignored)


def _check_shapes(tensors: Mapping[str, Source], expected: Mapping[str, Shape]) -> None:
    by_shapes: dict[tuple[Shape, Shape], list[str]] = {}
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            by_shapes.setdefault((tuple(tensors[name].shape), shape), []).append(name)
    if by_shapes:
        texts = [
            f"{_listed(names)}: {list(found)} where the config demands {list(shape)}"
            for (found, shape), names in by_shapes.items()
        ]
        raise ConversionError(f"the config does not fit the tensors: {_first(texts)}")


def _check_types(tensors: Mapping[str, Source], expected: Mapping[str, Shape]) -> None:
    by_type: dict[str, list[str]] = {}
    for name in expected:
        if name in tensors and tensors[name].dtype not in _WEIGHT_TYPES:
            by_type.setdefault(tensors[name].dtype, []).append(name)
    if by_type:
        texts = [f"{_listed(names)}: {dtype}" for dtype, names in by_type.items()]
        raise ConversionError(f"weights must be of the type {', '.join(_WEIGHT_TYPES)}; {_first(texts)}")


def _check_ties(config: DecoderConfig, tensors: Mapping[str, Source], tied: Mapping[str, str]) -> None:
    for name, first in tied.items():
        if name in tensors and first in tensors and not same_values(tensors[name], tensors[first]):
            hint = ""
            if name == "lm_head.weight":
                hint = "; the config ties them: say share_embedding_weights: false (tie_word_embeddings in a release)"
            raise ConversionError(f"{name} and {first} must be one tensor but differ{hint}")


def same_values(a: Source | TensorToWrite, b: Source | TensorToWrite) -> bool:
    """Whether two tensors are equal bit for bit in type, shape and values; read in blocks of rows where both can be."""
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    place = [(getattr(x, "linked_to", None) or getattr(x, "key", None), getattr(x, "file", None)) for x in (a, b)]
    if place[0] == place[1] and place[0][0] is not None:
        return True
    if not a.shape or not a.nbytes or isinstance(a, TensorToWrite) or isinstance(b, TensorToWrite):
        return _same_bits(a.read(), b.read())
    rows = max(1, _BLOCK_BYTES * a.shape[0] // a.nbytes)
    starts = range(0, a.shape[0], rows)
    return all(
        _same_bits(a.read_rows(start, stop), b.read_rows(start, stop))
        for start, stop in ((start, min(start + rows, a.shape[0])) for start in starts)
    )


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    bits = f"u{a.dtype.itemsize}"
    return bool(np.array_equal(a.view(bits), b.view(bits)))


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slopes of ALiBi, float64 [heads].

    2^(-8(i+1)/n) for a power of two n; otherwise those of the power of two below, followed by every second one of the
    power of two above (Press et al. 2022, arXiv 2108.12409).
    """
    below = 1 << (num_heads.bit_length() - 1)
    first = 2.0 ** (-8.0 / below * np.arange(1, below + 1))
    between = 2.0 ** (-4.0 / below * np.arange(1, 2 * below + 1, 2))
    return np.concatenate([first, between[: num_heads - below]])


def _check_slopes(config: DecoderConfig, name: str, slopes: Source) -> None:
    wanted = alibi_slopes(config.num_heads)
    found = slopes.read().astype(np.float64).reshape(-1)
    off = ~(np.abs(found - wanted) <= _SLOPE_ROUNDING[slopes.dtype] * wanted)
    if off.any():
        head = int(np.argmax(off))
        raise ConversionError(
            f"{name} does not hold ALiBi's slopes for {config.num_heads} heads: head {head} has {found[head]:.6g} "
            f"where ALiBi has {wanted[head]:.6g}; the tensor is damaged or the heads are in another order"
        )


def _listed(names: list[str]) -> str:
    return _first(grouped(names))


def _first(texts: list[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
