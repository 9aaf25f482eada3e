"""FlexAttention with ALiBi and documents is attention with a mask of every pair.

Contract: output and gradients are those of float64 with the whole mask, for any heads, interpolation and division into
documents, keys of groups included; the listed blocks are those that PyTorch finds in the whole mask, without one being
made. Without a GPU the kernel's plain form is tested, and its compiled form for CPUs; a test of the mark `gpu` has the
compiled kernels themselves.
"""

import shutil
import warnings
from itertools import product

import pytest
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.model import decoder
from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.kernels import flex
from cerebras_jais.model.kernels.flex import BLOCK, flex_serves, make_flex_mask
from tests import tolerances
from tests.cerebras_jais.model.examples import batch_of, jais_section, llama_section, sharp_model
from tests.cerebras_jais.model.kernels.masked import (
    SCALE,
    Largest,
    assert_as_exact,
    documents,
    ends_of,
    random_heads,
    results,
    with_mask,
)
from tests.marks import slow_except

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(
    torch.__version__ < torch.torch_version.TorchVersion("2.7"), reason="FlexAttention is not used before torch 2.7"
)


@pytest.fixture
def plain(monkeypatch):
    """FlexAttention's plain form, with gradients, which PyTorch offers on GPUs alone."""
    from torch.nn.attention import flex_attention as module

    monkeypatch.setattr(module, "_validate_device", lambda *tensors: None)
    return module.flex_attention


def by_flex(kernel):
    """Attention by a kernel, called as the masked one; None is the compiled kernel."""

    def attend(q, k, v, slopes_H, factor, span_BL):
        slopes = None if slopes_H is None else slopes_H / factor
        return make_flex_mask(q.shape[2], slopes, ends_of(span_BL), q.device, kernel).attend(q, k, v, SCALE)

    return attend


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("heads", slow_except([12], [12, 20, 40, 56]))
@pytest.mark.parametrize("sizes", slow_except([[130, 1, 1, 60]], [None, [130, 1, 1, 60]]), ids=str)
def test_alibi_with_interpolation_is_exact(plain, heads, sizes):
    slopes, length, head_dim = (
        torch.tensor(alibi_slopes(heads)),
        200,
        20,
    )  # neither is a multiple of what a kernel wants
    span = None if sizes is None else documents(sizes, length).expand(2, -1)
    assert_as_exact(by_flex(plain), random_heads(2, heads, length, head_dim), (slopes, 4.0, span))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_rows_without_alibi_are_exact(plain):
    span = documents([130, 1, 1, 60], 200)
    assert_as_exact(by_flex(plain), random_heads(1, 3, 200, 16), (None, 1.0, span))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("packed", slow_except([True], [False, True]))
@pytest.mark.parametrize("section", [jais_section(), llama_section(kv_groups=4)], ids=["jais", "llama-grouped"])
def test_a_model_computes_what_it_computes_with_its_other_kernel(plain, monkeypatch, section, packed):
    model = sharp_model(section)
    batch = batch_of(model.config, packed=packed)
    found = []
    for kernel in (decoder.make_tiling, lambda length, heads, *words: make_flex_mask(length, *words, CPU, plain)):
        monkeypatch.setattr(decoder, "make_tiling", kernel)
        model.zero_grad()
        loss = model(batch)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after, before, atol=tolerances.SAME_IN_FLOAT32, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch needs a compiler of C++")
def test_the_compiled_kernel_computes_the_listed_blocks_alone_and_all_of_them():
    from torch._inductor import config

    slopes, span = torch.tensor(alibi_slopes(3)), documents([130, 1, 300, 20], 500)
    *inputs, _ = random_heads(1, 3, 500, 16)
    # What it would compile to find out the vector instructions takes half the time.
    with torch.no_grad(), config.patch({"cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}):
        found, right = (attend(*inputs, slopes, 4.0, span) for attend in (by_flex(None), with_mask))
    torch.testing.assert_close(found, right, atol=tolerances.SAME_IN_FLOAT32, rtol=0)


def test_rows_of_many_sizes_are_all_compiled(monkeypatch):
    """PyTorch warns where it computes every pair instead, as it does of more forms than it compiles."""
    compile_it = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compile_it(f, backend=lambda graph, inputs: graph.forward))
    torch._dynamo.reset()
    flex._compiled.cache_clear()
    try:
        with torch._dynamo.config.patch(recompile_limit=8), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("error")
            for length, rows, packed in product((512, 300, 100, 17), (4, 1), (False, True)):
                *inputs, _ = random_heads(rows, 3, length, 16)
                span = documents([length // 2], length).expand(rows, -1) if packed else None
                by_flex(None)(*inputs, torch.rand(3), 1.0, span)
    finally:
        flex._compiled.cache_clear()
        torch._dynamo.reset()


def listed(counts, numbers):
    """The blocks of each row, as sets."""
    return [
        set(row[:count]) for count, row in zip(counts.flatten().tolist(), numbers.flatten(0, 2).tolist(), strict=True)
    ]


@given(st.lists(st.lists(st.integers(1, 2 * BLOCK), max_size=5), max_size=2), st.integers(1, BLOCK))
@settings(max_examples=8)
def test_the_blocks_are_those_of_the_whole_mask(rows, more):
    from torch.nn.attention.flex_attention import create_block_mask

    total = max([0, *map(sum, rows)]) + more
    span = torch.cat([documents(row, total) for row in rows]) if rows else None
    found = make_flex_mask(total, None, ends_of(span), CPU).blocks
    right = create_block_mask(found.mask_mod, max(1, len(rows)), None, total, total, "cpu", BLOCK)
    assert found.shape == right.shape
    for kind in ("kv", "full_kv", "q", "full_q"):
        ours, theirs = (
            [getattr(mask, f"{kind}_{name}") for name in ("num_blocks", "indices")] for mask in (found, right)
        )
        assert listed(*ours) == listed(*theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.dtype, mine.shape, mine.is_contiguous()) == (other.dtype, other.shape, True)


@pytest.mark.parametrize("packed", [False, True])
def test_no_mask_of_every_pair_is_made(packed):
    length = 16384
    ends = ends_of(documents([500] * 30, length)) if packed else None
    with Largest() as largest:
        make_flex_mask(length, torch.tensor(alibi_slopes(8)), ends, CPU)
    assert largest.elements <= 4 * length


def test_a_device_or_type_without_these_kernels_has_the_mask():
    assert not flex_serves(torch.device("meta"), torch.float32)
    assert not flex_serves(CPU, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("length", [512, 1000, 2048])
@pytest.mark.parametrize("head_dim", [80, 128])
@pytest.mark.parametrize("packed", [False, True])
def test_the_kernels_of_a_gpu_are_exact(dtype, length, head_dim, packed):
    slopes = torch.tensor(alibi_slopes(12), device="cuda")
    span = documents([300, 1, 1, 150], length).expand(2, -1).to("cuda") if packed else None
    *inputs, grad = random_heads(2, 12, length, head_dim, "cuda", dtype)
    exact, found = (
        results(attend, inputs, grad, type_, slopes, 4.0, span)
        for attend, type_ in ((with_mask, torch.float64), (by_flex(None), dtype))
    )
    bound = tolerances.SAME_IN_FLOAT32 if dtype == torch.float32 else tolerances.SAME_IN_BFLOAT16
    for name, ours, right in zip(("out", "q", "k", "v"), found, exact, strict=True):
        assert (ours - right).abs().max() <= bound * right.abs().max(), name


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
def test_the_memory_of_a_gpu_grows_as_the_length_does(packed):
    slopes, peaks = torch.tensor(alibi_slopes(12), device="cuda"), []
    for length in (4096, 16384):
        span = documents([500] * (length // 500), length).to("cuda") if packed else None
        *inputs, grad = random_heads(1, 12, length, 128, "cuda", torch.bfloat16)
        for _ in range(2):  # the first compiles
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            results(by_flex(None), inputs, grad, torch.bfloat16, slopes, 1.0, span)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 4.5 * peaks[0]
