"""Contract: the logits are those of the equations, whatever the attention kernel, padding, mask or precision.

The equations are written out a second time in examples.plain_logits, dense and in float64.
"""

import pytest
import torch

from checkpoint_convert.hf_code.alibi_jais import alibi_slopes
from checkpoint_convert.hf_code.modeling_jais import JAISForSequenceClassification, JAISModel
from tests import tolerances
from tests.checkpoint_convert.hf_code.examples import (
    MUP_B,
    MUP_OFF,
    plain_logits,
    random_ids,
    slopes_by_hand,
    tiny_model,
)

KERNELS = pytest.mark.parametrize("attention", ["eager", "sdpa"])
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    bound = tolerances.HF_LOGITS * expected.abs().max().item()
    torch.testing.assert_close(result.double(), expected.double(), atol=bound, rtol=0)


def left_padded(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    length = max(len(row) for row in rows)
    ids, mask = torch.zeros(2, len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, length - len(row) :] = row
        mask[i, length - len(row) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@KERNELS
@pytest.mark.parametrize("mup", [MUP_OFF, MUP_B], ids=["mup_off", "mup_B"])
@pytest.mark.parametrize(("n_head", "n_embd"), [(12, 48), (20, 80), (40, 80), (56, 112)])
def test_logits_are_those_of_the_equations(n_head, n_embd, mup, attention):
    model = tiny_model(attention=attention, n_head=n_head, n_embd=n_embd, n_layer=2, **mup)
    ids = random_ids(2, 13)
    assert model.config._attn_implementation == attention
    assert_same(model(ids).logits, torch.stack([plain_logits(model, row) for row in ids]))


def test_an_untied_head_is_used():
    model = tiny_model(tie_word_embeddings=False)
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    ids = random_ids(1, 7)
    assert_same(model(ids).logits[0], plain_logits(model, ids[0]))


@pytest.mark.parametrize("n_head", [8, 12, 20, 40, 56])
def test_slopes_are_the_published_ones(n_head):
    assert alibi_slopes(n_head) == pytest.approx(slopes_by_hand(n_head), abs=0, rel=1e-15)


@KERNELS
def test_a_factor_divides_the_slopes(attention):
    model = tiny_model(attention=attention, alibi_scaling={"type": "linear", "factor": 4.0})
    ids = random_ids(1, 9)
    assert_same(model(ids).logits[0], plain_logits(model, ids[0], slope_divisor=4.0))


@KERNELS
@pytest.mark.parametrize(("length", "divisor"), [(5, 1.0), (8, 1.0), (12, 1.5)])
def test_dynamic_scaling_begins_beyond_the_training_length(attention, length, divisor):
    model = tiny_model(attention=attention, alibi_scaling={"type": "linear", "train_seq_len": 8})
    ids = random_ids(1, length)
    assert_same(model(ids).logits[0], plain_logits(model, ids[0], slope_divisor=divisor))


def test_stored_slopes_that_are_not_the_standard_ones_are_used():
    model = tiny_model()
    ids = random_ids(1, 9)
    with torch.no_grad():
        model.transformer.relative_pe.slopes.div_(2.0)
    assert_same(model(ids).logits[0], plain_logits(model, ids[0], slope_divisor=2.0))


@HALVES
def test_the_bias_of_a_half_precision_model_is_exact(dtype):
    """-slope * distance in bfloat16 would be off by several units at a distance of a few thousand."""
    positions = torch.arange(5000)
    model = tiny_model(n_head=12)
    expected = model.transformer.relative_pe(positions[-1:], positions, torch.tensor([[5000]]))
    half = model.to(dtype)
    assert half.transformer.relative_pe.slopes.dtype == dtype
    assert torch.equal(half.transformer.relative_pe(positions[-1:], positions, torch.tensor([[5000]])), expected)
    by_hand = -torch.tensor(slopes_by_hand(12))[:, None] * (4999.0 - positions)
    torch.testing.assert_close(expected[0, :, 0], by_hand, atol=0, rtol=1e-6)


@KERNELS
@HALVES
def test_half_precision_is_finite_and_close(dtype, attention):
    model = tiny_model(attention=attention)
    ids = random_ids(2, 24)
    expected = model(ids).logits
    result = model.to(dtype)(ids).logits
    assert result.dtype == dtype
    assert torch.isfinite(result).all()
    bound = tolerances.HF_HALF_LOGITS[str(dtype).removeprefix("torch.")]
    assert (result.float() - expected).abs().max() <= bound


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_padding_gives_no_nan_anywhere(dtype, attention):
    """Left-padded rows of queries have no key to look at; their outputs are not read but must stay finite."""
    model = tiny_model(attention=attention).to(dtype)
    rows = list(random_ids(3, 10))
    batch = left_padded([rows[0], rows[1][:3], rows[2][:6]])
    output = model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100))
    assert torch.isfinite(output.logits).all()
    assert torch.isfinite(output.loss)


@KERNELS
@pytest.mark.parametrize("scaling", [None, {"type": "linear", "train_seq_len": 6}])
def test_a_left_padded_batch_equals_one_by_one(attention, scaling):
    model = tiny_model(attention=attention, alibi_scaling=scaling)
    rows = [random_ids(1, length, seed=length)[0] for length in (11, 4, 7)]
    logits = model(**left_padded(rows)).logits
    for result, row in zip(logits, rows, strict=True):
        assert_same(result[-len(row) :], model(row[None]).logits[0])


@KERNELS
def test_right_padding_changes_nothing_before_it(attention):
    model = tiny_model(attention=attention)
    ids = random_ids(1, 6)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    assert_same(model(padded, attention_mask=mask).logits[:, :6], model(ids).logits)


@KERNELS
@pytest.mark.parametrize("form", ["boolean", "additive"])
def test_a_mask_of_four_dimensions_is_obeyed(attention, form):
    """Two documents in one row that cannot see each other give what each gives alone."""
    model = tiny_model(attention=attention)
    first, second = random_ids(1, 5), random_ids(1, 4, seed=2)
    document = torch.tensor([0] * 5 + [1] * 4)
    allowed = (document[:, None] == document) & torch.ones(9, 9, dtype=torch.bool).tril()
    mask = allowed if form == "boolean" else torch.where(allowed, 0.0, torch.finfo(torch.float32).min)
    logits = model(torch.cat([first, second], dim=1), attention_mask=mask[None, None]).logits
    assert_same(logits[:, :5], model(first).logits)
    assert_same(logits[:, 5:], model(second).logits)


def test_inputs_embeds_equal_input_ids_and_are_left_alone():
    model = tiny_model()
    ids = random_ids(2, 8)
    embeds = model.get_input_embeddings()(ids).detach()
    before = embeds.clone()
    assert_same(model(inputs_embeds=embeds).logits, model(ids).logits)
    assert torch.equal(embeds, before)


@pytest.mark.parametrize("both", [True, False])
def test_ids_and_embeddings_together_or_neither_are_refused(both):
    model = tiny_model()
    ids = random_ids(1, 4)
    inputs = {"input_ids": ids, "inputs_embeds": model.transformer.wte(ids)} if both else {}
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(**inputs)


def test_the_loss_is_the_shifted_cross_entropy_and_leaves_out_minus_100():
    model = tiny_model()
    ids = random_ids(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    output = model(ids, labels=labels)
    chances = output.logits.double().log_softmax(-1)
    parts = [-chances[b, t, ids[b, t + 1]] for b in range(2) for t in range(8) if labels[b, t + 1] != -100]
    total = torch.stack(parts).sum()
    assert len(parts) == 13
    assert output.loss.item() == pytest.approx((total / 13).item(), abs=tolerances.HF_LOSS)
    for count in (52, torch.tensor(52)):
        loss = model(ids, labels=labels, num_items_in_batch=count).loss
        assert loss.item() == pytest.approx((total / 52).item(), abs=tolerances.HF_LOSS)


def test_logits_to_keep_gives_the_logits_of_these_positions():
    model = tiny_model()
    ids = random_ids(2, 9)
    logits = model(ids).logits
    assert_same(model(ids, logits_to_keep=2).logits, logits[:, -2:])
    assert_same(model(ids, logits_to_keep=torch.tensor([0, 3])).logits, logits[:, [0, 3]])
    for arguments in ({"labels": ids, "logits_to_keep": 1}, {"logits_to_keep": -2}):
        with pytest.raises(ValueError, match="logits_to_keep"):
            model(ids, **arguments)


@KERNELS
def test_hidden_states_and_attentions_are_returned_on_request(attention):
    model = tiny_model(attention=attention)
    ids = random_ids(2, 6)
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert_same(output.logits, model(ids).logits)
    assert len(output.hidden_states) == 4
    assert_same(output.hidden_states[0], model.transformer.wte(ids) * model.config.mup_embeddings_scale)
    assert_same(output.hidden_states[-1], model.transformer(ids).last_hidden_state)
    assert len(output.attentions) == 3
    for weights in output.attentions:
        assert weights.shape == (2, 12, 6, 6)
        assert torch.equal(weights.triu(1), torch.zeros_like(weights))
        assert_same(weights.sum(-1), torch.ones(2, 12, 6))
    assert model(ids).hidden_states is None
    assert model(ids).attentions is None


def test_a_tuple_is_returned_on_request():
    model = tiny_model()
    ids = random_ids(1, 5)
    loss, logits = model(ids, labels=ids, use_cache=False, return_dict=False)
    assert loss.dim() == 0
    assert_same(logits, model(ids).logits)


def test_no_buffer_is_kept():
    """The public code keeps a causal mask of n_positions^2 in every layer."""
    assert list(tiny_model().buffers()) == []


def test_names_and_shapes_are_the_public_ones():
    shapes = {name: tuple(tensor.shape) for name, tensor in tiny_model(n_layer=1).state_dict().items()}
    assert shapes == {
        "transformer.wte.weight": (61, 48),
        "transformer.relative_pe.slopes": (12, 1),
        "transformer.h.0.ln_1.weight": (48,),
        "transformer.h.0.ln_1.bias": (48,),
        "transformer.h.0.attn.c_attn.weight": (48, 144),
        "transformer.h.0.attn.c_attn.bias": (144,),
        "transformer.h.0.attn.c_proj.weight": (48, 48),
        "transformer.h.0.attn.c_proj.bias": (48,),
        "transformer.h.0.ln_2.weight": (48,),
        "transformer.h.0.ln_2.bias": (48,),
        "transformer.h.0.mlp.c_fc.weight": (48, 80),
        "transformer.h.0.mlp.c_fc.bias": (80,),
        "transformer.h.0.mlp.c_fc2.weight": (48, 80),
        "transformer.h.0.mlp.c_fc2.bias": (80,),
        "transformer.h.0.mlp.c_proj.weight": (80, 48),
        "transformer.h.0.mlp.c_proj.bias": (48,),
        "transformer.ln_f.weight": (48,),
        "transformer.ln_f.bias": (48,),
        "lm_head.weight": (61, 48),
    }


def test_new_weights_have_the_published_spread():
    torch.manual_seed(0)
    config = tiny_model(n_embd=192, n_inner=400, n_layer=2, initializer_range=0.08, mup_width_scale=0.25).config
    model = JAISModel(config)
    expected = {"wte": 0.08, "c_fc": 0.04, "c_fc2": 0.04, "c_attn": 0.04, "c_proj": 0.02}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "slopes" not in name:
            spread = expected[name.split(".")[-2]]
            assert parameter.std().item() == pytest.approx(spread, rel=tolerances.DRAWN_SPREAD), name


class TestSequenceClassification:
    def test_the_last_token_before_padding_is_scored_with_the_factor_of_the_logits(self):
        model = tiny_model(model_class=JAISForSequenceClassification, num_labels=3)
        ids = random_ids(2, 7)
        ids[1, 4:] = 0
        scores = model(ids, attention_mask=(ids != 0).long()).logits
        for row, length, result in zip(ids, (7, 4), scores, strict=True):
            h = model.transformer(row[None, :length]).last_hidden_state[0, -1]
            assert_same(result, model.score.weight @ h * MUP_B["mup_output_alpha"] * MUP_B["mup_width_scale"])

    def test_left_padding_and_embeddings_give_the_same_scores(self):
        model = tiny_model(model_class=JAISForSequenceClassification, num_labels=3)
        rows = [random_ids(1, length, seed=length)[0] for length in (8, 5)]
        batch = left_padded(rows)
        scores = model(**batch).logits
        assert_same(scores[1], model(rows[1][None]).logits[0])
        embeds = model.transformer.wte(batch["input_ids"])
        assert_same(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits, scores)

    @pytest.mark.parametrize(
        ("num_labels", "labels"),
        [(1, torch.tensor([0.5, -1.0])), (3, torch.tensor([2, 0])), (3, torch.tensor([[1.0, 0, 1], [0, 0, 1]]))],
        ids=["numbers", "classes", "several_labels"],
    )
    def test_each_kind_of_label_has_its_loss(self, num_labels, labels):
        model = tiny_model(model_class=JAISForSequenceClassification, num_labels=num_labels)
        output = model(random_ids(2, 6), labels=labels)
        scores = output.logits.double()
        if num_labels == 1:
            expected = (scores[:, 0] - labels).square().mean()
        elif labels.dim() == 1:
            expected = -scores.log_softmax(-1)[torch.arange(2), labels].mean()
        else:
            chances = scores.sigmoid()
            expected = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
        assert output.loss.item() == pytest.approx(expected.item(), abs=tolerances.HF_LOSS)

    def test_a_batch_without_a_padding_token_is_refused(self):
        model = tiny_model(model_class=JAISForSequenceClassification, pad_token_id=None)
        assert model(random_ids(1, 5)).logits.shape == (1, 2)
        with pytest.raises(ValueError, match="pad_token_id"):
            model(random_ids(2, 5))


@pytest.mark.slow
@KERNELS
@pytest.mark.parametrize("masked", [False, True])
def test_the_forward_pass_compiles(attention, masked):
    """Into one graph, where torch can trace the output classes of transformers; torch 2.4 breaks the graph there."""
    model = tiny_model(attention=attention, n_layer=1)
    ids = random_ids(2, 8)
    mask = torch.ones_like(ids) if masked else None
    one_graph = torch.__version__ >= torch.torch_version.TorchVersion("2.6")
    compiled = torch.compile(model, backend="eager", fullgraph=one_graph)
    assert_same(compiled(ids, attention_mask=mask).logits, model(ids).logits)


@pytest.mark.slow
@HALVES
def test_the_fused_kernel_gets_the_bias_unrounded_on_the_cpu(dtype, monkeypatch):
    """In bfloat16 the biases of neighbours beyond a distance of 256 would be equal."""
    ids = random_ids(1, 1200)
    eager = tiny_model(n_layer=1).to(dtype)(ids).logits
    model = tiny_model(n_layer=1, attention="sdpa").to(dtype)
    fused, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(*args, attn_mask, **keys):
        seen.append(attn_mask)
        return fused(*args, attn_mask=attn_mask, **keys)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    result = model(ids).logits
    assert [mask.dtype for mask in seen] == [torch.float32]
    assert all(len(head.unique()) == 1200 for head in seen[0][0, :, -1])
    bound = tolerances.HF_HALF_LOGITS[str(dtype).removeprefix("torch.")]
    assert (result - eager).abs().max() <= bound


def test_the_fused_kernel_runs_with_dropout_and_under_autocast():
    model = tiny_model(attention="sdpa", attn_pdrop=0.1)
    batch = left_padded([random_ids(1, 10)[0], random_ids(1, 4)[0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(**batch).logits).all()
    output = model.bfloat16().train()(**batch, labels=batch["input_ids"])
    output.loss.backward()
    assert torch.isfinite(output.logits).all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_fused_kernel_takes_a_float64_model():
    model = tiny_model(attention="sdpa").double()
    ids = random_ids(1, 9)
    assert_same(model(ids).logits[0], plain_logits(model, ids[0]))
