"""What a program is, in numbers: operations, FLOPs of its matrix products, bytes, what it changes, and digests."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cerebras_jais.cirh.program import Argument, Dense, Operation, Program, ProgramError, TensorType

MODEL, OPTIMIZER = "model.", "optimizer."


@dataclass(frozen=True)
class Held:
    """Weights or states by name, with their types."""

    tensors: Mapping[str, TensorType]

    @property
    def elements(self) -> int:
        """Of all tensors."""
        return sum(type_.elements for type_ in self.tensors.values())

    @property
    def bytes(self) -> int:
        """Of all tensors."""
        return sum(type_.bytes for type_ in self.tensors.values())

    @property
    def elements_by_dtype(self) -> dict[str, int]:
        """Element type -> elements of all tensors of it."""
        found: Counter[str] = Counter()
        for type_ in self.tensors.values():
            found[type_.dtype] += type_.elements
        return dict(found)


@dataclass(frozen=True)
class Summary:
    """A program in numbers.

    Attributes:
        digest: sha256 of the program but for the values of its constants: equal for configs that differ in learning
            rates alone, another for another context.
        exact_digest: sha256 with the values of its constants.
        operations: kind -> how many, the most frequent first.
        product_flops: multiplications and additions of MatMul and DotGeneral in one step, forward and backward.
        weights: tensors of the model that the program is given.
        states: everything else that a checkpoint has and the program is given.
        changed: names of weights and states that the step gives a new value.
        read: names of weights and states that it reads and leaves as they are.
        untouched: names of weights and states that no operation reads and none changes.
        inputs: feature of the batch -> type.
        dtypes: element type -> how many results of operations have it.
    """

    digest: str
    exact_digest: str
    operations: Mapping[str, int]
    product_flops: int
    weights: Held
    states: Held
    changed: tuple[str, ...]
    read: tuple[str, ...]
    untouched: tuple[str, ...]
    inputs: Mapping[str, TensorType]
    dtypes: Mapping[str, int]


def summarize(program: Program) -> Summary:
    """Everything that the text of a program says by itself."""
    held = {argument.resource: argument for argument in program.arguments if argument.resource is not None}
    used = {name for operation in program.operations for name in operation.operands}
    changed = [name for name, argument in held.items() if changes(program, argument)]
    read = [name for name, argument in held.items() if name not in changed and argument.name in used]
    return Summary(
        digest=digest_of(program, numbers=False),
        exact_digest=digest_of(program, numbers=True),
        operations=_counted(operation.kind for operation in program.operations),
        product_flops=sum(map(product_flops, program.operations)),
        weights=Held({name: argument.type for name, argument in held.items() if name.startswith(MODEL)}),
        states=Held({name: argument.type for name, argument in held.items() if not name.startswith(MODEL)}),
        changed=tuple(changed),
        read=tuple(read),
        untouched=tuple(name for name in held if name not in changed and name not in read),
        inputs={argument.input: argument.type for argument in program.arguments if argument.input is not None},
        dtypes=_counted(type_.dtype for operation in program.operations for type_ in operation.result_types),
    )


def changes(program: Program, argument: Argument) -> bool:
    """Whether the step gives an argument a new value: its result is not the argument itself."""
    return argument.alias is not None and program.results[argument.alias].value != argument.name


def product_flops(operation: Operation) -> int:
    """2 m n k of a matrix product (a multiplication and an addition each), 0 of every other operation.

    Raises ProgramError for a product whose attributes are not those of one.
    """
    try:
        terms = _summed(operation)
        return 2 * operation.result_types[0].elements * terms if terms else 0
    except (AttributeError, LookupError, TypeError):
        raise ProgramError(f"line {operation.line}: cirh.{operation.kind} without its dimensions") from None


def _summed(operation: Operation) -> int:
    """How many terms each element of a product is the sum of; 0 for what is not a product."""
    if operation.kind == "MatMul":
        left = operation.operand_types[0].shape
        return left[-2] if operation.attributes["transpose_a"] else left[-1]
    if operation.kind == "DotGeneral":
        left = operation.operand_types[0].shape
        return math.prod(left[dim] for dim in operation.attributes["lhs_contracting_dimensions"].values)
    return 0


def digest_of(program: Program, *, numbers: bool) -> str:
    """sha256 of arguments, operations and results; layout of the text and sources of its lines are left out.

    Args:
        numbers: whether the values of constants count: of float constants, and of single integers, such as a learning
            rate, a weight decay, an embeddings scale or the length of a warm-up.
    """
    digest = hashlib.sha256()
    for argument in program.arguments:
        digest.update(f"{argument}\n".encode())
    for operation in program.operations:
        attributes = _ordered(operation.attributes)
        if operation.kind == "Const" and not numbers and _is_number(operation.result_types[0]):
            attributes = ()
        types = (operation.operand_types, operation.result_types)
        line = (operation.kind, operation.results, operation.operands, attributes, *map(_texts, types))
        digest.update(f"{line}\n".encode())
    digest.update(f"{program.results}\n".encode())
    return digest.hexdigest()


def _is_number(type_: TensorType) -> bool:
    return "f" in type_.dtype or not type_.shape


def _texts(types: Iterable[TensorType]) -> str:
    return ",".join(map(str, types))


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple((key, _ordered(value[key])) for key in sorted(value))
    if isinstance(value, Dense):
        return str(value.type), value.values
    return value


def _counted(items: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(items).items(), key=lambda pair: (-pair[1], pair[0])))
