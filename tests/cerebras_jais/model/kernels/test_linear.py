import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cerebras_jais.model.kernels import linear as module
from cerebras_jais.model.kernels.linear import Linear, add_product_, linear, matmul
from tests.tolerances import PRODUCT_RELATIVE


@pytest.fixture(params=["oneDNN", "torch's own"], autouse=True)
def library(request, monkeypatch):
    """Products of any size by oneDNN, on any processor, or all of them as PyTorch takes them."""
    if request.param == "oneDNN" and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch is built without oneDNN")
    monkeypatch.setattr(module, "_ONEDNN_IS_QUICKER", request.param == "oneDNN")
    monkeypatch.setattr(module, "_LARGE", 1)
    return request.param


def _close(mine: torch.Tensor, exact: torch.Tensor) -> bool:
    assert mine.shape == exact.shape and mine.dtype == torch.float32
    return float((mine.detach().double() - exact.detach()).norm() / exact.detach().norm()) < PRODUCT_RELATIVE


def _problem(*lead: int, inputs: int, outputs: int, bias: bool):
    torch.manual_seed(0)
    tensors = [torch.randn(*lead, inputs), torch.randn(outputs, inputs)] + [torch.randn(outputs)] * bias
    return [t.requires_grad_() for t in tensors], torch.randn(*lead, outputs)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(48, 200), (200, 48), (64, 64)])
def test_a_layer_and_its_gradients_are_those_of_float64(inputs, outputs, bias):
    tensors, grad = _problem(3, 50, inputs=inputs, outputs=outputs, bias=bias)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    out, exact_out = linear(*tensors, *[None] * (not bias)), F.linear(*exact)
    assert _close(out, exact_out)
    out.backward(grad)
    exact_out.backward(grad.double())
    assert all(_close(t.grad, e.grad) for t, e in zip(tensors, exact, strict=True))


def test_inputs_and_gradients_that_do_not_lie_in_order_are_read_right():
    (x, weight), _ = _problem(50, 3, inputs=48, outputs=200, bias=False)
    out = linear(x.transpose(0, 1), weight, None)
    out.sum().backward()  # the gradient of a sum has strides of zero
    assert _close(out, F.linear(x.double(), weight.double()).transpose(0, 1))
    assert _close(x.grad, weight.double().sum(0).expand_as(x))
    assert _close(weight.grad, x.double().sum((0, 1)).expand_as(weight))


def test_weights_that_lie_by_column_are_read_right():
    (x, weight), _ = _problem(40, inputs=48, outputs=200, bias=False)
    by_column = weight.detach().t().contiguous().t()
    assert _close(linear(x, by_column, None), x.double() @ weight.double().t())
    # Neither these weights nor their transpose are contiguous.
    assert _close(linear(x[:, ::2], weight[:, ::2], None), x[:, ::2].double() @ weight[:, ::2].double().t())


@pytest.mark.parametrize(("rows", "columns"), [(200, 48), (48, 200)])
def test_products_of_transposed_matrices_and_their_sums_are_those_of_float64(rows, columns):
    torch.manual_seed(0)
    a, b, total = torch.randn(70, rows), torch.randn(70, columns), torch.randn(rows, columns)
    exact = a.double().t() @ b.double()
    assert _close(matmul(a.t(), b), exact)
    assert _close(matmul(a.t(), b.t().contiguous().t()), exact)
    before = total.double()
    add_product_(total, a.t(), b)
    assert _close(total, before + exact)


class _Largest(TorchDispatchMode):
    """Numbers of the largest tensor that an operation returns, but for `known`."""

    def __init__(self, known: torch.Tensor):
        super().__init__()
        self.known, self.numbers = known.data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if result.data_ptr() != self.known:
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [150, 500, 30])  # of a sum of 500 rows
def test_a_sum_takes_a_product_in_parts(monkeypatch, dtype, rows):
    torch.manual_seed(0)
    a, b, total = torch.randn(20, 500).to(dtype), torch.randn(20, 48).to(dtype), torch.randn(500, 48)
    monkeypatch.setattr(module, "SUMMED_AT_ONCE", rows * 48)
    monkeypatch.setattr(module, "_ROWS_IN_CACHE", rows)
    exact = total.double() + a.double().t() @ b.double()
    turned = a.t()
    with _Largest(total) as largest:
        add_product_(total, turned, b)
    if dtype == torch.float32:
        assert _close(total, exact)
    else:
        assert torch.allclose(total.double(), exact, rtol=2**-8, atol=2**-8 * 20)  # each product rounded to 16 bits
    assert largest.numbers <= rows * 48


def test_a_frozen_weight_gets_no_gradient_and_passes_one_on():
    (x, weight, bias), grad = _problem(40, inputs=48, outputs=200, bias=True)
    linear(x, weight.detach(), bias).backward(grad)
    assert weight.grad is None
    assert _close(x.grad, grad.double() @ weight.double()) and _close(bias.grad, grad.double().sum(0))


def test_under_autocast_a_layer_is_torchs_own():
    (x, weight, bias), grad = _problem(40, inputs=48, outputs=200, bias=True)
    found = []
    for layer in (linear, F.linear):
        x.grad = weight.grad = bias.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(x, weight, bias)
        out.backward(grad.bfloat16())
        found.append((out, x.grad, weight.grad, bias.grad))
    assert found[0][0].dtype == torch.bfloat16
    assert all(torch.equal(mine, own) for mine, own in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_torchs_own(dtype):
    layer, own = Linear(48, 200, dtype=dtype), torch.nn.Linear(48, 200, dtype=dtype)
    own.load_state_dict(layer.state_dict())
    x = torch.randn(40, 48, dtype=dtype)
    assert torch.equal(layer(x), own(x))


def test_no_tokens_are_no_rows():
    (x, weight, bias), _ = _problem(0, 7, inputs=48, outputs=200, bias=True)
    assert linear(x, weight, bias).shape == (0, 7, 200)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["oneDNN"], indirect=True)
def test_torch_compile_gives_the_same_layer():
    (x, weight, bias), grad = _problem(40, inputs=48, outputs=200, bias=True)
    try:
        out = torch.compile(linear)(x, weight, bias)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"no compiler here: {error}")
    out.backward(grad)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    F.linear(*exact).backward(grad.double())
    assert _close(out, F.linear(*exact))
    assert all(_close(t.grad, e.grad) for t, e in zip((x, weight, bias), exact, strict=True))
