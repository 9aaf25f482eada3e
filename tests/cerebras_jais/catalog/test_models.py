"""The catalog holds the 20 published models, and its rules give the published numbers.

Contract: names, contexts, tokens and parameter counts are those of the model cards, to the digit; every value says
where it comes from; each size rule gives every size that was published; the two sets of muP constants never mix; the
one run whose hyperparameters are published whole, jais-adapted-70b-chat, is in it as published.
"""

import dataclasses
import itertools

import pytest

from cerebras_jais.catalog import size_rules as rules
from cerebras_jais.catalog.models import (
    FAMILY_MUP,
    LARGE_MUP,
    MODELS,
    find_model,
    last_step,
    lineage,
)
from cerebras_jais.catalog.types import Sourced
from cerebras_jais.errors import UserError
from tests import published

BASES = [model for model in MODELS if not model.is_chat]


def sourced_in(value, path=""):
    """Every Sourced below a dataclass, with its path."""
    if isinstance(value, Sourced):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from sourced_in(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from sourced_in(item, f"{path}[{index}]")


def test_there_are_twenty_models_of_eight_sizes():
    assert len(MODELS) == 20
    assert {m.name for m in MODELS} == set(published.MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_parameters_and_contexts_are_the_published_ones_to_the_digit(model):
    row, a = published.MODELS[model.name], model.architecture
    assert model.parameters == row.parameters
    assert model.context.value == row.context
    assert model.phases[-1].context.value == row.context
    sizes = (a.hidden_size, a.layers, a.heads, a.kv_heads, a.filter_size, a.vocabulary)
    assert [size.value for size in sizes] == [
        *(row.hidden, row.layers, row.heads, row.kv_heads, row.filter_size, row.vocabulary)
    ]


@pytest.mark.parametrize("model", BASES, ids=lambda m: m.name)
def test_the_data_is_the_published_one_and_the_phases_go_through_it(model):
    mix = published.MODELS[model.name].tokens
    assert (model.mix.english.value, model.mix.arabic.value, model.mix.code.value, model.mix.total.value) == mix
    # The card's numbers are rounded, each to the billion; those of 30b-8k come from the Model Zoo's own schedules.
    assert sum(mix[:3]) == pytest.approx(mix[3], abs=2)
    seen = sum(phase.tokens for _, phase in lineage(model)) / 1e9
    assert seen == pytest.approx(mix[3], rel=0.02)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_every_value_says_where_it_comes_from(model):
    found = list(sourced_in(model))
    assert len(found) > 20
    for path, value in found:
        assert value.origin in ("published", "derived", "assumed")
        assert value.why, path


@pytest.mark.parametrize("size", ["590m", "2p7b", "6p7b", "13b"])
def test_the_filter_rule_gives_every_published_filter(size):
    row = published.MODELS[f"jais-family-{size}"]
    assert rules.family_filter_size(row.hidden) == row.filter_size
    assert rules.family_filter_size(1088) == 2912  # of a smaller sibling


def test_the_older_models_round_the_filter_down():
    row = published.MODELS["jais-family-30b-8k"]
    assert row.filter_size == 8 * row.hidden // 3 != rules.family_filter_size(row.hidden)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_every_head_is_128_wide(model):
    a = model.architecture
    assert a.hidden_size.value == rules.HEAD_WIDTH * a.heads.value


@pytest.mark.parametrize(("batch", "steps"), [(1120, 163), (1920, 95), (2640, 69)])
def test_the_warm_up_rule_gives_every_published_warm_up(batch, steps):
    assert rules.warmup_steps(batch, 2048) == steps


def test_the_chat_batches_published_have_equally_many_tokens():
    assert 264 * 4096 == 132 * 8192 == rules.CHAT_TOKENS_PER_STEP
    assert rules.chat_batch_size(8192) == 132


def test_the_batch_rule_passes_through_its_two_published_points():
    assert rules.interpolated_batch_size(published.MODELS["jais-family-590m"].parameters) == 1120
    assert rules.interpolated_batch_size(published.MODELS["jais-family-13b"].parameters) == 1920


@pytest.mark.parametrize("model", [m for m in MODELS if m.family == "jais-family"], ids=lambda m: m.name)
def test_the_two_mup_sets_are_whole_and_belong_to_their_sizes(model):
    mup = model.architecture.mup
    large = "30b" in model.name
    assert mup is (LARGE_MUP if large else FAMILY_MUP)
    constants = (mup.embeddings_scale.value, mup.output_logits_alpha.value)
    assert constants == published.MODELS[model.name].mup
    hidden, filter_size = model.architecture.hidden_size.value, model.architecture.filter_size.value
    # Equal to the last bit, so that the Model Zoo puts both kinds of matrices in one parameter group.
    assert filter_size / rules.mup_base_filter_size(hidden, filter_size) == hidden / 256


def test_jais_adapted_70b_chat_is_as_published():
    (phase,) = find_model("jais-adapted-70b-chat").phases
    rates = phase.rates
    values = [phase.batch_size, phase.steps, rates.warmup_steps, rates.peak_lr, rates.final_lr, phase.context]
    values += [rates.decay, phase.optimizer.weight_decay]
    assert tuple(value.value for value in values) == dataclasses.astuple(published.ADAPTED_70B_CHAT)
    assert all(value.origin == "published" for value in values)


def test_jais_family_590m_is_as_published():
    (phase,) = find_model("jais-family-590m").phases
    assert (phase.batch_size.value, phase.steps.value, phase.rates.warmup_steps.value) == (1120, 209422, 163)
    assert phase.rates.peak_lr.value == pytest.approx(0.01563, abs=5.1e-6)  # the card rounds it
    assert phase.rates.final_lr.value == 4.21e-05


def test_the_phases_of_30b_carry_on_where_the_one_before_stopped():
    phases = lineage(find_model("jais-family-30b-16k"))
    assert [phase.name for _, phase in phases] == ["2k", "8k", "16k"]
    for (_, before), (_, after) in itertools.pairwise(phases):
        assert after.keeps_optimizer_state
        assert after.rates.initial_lr.value == before.rates.final_lr.value
        assert last_step(after) == last_step(before) + after.steps.value
    assert last_step(phases[1][1]) == 260648  # the Model Zoo's own max_steps of its 8k phase


def test_the_published_scores_are_the_model_s_own():
    scores = find_model("jais-adapted-70b-chat").scores
    assert (scores["ar"]["ArabicMMLU"], scores["en"]["MMLU"]) == (66.8, 38.7)
    for model in MODELS:
        for language, columns in (("ar", 14), ("en", 11)):
            rows = {k: v for k, v in model.scores[language].items() if k != "Average"}
            assert len(rows) == columns
            assert sum(rows.values()) / columns == pytest.approx(model.scores[language]["Average"], abs=0.06)


def test_a_name_that_is_no_model_is_answered_with_the_closest_one():
    with pytest.raises(UserError, match="did you mean 'jais-family-13b'"):
        find_model("jais-family-13")
