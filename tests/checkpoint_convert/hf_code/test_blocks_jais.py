"""Contract: long rows, which go by blocks of queries, are computed as short ones, in memory linear in the length.

The sizes of blocks are set small here, so that a row of a few tokens has many; the equations are in
examples.plain_logits.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import StaticCache

from checkpoint_convert.hf_code import blocks_jais
from checkpoint_convert.hf_code.modeling_jais import JAISModel
from tests import tolerances
from tests.cerebras_jais.model.kernels.test_tiled import Largest
from tests.checkpoint_convert.hf_code.examples import plain_logits, random_ids, tiny_model
from tests.checkpoint_convert.hf_code.test_modeling_jais import assert_same, left_padded
from tests.marks import slow_except

SCALINGS = (None, {"type": "linear", "factor": 4.0}, {"type": "linear", "train_seq_len": 6})
HEADS = [(12, 48), (20, 80), (40, 80), (56, 112)]


@pytest.fixture(autouse=True)
def any_row_is_long(monkeypatch):
    monkeypatch.setattr(blocks_jais, "MOST_BIAS", -1)


@pytest.fixture
def blocks_are_small(monkeypatch):
    monkeypatch.setattr(blocks_jais, "QUERIES", 4)
    monkeypatch.setattr(blocks_jais, "FEW_QUERIES", 2)


@pytest.fixture
def blocks_are_short(monkeypatch):
    monkeypatch.setattr(blocks_jais, "QUERIES", 32)
    monkeypatch.setattr(blocks_jais, "FEW_QUERIES", 8)


@pytest.fixture
def watched(monkeypatch):
    """The queries and keys of each call of the kernel."""
    fused, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watching(q, k, *args, **keys):
        seen.append((q.shape[2], k.shape[2]))
        return fused(q, k, *args, **keys)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watching)
    return seen


@pytest.mark.usefixtures("blocks_are_small")
@pytest.mark.parametrize("shape", slow_except(HEADS[:1], HEADS), ids=str)
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_blocks_have_the_logits_of_the_equations(shape, scaling, watched):
    n_head, n_embd = shape
    model = tiny_model(attention="sdpa", n_head=n_head, n_embd=n_embd, n_layer=2, alibi_scaling=scaling)
    ids = random_ids(2, 13)
    divisor = {"factor": 4.0, "train_seq_len": 13 / 6}[[*scaling][-1]] if scaling else 1.0
    assert_same(model(ids).logits, torch.stack([plain_logits(model, row, slope_divisor=divisor) for row in ids]))
    assert watched == [(4, 4), (4, 8), (4, 12), (1, 13)] * 2


TEXT = st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 3))  # padding, tokens, padding


@pytest.mark.usefixtures("blocks_are_small")
@given(
    st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(SCALINGS),
    st.booleans(),
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_of_texts_and_padding_have_the_results_of_the_whole_bias(rows, masked, scaling, trainable):
    """In float64, output and gradients; padding within a text among them."""
    length = max(6, *(sum(map(sum, row)) for row in rows))
    seq_idx, mask = torch.zeros(2, len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        start = 0
        for number, (before, tokens, after) in enumerate(row):
            seq_idx[i, start:] = number
            mask[i, start + before : start + before + tokens] = 1
            start += before + tokens + after
        mask[i, start:] = 1
        if number % 2:
            mask[i, length // 2] = 0
    if not masked:
        mask = torch.ones_like(mask)
    ids = random_ids(len(rows), length)
    found = []
    options = {"alibi_scaling": scaling, "alibi_trainable_slopes": trainable}
    for most in (-1, 2**40):
        model = tiny_model(model_class=JAISModel, attention="sdpa", n_layer=1, **options).double()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(blocks_jais, "MOST_BIAS", most)
            h_BLM = model(ids, attention_mask=mask, seq_idx=seq_idx, use_cache=False).last_hidden_state[mask == 1]
        h_BLM.sin().sum().backward()
        found.append({"out": h_BLM} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        bound = tolerances.HF_GRADIENT if name.endswith("slopes") else 1e-9  # slopes are in float32
        torch.testing.assert_close(found[0][name], expected, atol=bound, rtol=1e-9, msg=name)


@pytest.mark.usefixtures("blocks_are_small")
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_a_number_that_comes_back_is_the_same_text_whatever_its_type(dtype):
    model, ids = tiny_model(attention="sdpa", n_layer=2), random_ids(1, 12)
    texts = torch.tensor([[0] * 5 + [1] * 4 + [0] * 3]).to(dtype)
    found = model(ids, seq_idx=texts, use_cache=False).logits
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(blocks_jais, "MOST_BIAS", 2**40)
        assert_same(found, model(ids, seq_idx=texts, use_cache=False).logits)


@pytest.mark.usefixtures("blocks_are_small")
@pytest.mark.parametrize("form", ["boolean", "additive"])
def test_a_mask_of_four_dimensions_is_obeyed(form):
    document = torch.tensor([0] * 5 + [1] * 6)
    allowed = (document[:, None] == document) & torch.ones(11, 11, dtype=torch.bool).tril()
    mask = allowed if form == "boolean" else torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    model = tiny_model(attention="sdpa")
    first, second = random_ids(1, 5), random_ids(1, 6, seed=2)
    logits = model(torch.cat([first, second], dim=1), attention_mask=mask[None, None]).logits[0]
    assert_same(logits[:5], plain_logits(model, first[0]))
    assert_same(logits[5:], plain_logits(model, second[0]))


@pytest.mark.usefixtures("blocks_are_small")
@pytest.mark.parametrize("cache", ["none", "dynamic", "static"])
def test_a_left_padded_prompt_may_be_read_in_parts(cache):
    model = tiny_model(attention="sdpa")
    rows = [random_ids(1, length, seed=length)[0] for length in (17, 4, 11)]
    batch = left_padded(rows)
    filled = {"static": StaticCache(config=model.config, max_cache_len=20), "dynamic": None, "none": None}[cache]
    start, parts = 0, []
    for size in (17,) if cache == "none" else (6, 1, 10):
        end = start + size
        given = {} if cache == "none" else {"past_key_values": filled, "use_cache": True}
        output = model(batch["input_ids"][:, start:end], attention_mask=batch["attention_mask"][:, :end], **given)
        filled = getattr(output, "cache", None) or output.past_key_values
        parts.append(output.logits)
        start = end
    for logits, row in zip(torch.cat(parts, dim=1), rows, strict=True):
        assert_same(logits[-len(row) :], plain_logits(model, row))


@pytest.mark.usefixtures("blocks_are_small")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_and_trained_slopes_change_no_gradient(reentrant):
    found = []
    for attention, checkpoints in (("eager", False), ("sdpa", True)):
        model = tiny_model(attention=attention, alibi_trainable_slopes=True).train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        ids = random_ids(2, 11)
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert found[1]["transformer.relative_pe.slopes"].abs().min() > 0
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=tolerances.HF_GRADIENT, rtol=0, msg=name)


@pytest.mark.usefixtures("blocks_are_small")
def test_what_dropout_leaves_out_is_the_same_in_the_backward_pass():
    """Two passes from one seed have one gradient only if a block that is computed again draws what it drew."""
    model = tiny_model(attention="sdpa", attn_pdrop=0.5, n_layer=1).double().train()
    embeds = model.transformer.wte(random_ids(1, 11)).detach().requires_grad_()

    def loss(embeds):
        torch.manual_seed(3)
        return model(inputs_embeds=embeds, use_cache=False).logits.sin().sum()

    assert torch.autograd.gradcheck(loss, embeds, fast_mode=True)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "length"), [(HEADS[0], 2048), *((shape, 600) for shape in HEADS[1:])], ids=str)
def test_blocks_are_at_most_twice_as_far_from_float64_as_one_bias(shape, length, monkeypatch):
    """Output and gradients."""
    n_head, n_embd = shape
    torch.manual_seed(n_head)
    embeds = torch.randn(1, length, n_embd)
    found = []
    for dtype, most in ((torch.float64, 2**40), (torch.float32, 2**40), (torch.float32, -1)):
        monkeypatch.setattr(blocks_jais, "MOST_BIAS", most)
        model = tiny_model(model_class=JAISModel, attention="sdpa", n_head=n_head, n_embd=n_embd, n_layer=1).to(dtype)
        inputs = embeds.to(dtype).requires_grad_()
        h_BLM = model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        h_BLM.sin().sum().backward()
        found.append([h_BLM.detach(), inputs.grad, model.h[0].attn.c_attn.weight.grad])
    for right, whole, blocks in zip(*found, strict=True):
        assert (blocks - right).abs().max() <= 2 * (whole - right).abs().max()


def long_batch(length: int, kind: str) -> dict:
    ids, places = random_ids(2, length), torch.arange(length)
    more = {
        "plain": {},
        "left padded": {"attention_mask": torch.stack([places >= 0, places >= 150]).long()},
        "padding within": {"attention_mask": torch.stack([places >= 0, places % 50 > 0]).long()},
        "packed": {"position_ids": (places % 250)[None]},
        "texts of one token": {"position_ids": torch.zeros(1, length, dtype=torch.long)},
    }
    return {"input_ids": ids, "use_cache": False, **more[kind]}


KINDS = ["plain", "left padded", "padding within", "packed", "texts of one token"]
WIDE = {"model_class": JAISModel, "attention": "sdpa", "n_head": 8, "n_embd": 64, "n_inner": 32, "n_layer": 1}


def largest_and_kept(model, batch: dict) -> tuple[int, int]:
    """Numbers in the largest tensor that is made, and bytes of what is kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with Largest() as largest:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            h_BLM = model(**batch).last_hidden_state
        h_BLM.float().sum().backward()
    return largest.elements, sum(kept.values())


@pytest.mark.usefixtures("blocks_are_short")
@pytest.mark.parametrize(
    ("kind", "changes", "dtype"),
    [
        *((kind, {}, torch.float32) for kind in KINDS),
        ("plain", {"attn_pdrop": 0.1}, torch.float32),
        ("plain", {"alibi_trainable_slopes": True}, torch.float32),
        ("plain", {}, torch.float16),
        ("plain", {}, torch.bfloat16),
    ],
    ids=str,
)
def test_nothing_grows_with_the_square_of_the_length(kind, changes, dtype):
    model = tiny_model(**WIDE, **changes).to(dtype).train()
    before, after = (largest_and_kept(model, long_batch(length, kind)) for length in (512, 1024))
    assert after[0] <= 2.1 * before[0]
    assert after[1] <= 2.1 * before[1]


@pytest.mark.usefixtures("blocks_are_short")
@pytest.mark.parametrize("kind", ["plain", "left padded", "packed", "texts of one token"])
def test_the_kernel_is_given_few_pairs_beside_those_that_are_seen(kind, watched):
    length = 1024
    batch = long_batch(length, kind)
    batch.pop("use_cache")
    with torch.no_grad():
        tiny_model(**WIDE)(**batch)
    triangle = length * (length + 1) // 2
    seen = {
        "plain": triangle,  # one call for both rows
        "left padded": triangle + 874 * 875 // 2,
        "packed": 4 * 250 * 251 // 2 + 24 * 25 // 2,
        "texts of one token": 0,
    }[kind]
    corners = length * blocks_jais.QUERIES * (2 if kind == "left padded" else 1)
    assert seen <= sum(queries * keys for queries, keys in watched) <= seen + corners


@pytest.mark.slow
@pytest.mark.usefixtures("blocks_are_small")
def test_long_rows_compile():
    """A compiled graph cannot read a mask; with one, its blocks have masks of every pair."""
    model = tiny_model(attention="sdpa", n_layer=1)
    ids = random_ids(2, 11)
    expected = torch.stack([plain_logits(model, row) for row in ids])
    for mask in (None, torch.ones_like(ids)):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager")
        assert_same(compiled(ids, attention_mask=mask).logits, expected)
