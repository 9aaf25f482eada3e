"""What each operation of a CIRH program computes, in PyTorch: one table, `OPERATIONS`.

The operations are not documented. Most do what the operation of the same name does in PyTorch or StableHLO. Where a
name leaves a choice, the meaning is the one with which a whole step gives what its torch-level program gives, whose
operations are PyTorch's own; the docstring says "found by comparison". All values of a float type are computed in one
float type, that of the run; rounding to 16 bits is in `rounding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cerebras_jais.cirh.program import Dense, Operation, ProgramError
from cerebras_jais.ranges import shown

Compute = Callable[[Operation, Sequence[Tensor]], Tensor | tuple[Tensor, ...]]

_MOST_DIMENSIONS = 64  # that PyTorch takes
_WHOLE = {"i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "i1": torch.bool}


def dtype_of(name: str, floats: torch.dtype) -> torch.dtype:
    """The type of values of an element type: `floats` for every float, their own for others."""
    return _WHOLE.get(name, floats)


def compute(operation: Operation, operands: Sequence[Tensor], floats: torch.dtype) -> tuple[Tensor, ...]:
    """The results of one operation, in the types that the program gives them.

    Raises ProgramError for a kind that is not in the table, for operands and attributes that it does not take, and for
    a result of another shape than the program says.
    """
    if operation.kind not in OPERATIONS:
        raise ProgramError(
            f"line {operation.line}: cirh.{operation.kind} is not among the operations that can be run here; "
            "add it to cerebras_jais/cirh/operations.py"
        )
    try:
        found = OPERATIONS[operation.kind](operation, operands)
        made = found if isinstance(found, tuple) else (found,)
        types = zip(made, operation.result_types, strict=False)
        results = tuple(result.to(dtype_of(type_.dtype, floats)) for result, type_ in types)
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ProgramError(
            f"line {operation.line}: cirh.{operation.kind} with these operands and attributes cannot be run: {reason}"
        ) from error
    if len(made) != len(operation.result_types):
        raise ProgramError(
            f"line {operation.line}: cirh.{operation.kind} has {len(operation.result_types)} results in the program, "
            f"and gives {len(made)} here"
        )
    for result, type_ in zip(results, operation.result_types, strict=True):
        if tuple(result.shape) != type_.shape:
            raise ProgramError(
                f"line {operation.line}: cirh.{operation.kind} gives {list(result.shape)}, the program says "
                f"{list(type_.shape)}; it means something else here than cerebras_jais/cirh/operations.py assumes"
            )
    return results


# ---- attributes ------------------------------------------------------------------------------------------------------


def _dims(operation: Operation, key: str) -> list[int]:
    """An attribute that lists dimensions."""
    dense = operation.attributes[key]
    if not isinstance(dense, Dense) or dense.type.elements > _MOST_DIMENSIONS:
        raise ValueError(f"{key} must list dimensions as dense<...>")
    count = dense.type.elements
    return [int(value) for value in (dense.values * count if len(dense.values) == 1 else dense.values)][:count]


def _list(tensor: Tensor) -> list[int]:
    """An operand that lists sizes or dimensions."""
    return [int(value) for value in tensor.tolist()]


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _const(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    dense = operation.attributes["value"]
    exact = torch.float64 if "f" in dense.type.dtype else _WHOLE[dense.type.dtype]
    values = torch.tensor(dense.values, dtype=exact)
    return values[0].expand(dense.type.shape) if values.numel() == 1 else values.reshape(dense.type.shape)


def _broadcast(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    """Dimension i of the operand is dimension `broadcast_dimensions[i]` of the result (as in StableHLO)."""
    (x,), shape = operands, operation.result_types[0].shape
    sizes = [1] * len(shape)
    for size, dim in zip(x.shape, _dims(operation, "broadcast_dimensions"), strict=True):
        sizes[dim] = size
    return x.reshape(sizes).expand(shape)


def _strided_slice(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    """x[begin:end:stride] in every dimension; the masks are TensorFlow's and 0 in every program of the family."""
    x, begin, end, stride = operands
    masks = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
    if any(operation.attributes[mask] for mask in masks):
        raise ProgramError(f"line {operation.line}: cirh.StridedSlice with a mask cannot be run here")
    bounds = zip(_list(begin), _list(end), _list(stride), strict=True)
    return x[tuple(slice(first, last, step) for first, last, step in bounds)]


def _reduce(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    """Over `dimensions`, of which those in `keep_dims` stay with size 1; ARGMAX gives the first of equal values."""
    (x,), dims, kept = operands, _dims(operation, "dimensions"), _dims(operation, "keep_dims")
    kind = operation.attributes["reduce_kind"]
    if kind == "ADD":
        out = x.sum(dims, keepdim=True)
    elif kind in ("MAX", "MIN"):
        out = x.amax(dims, keepdim=True) if kind == "MAX" else x.amin(dims, keepdim=True)
    elif kind == "ARGMAX" and len(dims) == 1:
        out = x.argmax(dims[0], keepdim=True)
    else:
        raise ProgramError(f"line {operation.line}: cirh.Reduce of kind {shown(kind)} over {dims} cannot be run here")
    return out.squeeze([dim for dim in dims if dim not in kept])


# ---- products --------------------------------------------------------------------------------------------------------


def _matmul(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    a, b = operands
    a = a.mT if operation.attributes["transpose_a"] else a
    return a @ (b.mT if operation.attributes["transpose_b"] else b)


def _dot_general(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    """Batch dimensions, then the rest of the left operand, then the rest of the right (as in StableHLO)."""
    sides, names = [], ("lhs", "rhs")
    for name, x in zip(names, operands, strict=True):
        batch, summed = (_dims(operation, f"{name}_{kind}_dimensions") for kind in ("batching", "contracting"))
        rest = [dim for dim in range(x.dim()) if dim not in (*batch, *summed)]
        sides.append((x.permute(*batch, *rest, *summed), len(batch), len(rest)))
    (left, batches, rows), (right, _, columns) = sides
    shape = (*left.shape[: batches + rows], *right.shape[batches : batches + columns])
    first, second = left.flatten(batches + rows), right.flatten(batches + columns)
    return (first.reshape(*left.shape[:batches], -1, first.shape[-1])
            @ second.reshape(*right.shape[:batches], -1, second.shape[-1]).mT).reshape(shape)  # fmt: skip


# ---- numbers ---------------------------------------------------------------------------------------------------------

_COMPARISONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "EQ": torch.eq,
    "NE": torch.ne,
    "LT": torch.lt,
    "LE": torch.le,
    "GT": torch.gt,
    "GE": torch.ge,
}


def _layer_norm(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    """Of the last dimension; operands are x, beta, gamma (found by comparison: PyTorch has gamma, beta)."""
    x, beta, gamma = operands
    return F.layer_norm(x, gamma.shape, gamma, beta, operation.attributes["epsilon"])


def _layer_norm_grad(operation: Operation, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of x, beta, gamma from dy, x, beta, gamma (order found by comparison)."""
    dy, x, _, gamma = operands
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    rstd = (variance + operation.attributes["epsilon"]).rsqrt()
    normed, dnormed = (x - mean) * rstd, dy * gamma
    others = normed * (dnormed * normed).mean(-1, keepdim=True)
    dx = rstd * (dnormed - dnormed.mean(-1, keepdim=True) - others)
    rows = list(range(x.dim() - 1))
    return dx, dy.sum(rows), (dy * normed).sum(rows)


def _cross_entropy(operation: Operation, operands: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """-log softmax(logits)[label] of each row, and its gradient, softmax minus one-hot (found by comparison)."""
    logits, labels = operands
    if operation.attributes["axis"] != 1 or logits.dim() != 2:
        raise ProgramError(f"line {operation.line}: cross entropy of rows of two-dimensional logits alone can be run")
    logs, at = logits.log_softmax(1), labels.long()[:, None]
    gradient = logs.exp()
    return -logs.gather(1, at)[:, 0], gradient.scatter_add(1, at, gradient.new_full((), -1.0).expand(at.shape))


def _gather(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    """Rows of a table by their numbers."""
    table, rows = operands
    if operation.attributes["axis"] or operation.attributes["batch_dims"]:
        raise ProgramError(f"line {operation.line}: cirh.Gather along another axis than the first cannot be run here")
    return table[rows.long()]


def _scatter(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    """Adds each update to the row of `table` that `rows` [N, 1] names (that it adds was found by comparison)."""
    table, rows, updates = operands
    return table.index_add(0, rows[:, 0].long(), updates)


def _arange(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    begin, end, step = (x.item() for x in operands)
    return torch.arange(begin, end, step, dtype=operands[0].dtype)


def _l2_norm(operation: Operation, operands: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(operands[0], dim=_dims(operation, "dims"))
    return norm


def _plain(function: Callable[..., Tensor]) -> Compute:
    """An operation that is a function of its operands alone."""
    return lambda operation, operands: function(*operands)


OPERATIONS: Mapping[str, Compute] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "Arange": _arange,
    "BroadcastInDim": _broadcast,
    # To whole numbers towards zero, as aten::_to_copy, which it is lowered from; `Truncate` is false in every program.
    # Rotary embeddings rely on it: the pair of dimension k is k / 2 cast to i16.
    "Cast": _plain(lambda x: x),
    "Clamp": _plain(lambda x, low, high: torch.minimum(torch.maximum(x, low), high)),
    "Compare": lambda operation, operands: _COMPARISONS[operation.attributes["comparison_direction"]](*operands),
    "Concat": lambda operation, operands: torch.cat(list(operands), operation.attributes["axis"]),
    "Const": _const,
    "Cos": _plain(torch.cos),
    "Div": _plain(torch.div),
    "DotGeneral": _dot_general,
    "Exp": _plain(torch.exp),
    "Gather": _gather,
    "L2Norm": _l2_norm,
    "LayerNorm": _layer_norm,
    "LayerNormGrad": _layer_norm_grad,
    "Log": _plain(torch.log),
    "MatMul": _matmul,
    "Mul": _plain(torch.mul),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "Pow": _plain(torch.pow),
    "Reciprocal": _plain(torch.reciprocal),
    "Reduce": _reduce,
    "Reshape": lambda operation, operands: operands[0].reshape(operation.result_types[0].shape),
    "Rsqrt": _plain(torch.rsqrt),
    "ScatterNd": _scatter,
    "Select": _plain(torch.where),
    "Sigmoid": _plain(torch.sigmoid),
    "Sin": _plain(torch.sin),
    "Softmax": lambda operation, operands: operands[0].softmax(operation.attributes["axis"]),
    "SparseSoftmaxCrossEntropyWithLogits": _cross_entropy,
    "Sqrt": _plain(torch.sqrt),
    "StridedSlice": _strided_slice,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda operation, operands: operands[0].permute(_list(operands[1])),
}
