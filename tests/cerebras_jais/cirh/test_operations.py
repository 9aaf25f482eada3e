"""Each operation computes what PyTorch computes by another way.

Contract: products against einsum, norms and cross entropy against PyTorch's own and autograd, gathers and scatters
against loops; an operation, or a kind of one, that is not known is refused by its line.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from cerebras_jais.cirh.operations import OPERATIONS
from cerebras_jais.cirh.program import ProgramError, read_program
from cerebras_jais.cirh.run import run_step
from tests.cerebras_jais.cirh.text import operation

NAMES = {torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.bool: "i1"}


def typed(tensor):
    return "".join(f"{size}x" for size in tensor.shape) + NAMES[tensor.dtype]


def run(kind, operands, results, attributes="", floats=torch.float32):
    """The results of one operation on tensors; `results` are examples of their types."""
    names = [f"%r{i}" for i in range(len(results))] if len(results) > 1 else None
    text = operation(kind, [typed(x) for x in operands], [typed(x) for x in results], attributes, names)
    out = run_step(read_program(text), {}, dict(zip("abcd", operands, strict=False)), floats=floats)
    return [out.outputs[f"r{i}"] for i in range(len(results))]


def check(kind, operands, expected, attributes=""):
    for value, wanted in zip(run(kind, operands, expected, attributes), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)


def dims(**values):
    return ", ".join(
        f"{name} = dense<{list(value) if value else ''}> : tensor<{len(value)}xi64>" for name, value in values.items()
    )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("a", [False, True])
@pytest.mark.parametrize("b", [False, True])
def test_matmul_transposes_what_it_says(a, b):
    x, y = torch.randn(4, 3), torch.randn(3, 5)
    attributes = f"cs.internal = {{}}, transpose_a = {str(a).lower()}, transpose_b = {str(b).lower()}"
    check("MatMul", [x.t().contiguous() if a else x, y.t().contiguous() if b else y], [x @ y], attributes)


@pytest.mark.parametrize(
    ("left", "right", "out", "axes"),
    [
        ("bhqd", "bhkd", "bhqk", ([0, 1], [3], [0, 1], [3])),
        ("bhqk", "bhkd", "bhqd", ([0, 1], [3], [0, 1], [2])),
        ("bhqk", "bhqd", "bhkd", ([0, 1], [2], [0, 1], [2])),
        ("qbh", "hkb", "bqk", ([1], [2], [2], [0])),
        ("qd", "dk", "qk", ([], [1], [], [0])),
        ("qde", "edk", "qk", ([], [1, 2], [], [1, 0])),
    ],
)
def test_dot_general_is_an_einsum(left, right, out, axes):
    sizes = {"b": 2, "h": 3, "q": 4, "k": 5, "d": 6, "e": 7}
    x, y = (torch.randn([sizes[axis] for axis in name]) for name in (left, right))
    keys = ("lhs_batching", "lhs_contracting", "rhs_batching", "rhs_contracting")
    attributes = dims(**{f"{key}_dimensions": value for key, value in zip(keys, axes, strict=True)})
    check("DotGeneral", [x, y], [torch.einsum(f"{left},{right}->{out}", x, y)], attributes)


def test_layer_norm_takes_beta_before_gamma_and_its_gradient_is_autograds():
    x, beta, gamma = torch.randn(2, 4, 8, requires_grad=True), torch.randn(8), 1 + torch.randn(8)
    beta.requires_grad_(), gamma.requires_grad_()
    out = F.layer_norm(x, (8,), gamma, beta, 1e-5)
    dy = torch.randn_like(out)
    wanted = torch.autograd.grad(out, (x, beta, gamma), dy)
    given = [tensor.detach() for tensor in (x, beta, gamma)]
    check("LayerNorm", given, [out.detach()], "epsilon = 9.99999974E-6 : f32")
    check("LayerNormGrad", [dy, *given], list(wanted), "epsilon = 9.99999974E-6 : f32")


def test_cross_entropy_gives_the_loss_of_each_row_and_its_gradient():
    logits, labels = torch.randn(6, 10, requires_grad=True), torch.randint(0, 10, (6,))
    loss = F.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    check("SparseSoftmaxCrossEntropyWithLogits", [logits.detach(), labels], [loss.detach(), gradient], "axis = 1 : i64")


def test_gather_and_scatter_are_an_embedding_and_its_gradient():
    table, rows = torch.randn(7, 3, requires_grad=True), torch.tensor([1, 6, 1, 0], dtype=torch.int32)
    out = F.embedding(rows, table)
    dy = torch.randn_like(out)
    (gradient,) = torch.autograd.grad(out, table, dy)
    attributes = "axis = 0 : i64, batch_dims = 0 : i64, is_sparse = false"
    check("Gather", [table.detach(), rows], [out.detach()], attributes)
    check("ScatterNd", [torch.zeros(7, 3), rows[:, None], dy], [gradient])


def test_reductions_keep_the_dimensions_that_are_named():
    x = torch.randn(2, 3, 4)
    check("Reduce", [x], [x.sum((0, 2))], f'{dims(dimensions=[0, 2], keep_dims=[])}, reduce_kind = "ADD"')
    check(
        "Reduce",
        [x],
        [x.sum((0, 2), keepdim=True)],
        f'{dims(dimensions=[0, 2], keep_dims=[0, 2])}, reduce_kind = "ADD"',
    )
    check("Reduce", [x], [x.amax(1, keepdim=True)], f'{dims(dimensions=[1], keep_dims=[1])}, reduce_kind = "MAX"')
    check("Reduce", [x], [x.argmax(2)], f'{dims(dimensions=[2], keep_dims=[])}, reduce_kind = "ARGMAX"')


def test_shapes():
    x = torch.randn(2, 1, 4)
    check("BroadcastInDim", [x], [x[:, None].expand(2, 3, 5, 4)], dims(broadcast_dimensions=[0, 2, 3]))
    check("BroadcastInDim", [torch.tensor(2.0)], [torch.full((3, 2), 2.0)], dims(broadcast_dimensions=[]))
    check("Reshape", [x], [x.reshape(4, 2)])
    check("Transpose", [x, torch.tensor([2, 0, 1])], [x.permute(2, 0, 1)])
    check("Concat", [x, x], [torch.cat([x, x], 1)], "axis = 1 : i64")
    masks = ", ".join(f"{name}_mask = 0 : i64" for name in ("begin", "end", "ellipsis", "new_axis", "shrink_axis"))
    bounds = [torch.tensor(values) for values in ([0, 0, 1], [2, 1, 4], [1, 1, 2])]
    check("StridedSlice", [x, *bounds], [x[:, :, 1:4:2]], masks)
    check("Arange", [torch.tensor(0.0), torch.tensor(5.0), torch.tensor(1.0)], [torch.arange(5.0)], "dim = 0 : i64")


def test_numbers():
    x, y = torch.randn(3, 4), torch.rand(3, 4) + 0.5
    for kind, wanted in {"Add": x + y, "Sub": x - y, "Mul": x * y, "Div": x / y, "Pow": y**x}.items():
        check(kind, [y, x] if kind == "Pow" else [x, y], [wanted])
    for kind, function in {
        "Abs": abs,
        "Cos": torch.cos,
        "Sin": torch.sin,
        "Exp": torch.exp,
        "Tanh": torch.tanh,
    }.items():
        check(kind, [x], [function(x)])
    for kind, wanted in {"Sqrt": y**0.5, "Rsqrt": y**-0.5, "Reciprocal": 1 / y, "Log": y.log()}.items():
        check(kind, [y], [wanted])
    check("Sigmoid", [x], [1 / (1 + (-x).exp())])
    check("Softmax", [x], [x.exp() / x.exp().sum(0)], "axis = 0 : i64")
    check("L2Norm", [x], [(x * x).sum(1).sqrt()], f"{dims(dims=[1])}, keepdim = false")
    check("Clamp", [x, torch.tensor(-0.5), torch.tensor(math.inf)], [x.clamp(min=-0.5)])
    check("Compare", [x, y], [x >= y], 'comparison_direction = "GE"')
    check("Select", [x > 0, x, y], [torch.where(x > 0, x, y)])
    check("And", [x > 0, y > 1], [(x > 0) & (y > 1)])
    check("Cast", [torch.tensor([3.5, -2.5])], [torch.tensor([3, -2])], "Truncate = false")
    check("Cast", [torch.tensor([True, False])], [torch.tensor([1.0, 0.0])], "Truncate = false")


def test_infinities_of_a_mask_give_a_probability_of_zero():
    x = torch.tensor([[1.0, -math.inf, 2.0]])
    assert run("Softmax", [x], [x], "axis = 1 : i64")[0][0, 1] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (operation("MatMul", ["4x2xf32"] * 2, ["4x4xf32"]), "line 3: cirh.MatMul with these .*: 'transpose_a'"),
        (operation("Add", ["4xf32", "3xf32"], ["4xf32"]), "line 3: cirh.Add with these operands"),
        (
            operation("Mul", ["4xf32"] * 2, ["4xf32"] * 2),
            "line 3: cirh.Mul has 2 results in the program, and gives 1 here",
        ),
        (
            operation("Reduce", ["4xf32"], ["f32"], "dimensions = 0"),
            r"line 3: cirh.Reduce .*: dimensions must list dimensions as dense<...>",
        ),
        (
            operation("Const", [], [f"{10**15}xf32"], f"value = dense<1.0> : tensor<{10**15}xf32>"),
            "line 3: cirh.Const with",
        ),
        (operation("Gelu", ["4xf32"], ["4xf32"]), "line 3: cirh.Gelu is not among the operations"),
        (operation("Add", ["4xf32", "4xf32"], ["5xf32"]), r"line 3: cirh.Add gives \[4\], the program says \[5\]"),
        (
            operation("Reduce", ["4xf32"], ["f32"], f'{dims(dimensions=[0], keep_dims=[])}, reduce_kind = "MUL"'),
            "kind 'MUL'",
        ),
        (
            operation("Gather", ["4x2xf32", "3xi32"], ["4x3xf32"], "axis = 1 : i64, batch_dims = 0 : i64"),
            "another axis",
        ),
    ],
)
def test_what_cannot_be_run_is_named_by_its_line(text, message):
    program = read_program(text)
    batch = {argument.input: torch.zeros(argument.type.shape) for argument in program.arguments}
    with pytest.raises(ProgramError, match=message):
        run_step(program, {}, batch)


def test_the_table_is_in_the_order_of_the_alphabet():
    assert list(OPERATIONS) == sorted(OPERATIONS)
