"""muP's constants say the same in every form they are written in.

Contract: what a checkpoint of the deprecated form becomes trains on as it would have: the Model Zoo's own model, built
from either section, draws the same weights, multiplies the logits by the same number and scales the same learning rates
in the same groups; the release splits alpha and width rightly.
"""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.initialize import weight_initializers
from cerebras_jais.optimizer.groups import learning_rate_scales
from checkpoint_convert.configs.convert import SpecialTokens, to_config_json, to_model_section
from checkpoint_convert.configs.mup import base_filter_size, base_hidden_size, migrate_mup, output_alpha
from checkpoint_convert.configs.trainer_yaml import model_section_of, trainer_params
from tests import published, tolerances
from tests.checkpoint_convert.examples import PUBLISHED, jais_section
from tests.checkpoint_convert.old_runs import DEPRECATED, WIDTH, drawn, in_first_form, in_trainer_form

OLD = {"decoder_kernel": WIDTH}
JAIS = {name: section for name, (section, _) in PUBLISHED.items() if section["name"] == "jais"}


# ---- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JAIS)
def test_the_base_of_a_published_width_is_256_and_groups_of_one_scale_stay_one(name):
    hidden, filter_size = JAIS[name]["hidden_size"], JAIS[name]["filter_size"]
    assert base_hidden_size(hidden, 256 / hidden) == 256
    base = base_filter_size(filter_size, hidden, 256)
    assert base == pytest.approx(filter_size * 256 / hidden, rel=tolerances.ROUNDING)
    assert 1 / (filter_size / base) == 1 / (hidden / 256)


@given(st.integers(1, 20000), st.integers(1, 20000), st.floats(1e-3, 10, exclude_min=True))
def test_bases_give_back_the_scale_they_were_made_of(hidden, filter_size, scale):
    base = base_hidden_size(hidden, scale)
    assert 1 / (hidden / base) == pytest.approx(scale, rel=tolerances.ROUNDING)
    assert 1 / (filter_size / base_filter_size(filter_size, hidden, base)) == pytest.approx(
        scale, rel=tolerances.ROUNDING
    )


@given(st.integers(1, 20000), st.integers(1, 512), st.floats(1e-6, 1e3))
def test_alpha_gives_back_the_factor_on_the_logits_or_its_neighbour(hidden, base, factor):
    back = output_alpha(factor, hidden, base) / (hidden / base)
    assert back in (math.nextafter(factor, 0), factor, math.nextafter(factor, math.inf))


@pytest.mark.parametrize("row", published.OLDER.values(), ids=published.OLDER)
def test_alpha_of_the_models_published_in_old_keys_is_theirs(row):
    assert output_alpha(2.22 * (256 / row.hidden), row.hidden, 256) == 2.22


# ---- the deprecated form becomes today's -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", [in_first_form, in_trainer_form])
@pytest.mark.parametrize("name", DEPRECATED)
def test_logits_attention_initial_weights_and_learning_rates_stay(name, form):
    old = DecoderConfig.from_section(DEPRECATED[name])
    new = DecoderConfig.from_section(model_section_of(form(DEPRECATED[name], OLD), "run.yaml"))
    assert (new.mup_base_hidden_size, new.name) == (16, old.name)
    assert new.logits_scale == old.logits_scale
    assert new.attention_scale == old.attention_scale
    scales = learning_rate_scales(new)
    assert {scales[f"decoder_{group}"] for group in ("attention", "input_ffn", "output_ffn")} == {WIDTH}
    before, after = weight_initializers(old), weight_initializers(new)
    for kind, initializer in before.items():
        assert after[kind].name == initializer.name
        for part in ("mean", "std", "a", "b"):
            same = getattr(initializer, part)
            if same is not None:
                same = pytest.approx(same, rel=tolerances.MUP_CONSTANT)
            assert getattr(after[kind], part) == same, (kind, part)


@pytest.mark.parametrize("name", DEPRECATED)
def test_the_rest_of_the_section_stays(name):
    section = DEPRECATED[name]
    new = migrate_mup(section, OLD)
    for key in section.keys() - {"output_logits_scale", "scale_qk_dot_by_d"}:
        if not key.endswith("initializer") or key == "embedding_initializer":
            assert new[key] == section[key]


# Release 2.2's YAML of the two Jais models gives scaled initializers, 2.10's the base model's: two writings of one run.
@pytest.mark.parametrize(
    ("name", "std", "output_std", "base_filter"),
    [
        ("jais-13b", 0.016323296235748463, 0.0018249999999999998, 682.65),
        ("jais-30b-v1", 0.013795703264836793, 0.0014080180684040886, 682.6428571),
    ],
)
def test_the_old_yaml_of_a_published_model_becomes_its_new_one(name, std, output_std, base_filter):
    row, (_, alpha) = published.OLDER[name], published.OF_30B
    section = jais_section(
        hidden_size=row.hidden,
        num_heads=row.heads,
        num_hidden_layers=row.layers,
        filter_size=row.filter_size,
        mup_base_hidden_size=None,
        mup_base_filter_size=None,
        output_logits_alpha=None,
        output_logits_scale=row.logits_scale,
        embedding_initializer=drawn(0.073, a=-0.146, b=0.146),
        initializer=drawn(std, a=-2 * std, b=2 * std),
        output_layer_initializer=drawn(output_std, a=-2 * output_std, b=2 * output_std),
    )
    new = model_section_of(in_first_form(section, {"decoder_kernel": 256 / row.hidden}), "run.yaml")
    assert (new["mup_base_hidden_size"], new["output_logits_alpha"]) == (256, alpha)
    assert new["mup_base_filter_size"] == pytest.approx(base_filter, rel=1e-10)
    assert DecoderConfig.from_section(new).logits_scale == row.logits_scale
    base = drawn(0.073, a=-0.146, b=0.146)
    for key in ("initializer", "embedding_initializer", "output_layer_initializer", "ffn_output_layer_initializer"):
        assert new[key] == base, key


@pytest.mark.parametrize(
    ("section", "scales"),
    [
        (DEPRECATED["jais-one"], {}),
        (DEPRECATED["jais-one"], {"decoder_kernel": 1.0}),
        (DEPRECATED["jais-one"], {"embedding": 0.5}),
        (jais_section(), {"decoder_kernel": 0.5}),
    ],
)
def test_a_section_whose_width_is_not_in_the_optimizer_stays(section, scales):
    assert migrate_mup(section, scales) == section


@pytest.mark.parametrize("scale", [0, -0.5, "0.5", True, math.inf, math.nan])
def test_a_scale_that_is_none_is_refused_by_name(scale):
    with pytest.raises(UserError, match=r"run\.yaml: optimizer\.adjust_learning_rate\.decoder_kernel"):
        model_section_of(in_first_form(DEPRECATED["jais-one"], {"decoder_kernel": scale}), "run.yaml")


@pytest.mark.parametrize("name", [name for name in DEPRECATED if name.startswith("jais")])
def test_a_release_splits_alpha_and_width_and_gives_the_section_back(name):
    section = model_section_of(in_first_form(DEPRECATED[name], OLD), "run.yaml")
    public = to_config_json(section, "float32", SpecialTokens(0, 0, 0))
    logits = DecoderConfig.from_section(DEPRECATED[name]).logits_scale
    assert public["mup_width_scale"] == WIDTH
    assert public["mup_output_alpha"] * public["mup_width_scale"] == pytest.approx(logits, rel=tolerances.ROUNDING)
    assert to_model_section(public) == (section, [])
    del public["cerebras"]
    again = DecoderConfig.from_section(to_model_section(public)[0])
    assert (again.mup_base_hidden_size, again.output_logits_alpha) == (16, section["output_logits_alpha"])


# ---- against the Model Zoo -------------------------------------------------------------------------------------------


def groups_of(model, options):
    """The Model Zoo's parameter groups by name, in its order: parameters, weight decay, learning-rate scale."""
    from cerebras.modelzoo.common.optim_utils import configure_param_groups

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ([names[id(p)] for p in group["params"]], group["weight_decay"], group.get("adjust_learning_rate"))
        for group in configure_param_groups(model, copy.deepcopy(options))
    ]


@pytest.mark.modelzoo
@pytest.mark.parametrize("name", DEPRECATED)
def test_the_model_zoo_computes_and_trains_the_same_from_both_sections(name):
    pytest.importorskip("cerebras.modelzoo")
    from tests.cerebras_jais.model.examples import batch_of
    from tests.cerebras_jais.model.test_against_modelzoo import modelzoo_model

    section = model_section_of(in_first_form(DEPRECATED[name], OLD), "run.yaml")
    torch.manual_seed(3)
    old = modelzoo_model(DEPRECATED[name])
    torch.manual_seed(3)
    new = modelzoo_model(section)
    ours = dict(new.named_parameters())
    for parameter, weight in old.named_parameters():
        # One seed, so the same draws times spreads that are equal but for rounding.
        torch.testing.assert_close(ours[parameter], weight, rtol=tolerances.SAME_DRAW, atol=0, msg=parameter)

    options = {"weight_decay": 0.1, "adjust_learning_rate": OLD}
    written = trainer_params(section, "start.mdl")["trainer"]["init"]["optimizer"]["AdamW"]
    assert groups_of(new, written) == groups_of(old, options)

    new.load_state_dict(old.state_dict())
    batch = batch_of(DecoderConfig.from_section(section), packed=False)
    with torch.no_grad():
        assert torch.equal(new.eval()(batch, output_logits=True)[1], old.eval()(batch, output_logits=True)[1])


@pytest.mark.modelzoo
def test_a_release_in_the_old_keys_trains_on_in_the_groups_of_its_first_run():
    pytest.importorskip("cerebras.modelzoo")
    from tests.cerebras_jais.model.test_against_modelzoo import modelzoo_model

    old = jais_section(
        hidden_size=512,
        num_heads=4,
        filter_size=1365,
        mup_base_hidden_size=None,
        mup_base_filter_size=None,
        output_logits_alpha=None,
        output_logits_scale=2.22 * 0.5,
    )
    release = {
        "model_type": "jais",
        "activation_function": "swiglu",
        "position_embedding_type": "alibi",
        "vocab_size": 97,
        "n_positions": 24,
        "n_embd": 512,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 1365,
        "embeddings_scale": 9.1705785,
        "width_scale": 2.22 * 0.5,
        "scale_qk_dot_by_d": True,
    }
    params = trainer_params(to_model_section(release)[0], "start.mdl")["trainer"]["init"]
    before = groups_of(modelzoo_model(old), {"weight_decay": 0.1, "adjust_learning_rate": {"decoder_kernel": 0.5}})
    assert groups_of(modelzoo_model(params["model"]), params["optimizer"]["AdamW"]) == before
