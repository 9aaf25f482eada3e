"""Contract: texts that stand in one row do not see one another, however the caller says where each begins."""

import pytest
import torch
from transformers import DataCollatorWithFlattening, DynamicCache

from tests import tolerances
from tests.checkpoint_convert.hf_code.examples import (
    CACHE,
    plain_logits,
    random_ids,
    talkative_jais,
    talkative_llama,
    tiny_model,
)
from tests.checkpoint_convert.hf_code.test_modeling_jais import KERNELS, assert_same, left_padded

LENGTHS = (7, 4, 9)
TEXTS = [random_ids(1, length, seed=length)[0] for length in LENGTHS]
FORMS = {
    "position_ids": {},
    "all_keywords": {"return_flash_attn_kwargs": True, "return_seq_idx": True},
    "cu_seq_lens": {"return_position_ids": False, "return_flash_attn_kwargs": True},
    "seq_idx": {"return_position_ids": False, "return_seq_idx": True},
}
COLLATED = pytest.mark.parametrize("form", FORMS)


def packed(form: str = "position_ids") -> dict:
    return DataCollatorWithFlattening(**FORMS[form])([{"input_ids": text.tolist()} for text in TEXTS])


def loss_one_by_one(model) -> torch.Tensor:
    """The mean over all predicted tokens of the texts, each read alone."""
    losses = [model(text[None], labels=text[None]).loss * (len(text) - 1) for text in TEXTS]
    return torch.stack(losses).sum() / sum(len(text) - 1 for text in TEXTS)


@KERNELS
@COLLATED
def test_packed_texts_have_the_logits_and_the_loss_of_texts_alone(attention, form):
    model = talkative_jais(attention)
    output = model(**packed(form))
    for result, text in zip(output.logits[0].split(LENGTHS), TEXTS, strict=True):
        assert_same(result, plain_logits(model, text))
    assert output.loss.item() == pytest.approx(loss_one_by_one(model).item(), abs=tolerances.HF_LOSS)


@KERNELS
def test_packed_texts_have_the_gradients_of_texts_alone(attention):
    model = tiny_model(attention=attention)
    loss_one_by_one(model).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(**packed()).loss.backward()
    for name, gradient in expected.items():
        result = model.get_parameter(name).grad
        torch.testing.assert_close(result, gradient, atol=tolerances.HF_GRADIENT, rtol=0, msg=name)


@pytest.mark.parametrize("talkative", [talkative_jais, talkative_llama], ids=["jais", "llama"])
def test_the_padding_free_batch_of_trl_has_the_loss_of_texts_alone(talkative):
    sft_trainer = pytest.importorskip("trl.trainer.sft_trainer")
    collator = sft_trainer.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=8)
    model = talkative("sdpa")
    batch = collator([{"input_ids": text.tolist()} for text in TEXTS])
    assert batch["input_ids"].shape == (1, 24)
    assert "attention_mask" not in batch
    loss = model(**batch, use_cache=False).loss.item()  # as TRL calls it; Llama takes a row with a cache for one text
    assert loss == pytest.approx(loss_one_by_one(model).item(), abs=tolerances.HF_LOSS)


@pytest.mark.parametrize("start", [0, 2])
def test_several_rows_may_each_hold_several_texts_with_padding(start):
    model = talkative_jais("sdpa")
    rows = [torch.cat(TEXTS[:2]), TEXTS[2]]
    batch = left_padded(rows)
    positions = torch.zeros_like(batch["input_ids"])
    positions[0] = torch.cat([torch.arange(7), torch.arange(4)])
    positions[1, 2:] = torch.arange(9)
    logits = model(**batch, position_ids=positions + start).logits
    for result, text in ((logits[0, :7], TEXTS[0]), (logits[0, 7:], TEXTS[1]), (logits[1, 2:], TEXTS[2])):
        assert_same(result, model(text[None]).logits[0])


def test_dynamic_scaling_goes_by_the_length_of_each_text():
    model = tiny_model(alibi_scaling={"type": "linear", "train_seq_len": 6})
    for result, text in zip(model(**packed()).logits[0].split(LENGTHS), TEXTS, strict=True):
        assert_same(result, plain_logits(model, text, slope_divisor=max(1.0, len(text) / 6)))


@pytest.mark.parametrize("filler", [0, 1])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_the_positions_of_one_text_change_nothing(filler, start):
    """As generate makes them from a mask: padding, on the left, in the middle or on the right, gets 0 or 1."""
    model = talkative_jais()
    ids = random_ids(3, 8)
    mask = torch.tensor([[1] * 8, [0] * 3 + [1] * 5, [1, 1, 0, 0, 1, 1, 0, 0]])
    positions = (mask.cumsum(-1) - 1 + start).masked_fill(mask == 0, filler)
    result = model(ids, attention_mask=mask, position_ids=positions).logits
    expected = model(ids, attention_mask=mask).logits
    assert_same(result[mask == 1], expected[mask == 1])


def test_plain_positions_leave_one_bias_for_all_rows(monkeypatch):
    model = talkative_jais("sdpa")
    fused, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(*args, attn_mask, **keys):
        seen.append(attn_mask.shape)
        return fused(*args, attn_mask=attn_mask, **keys)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    ids = random_ids(4, 6)
    model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(6).expand(4, 6))
    assert set(seen) == {(1, 12, 6, 6)}


def test_positions_that_go_on_from_a_filled_cache_are_taken_and_others_refused():
    model = talkative_jais()
    ids = random_ids(2, 9)
    expected = model(ids).logits

    def read_on(positions):
        cache = model(ids[:, :5], position_ids=torch.arange(5)[None])[CACHE]
        return model(ids[:, 5:], cache=cache, position_ids=torch.tensor([positions])).logits

    assert_same(read_on([5, 6, 7, 8]), expected[:, 5:])
    for positions in ([0, 1, 2, 3], [5, 6, 0, 1], [5, 6, 9, 10]):
        with pytest.raises(ValueError, match="position_ids"):
            read_on(positions)


@pytest.mark.parametrize("name", ["seq_idx", "cu_seq_lens_q"])
def test_text_borders_with_a_filled_cache_are_refused(name):
    model = talkative_jais()
    ids = random_ids(1, 9)
    cache = model(ids[:, :5])[CACHE]
    borders = {"seq_idx": torch.zeros(1, 4, dtype=torch.int), "cu_seq_lens_q": torch.tensor([0, 4])}
    with pytest.raises(ValueError, match="filled cache"):
        model(ids[:, 5:], cache=cache, **{name: borders[name]})


@pytest.mark.parametrize(
    "borders",
    [
        {"cu_seq_lens_q": torch.tensor([0, 3])},
        {"cu_seq_lens_q": torch.tensor([1, 5])},
        {"cu_seq_lens_q": torch.tensor([0, 2, 5]), "cu_seq_lens_k": torch.tensor([0, 3, 5])},
        {"seq_idx": torch.zeros(1, 4, dtype=torch.int)},
    ],
)
def test_text_borders_that_do_not_fit_are_refused(borders):
    with pytest.raises(ValueError, match=r"cu_seq_lens|seq_idx"):
        talkative_jais()(random_ids(1, 5), **borders)


HOLE = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0, 1]])


@pytest.mark.parametrize(
    "positions",
    [
        list(range(9)),  # by place
        [5, 6, 1, 7, 8, 9, 1, 1, 10],  # by token, from 5 on
        [0, 1, 1, 2, 3, 4, 1, 1, 2],  # numbered on from the padding, as generate does
    ],
)
def test_padding_within_a_text_does_not_end_it(positions):
    model = talkative_jais()
    ids = random_ids(1, 9)
    expected = model(ids, attention_mask=HOLE).logits[HOLE == 1]
    assert_same(model(ids, attention_mask=HOLE, position_ids=torch.tensor([positions])).logits[HOLE == 1], expected)


def test_a_prompt_with_padding_within_may_be_read_in_parts():
    model = talkative_jais()
    ids, parts, cache = random_ids(1, 9), [], DynamicCache()
    for start, end in ((0, 4), (4, 8), (8, 9)):
        part = {"attention_mask": HOLE[:, :end], "position_ids": torch.arange(start, end)[None]}
        parts.append(model(ids[:, start:end], **part, past_key_values=cache).logits)
    assert_same(torch.cat(parts, 1)[HOLE == 1], model(ids, attention_mask=HOLE).logits[HOLE == 1])


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_right_padded_batch_generates_what_each_row_generates_by_its_mask(use_cache):
    model = talkative_jais()
    ids, mask = random_ids(2, 6), torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    expected = ids.clone()
    for length in range(6, 10):
        whole = torch.cat([mask, torch.ones(2, length - 6, dtype=torch.long)], 1)
        scores = model(expected, attention_mask=whole, use_cache=False).logits[:, -1]
        scores[:, 0] = -torch.inf
        expected = torch.cat([expected, scores.argmax(-1, keepdim=True)], 1)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
    assert torch.equal(model.generate(ids, attention_mask=mask, **options), expected)


@pytest.mark.parametrize("positions", [[0, 1, 2, 5, 6], [0, 0, 1, 1, 2], [4, 3, 2, 1, 0], [0, 1, 1, 2, 3]], ids=str)
def test_positions_that_neither_go_on_nor_begin_anew_are_refused(positions):
    with pytest.raises(ValueError, match="position_ids must rise by one"):
        talkative_jais()(random_ids(1, 5), position_ids=torch.tensor([positions]))


def test_a_cache_never_holds_several_texts():
    model = talkative_jais()
    batch = packed()
    assert getattr(model(**batch), CACHE) is None
    for options in ({"use_cache": True}, {"past_key_values": DynamicCache()}):
        with pytest.raises(ValueError, match="a cache holds one text a row"):
            model(**batch, **options)
    with pytest.raises(ValueError, match="a cache holds one text a row"):
        model.generate(batch["input_ids"], position_ids=batch["position_ids"], max_new_tokens=2, pad_token_id=0)


def test_a_token_at_position_0_after_a_filled_cache_is_refused_but_where_the_row_was_empty():
    model = talkative_jais()
    cache = DynamicCache()
    ids = random_ids(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    model(ids[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
    mask[:, 4] = 1
    one = {"attention_mask": mask, "past_key_values": cache}
    with pytest.raises(ValueError, match="begin anew after a filled cache"):
        model(ids[:, 4:], position_ids=torch.tensor([[0], [0]]), **one)
    result = model(ids[:, 4:], position_ids=torch.tensor([[4], [0]]), **one).logits
    assert_same(result[1], model(ids[1:, 4:]).logits[0])


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_packed_texts_compile_into_one_graph(masked):
    model = tiny_model(n_layer=1, attention="sdpa")
    batch = packed()
    expected = model(**batch)
    if masked:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    one_graph = torch.__version__ >= torch.torch_version.TorchVersion("2.6")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=one_graph)
    for length in (17, 11):  # from the second length on, that of input_ids is a symbol and others are not
        compiled(batch["input_ids"][:, :length])
    assert_same(compiled(**batch).logits, expected.logits)
