"""The plan of a conversion: steps (read, operate, write) made from headers, checked before a byte is written.

The same code plans both directions, and a copy of a checkpoint on its own side. A step is a rule of the table with its
inputs. Names, shapes, element types and ALiBi's slopes are checked here. Whether two stored tensors that the
config ties are equal is checked by the digests of their steps, which run first (streaming/run.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.stored import FOLD_THEM, adapters_in
from cerebras_jais.model.tensors import parameter_count
from checkpoint_convert.errors import ConversionError, first_few
from checkpoint_convert.formats.tensors import UNIT_ROUNDOFF, WEIGHT_TYPES, Tensor, TensorHeader, np_dtype
from checkpoint_convert.mapping.operations import Operation, Shape
from checkpoint_convert.mapping.rules import (
    JAIS,
    Rule,
    Side,
    architecture_of,
    expected_tensors,
    grouped,
    other_side,
    rules,
    ties,
)

_BLOCK_BYTES = 64 << 20
_SLOPE_TOLERANCE = 1e-6  # relative, where rounding to the element type does not allow for more


@dataclass(frozen=True)
class Step:
    """Tensors of one side that become tensors of the other."""

    rule: Rule
    side: Side
    """The side of the inputs."""
    onto: Side
    """The side of the outputs; the Cerebras side may be both."""
    inputs: tuple[Tensor, ...]
    dtype: str
    """Element type of the outputs; inputs of another one are converted."""
    writes: bool = True
    """False for the second name of a tensor, which is only compared with the first."""

    @property
    def operation(self) -> Operation:
        return self.rule.operation(self.side, self.onto)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors it makes."""
        return self.rule.names(self.onto)

    @property
    def headers(self) -> tuple[TensorHeader, ...]:
        """Name, shape and element type of the tensors it makes."""
        shapes = self.rule.shapes(self.onto)
        return tuple(TensorHeader(name, shape, self.dtype) for name, shape in zip(self.outputs, shapes, strict=True))

    @property
    def read_bytes(self) -> int:
        return sum(source.nbytes for source in self.inputs)

    @property
    def write_bytes(self) -> int:
        return sum(header.nbytes for header in self.headers) if self.writes else 0


@dataclass(frozen=True)
class Plan:
    """All steps of a conversion."""

    config: DecoderConfig
    side: Side
    """The side of the inputs."""
    steps: tuple[Step, ...]
    equal: tuple[tuple[int, int], ...]
    """Pairs of steps whose tensors must be equal: the two names of a tied one."""
    aliases: Mapping[str, str]
    """Second name -> first name, on the side that is written; second names that a step writes are not in it."""
    ignored: tuple[str, ...]
    """Tensors of the input that are left out: buffers that code recomputes."""
    parameters: int
    """Number of parameters as transformers counts them: tied ones once, ALiBi slopes too."""
    dtypes: tuple[str, ...]
    """Element types that are written, most common first by bytes."""
    names: tuple[str, ...] = field(repr=False)
    """Every name on the side that is written, second names included, in the order of the rules."""

    @property
    def headers(self) -> tuple[TensorHeader, ...]:
        """What is written, in order."""
        return tuple(header for step in self.steps if step.writes for header in step.headers)

    @property
    def read_bytes(self) -> int:
        return sum(step.read_bytes for step in self.steps)

    @property
    def write_bytes(self) -> int:
        return sum(step.write_bytes for step in self.steps)


def make_plan(
    config: DecoderConfig,
    side: Side,
    tensors: Mapping[str, Tensor],
    *,
    onto: Side | None = None,
    dtype: str | None = None,
    link_ties: bool = False,
) -> Plan:
    """Plan the conversion of all tensors of a side and check them against what the config demands.

    Args:
        config: the model.
        side: the side that `tensors` come from.
        tensors: by name, as `open_model.Model` has them.
        onto: the side to write; None takes the other one. Tensors of Hugging Face can only go to the Cerebras side,
            since digests are of its layout.
        dtype: element type to convert weights to; None keeps each as it is stored. ALiBi's slopes are never converted.
        link_ties: whether the written side can store one tensor under two names; otherwise both are written.

    Raises:
        ConversionError: tensors missing or left over, another shape, weights that are no floating-point numbers, mixed
            element types in one projection, slopes that are not ALiBi's.
    """
    onto = other_side(side) if onto is None else onto
    assert side == "cerebras" or onto == "cerebras"
    expected = expected_tensors(config, side)
    ignored = _check_names(config, side, tensors, expected)
    _check_shapes(tensors, expected)
    _check_types(tensors, expected)
    if architecture_of(config) is JAIS:
        slopes = next(rule.names(side)[0] for rule in rules(config) if rule.holds_slopes)
        _check_slopes(config, slopes, tensors[slopes])
    return _assemble(config, side, onto, tensors, ignored, dtype, link_ties)


def _assemble(
    config: DecoderConfig,
    side: Side,
    onto: Side,
    tensors: Mapping[str, Tensor],
    ignored: tuple[str, ...],
    dtype: str | None,
    link_ties: bool,
) -> Plan:
    tied, written_ties = ties(config, side), ties(config, onto)
    table = rules(config)
    steps: list[Step] = []
    step_of: dict[str, int] = {}
    equal: list[tuple[int, int]] = []
    bytes_of: Counter[str] = Counter()

    def add(rule: Rule, inputs: tuple[Tensor, ...], first: str | None, writes: bool) -> None:
        """Add a step unless it has nothing to do. `first`: the first name, where the tensor is read by its second."""
        same = first is not None and inputs[0].storage_id == tensors[first].storage_id
        if same and not writes:
            return
        if first is not None and not same:
            equal.append((step_of[first], len(steps)))
        steps.append(Step(rule, side, onto, inputs, _element_type(rule, side, inputs, dtype), writes))

    for rule in table:
        names = rule.names(side)
        if not rule.names(onto):
            continue
        first_name = tied.get(names[0])
        step_of |= dict.fromkeys(names, len(steps))
        add(rule, tuple(tensors[name] for name in names), first_name, writes=first_name is None or not link_ties)
        if first_name is None:
            count = sum(math.prod(shape) for shape in rule.cerebras_shapes)
            bytes_of[steps[-1].dtype] += count * np_dtype(steps[-1].dtype).itemsize
    for name in [name for name in tied if name not in step_of]:  # no rule has the second name of the last norm
        add(steps[step_of[tied[name]]].rule, (tensors[name],), tied[name], writes=False)

    written = [name for rule in table for name in rule.names(onto)]
    stored_names = {name for step in steps if step.writes for name in step.outputs}
    return Plan(
        config,
        side,
        tuple(steps),
        tuple(equal),
        {name: first for name, first in written_ties.items() if name not in stored_names},
        ignored,
        parameter_count(config),
        tuple(kind for kind, _ in bytes_of.most_common()),
        tuple(dict.fromkeys([*written, *written_ties])),
    )


def _element_type(rule: Rule, side: Side, inputs: tuple[Tensor, ...], dtype: str | None) -> str:
    stored = sorted({source.dtype for source in inputs})
    if dtype is not None and not rule.holds_slopes:
        return dtype
    if len(stored) > 1:
        raise ConversionError(
            f"{', '.join(rule.names(side))} become one tensor but have several types: {', '.join(stored)}; "
            "choose one with --dtype"
        )
    return stored[0]


def _check_names(
    config: DecoderConfig,
    side: Side,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Shape],
) -> tuple[str, ...]:
    """Every expected name is there and no other; returns the names that may be ignored."""
    adapters = adapters_in(tensors)
    if adapters:
        raise ConversionError(f"holds {_listed(adapters)}; {FOLD_THEM}")
    surplus = [name for name in tensors if name not in expected]
    ignored = [name for name in surplus if side == "hugging_face" and architecture_of(config).ignored.fullmatch(name)]
    left_over = set(surplus) - set(ignored)
    missing = [name for name in expected if name not in tensors]
    problems = []
    if missing:
        hint = ""
        if "lm_head.weight" in missing and not config.share_embedding_weights:
            hint = " (if the head is tied to the embedding, the config must tie them)"
        problems.append(f"missing: {_listed(missing)}{hint}")
    if left_over:
        problems.append(f"not in such a model: {_listed(name for name in surplus if name in left_over)}")
    if problems:
        raise ConversionError(f"the tensors are not those that the config demands; {'; '.join(problems)}")
    return tuple(ignored)


def _check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    by_shapes: dict[tuple[Shape, Shape], list[str]] = {}
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            by_shapes.setdefault((tuple(tensors[name].shape), shape), []).append(name)
    if by_shapes:
        texts = [
            f"{_listed(names)}: {list(found)} where the config demands {list(shape)}"
            for (found, shape), names in by_shapes.items()
        ]
        raise ConversionError(f"the config does not fit the tensors: {first_few(texts, '; ')}")


def _check_types(tensors: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    by_type: dict[str, list[str]] = {}
    for name in expected:
        if name in tensors and tensors[name].dtype not in WEIGHT_TYPES:
            by_type.setdefault(tensors[name].dtype, []).append(name)
    if by_type:
        texts = [f"{_listed(names)}: {dtype}" for dtype, names in by_type.items()]
        raise ConversionError(f"weights must be of the type {', '.join(WEIGHT_TYPES)}; {first_few(texts, '; ')}")


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal bit for bit in type, shape and values; read in blocks of rows."""
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    if a.storage_id == b.storage_id:
        return True
    if not a.shape or not a.nbytes:
        return _same_bits(a.read(), b.read())
    rows = max(1, _BLOCK_BYTES * a.shape[0] // a.nbytes)
    return all(
        _same_bits(a.read_rows(start, stop), b.read_rows(start, stop))
        for start, stop in ((start, min(start + rows, a.shape[0])) for start in range(0, a.shape[0], rows))
    )


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    bits = f"u{a.dtype.itemsize}"
    return bool(np.array_equal(a.view(bits), b.view(bits)))


def _check_slopes(config: DecoderConfig, name: str, slopes: Tensor) -> None:
    wanted = np.array(alibi_slopes(config.num_heads))
    found = slopes.read().astype(np.float64).reshape(-1)
    off = ~(np.abs(found - wanted) <= max(_SLOPE_TOLERANCE, UNIT_ROUNDOFF[slopes.dtype]) * wanted)
    if off.any():
        head = int(np.argmax(off))
        raise ConversionError(
            f"{name} does not hold ALiBi's slopes for {config.num_heads} heads: head {head} has {found[head]:.6g} "
            f"where ALiBi has {wanted[head]:.6g}; the tensor is damaged or the heads are in another order"
        )


def _listed(names: Iterable[str]) -> str:
    return first_few(grouped(names), "; ")
