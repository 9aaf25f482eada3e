"""Parameter groups are the Model Zoo's, in its order.

Contract: `parameter_groups` gives the groups that Model Zoo `configure_param_groups` gives: which parameters, in which
order, with which weight decay, scale and tags; a name in two groups, an unknown group or a pattern that matches nothing
is refused.
"""

import copy

import pytest

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.optimizer.groups import OptimizerError, learning_rate_scales, parameter_groups
from tests.cerebras_jais.train.examples import JAIS, LLAMA

UNEVEN = {**JAIS, "mup_base_filter_size": 21.0}
NO_MUP = {k: v for k, v in JAIS.items() if not k.startswith("mup_") and k != "output_logits_alpha"}
CASES = {
    "jais": (JAIS, {}),
    "jais-two-scales": (UNEVEN, {}),
    "jais-no-mup": (NO_MUP, {}),
    "jais-old-mup": (NO_MUP, {"adjust_learning_rate": {"decoder_kernel": 0.25}}),
    "jais-override": (UNEVEN, {"adjust_learning_rate": {"embedding": 0.3, "decoder_output_ffn": 0.5}}),
    "jais-tags": (JAIS, {"params": [{"params": "*word_embeddings*", "tag": "embeddings"}]}),
    "jais-many-tags": (
        UNEVEN,
        {"params": [{"params": ["*word_embeddings*", "*layers.0.*"], "tag": "a"}, {"params": "*bias", "tag": "b"}]},
    ),
    "llama": (LLAMA, {}),
    "llama-tied": ({**LLAMA, "share_embedding_weights": True}, {}),
    "llama-tags": (LLAMA, {"params": [{"params": "*lm_head*", "tag": "head"}]}),
}


def our_groups(section, options):
    config = DecoderConfig.from_section(section)
    tagged = [
        ([p["params"]] if isinstance(p["params"], str) else p["params"], p["tag"]) for p in options.get("params", [])
    ]
    return parameter_groups(
        LanguageModel(config),
        config,
        weight_decay=0.1,
        adjust_learning_rate=options.get("adjust_learning_rate", {}),
        tagged=tagged,
    )


@pytest.mark.modelzoo
@pytest.mark.parametrize("case", CASES)
def test_groups_are_those_of_the_model_zoo(case):
    pytest.importorskip("cerebras.modelzoo")
    from cerebras.modelzoo.common.optim_utils import configure_param_groups

    from tests.cerebras_jais.model.test_against_modelzoo import modelzoo_model

    section, options = CASES[case]
    model = modelzoo_model(copy.deepcopy(section))
    name_of = {id(p): n for n, p in model.named_parameters()}
    theirs = [
        (
            [name_of[id(p)] for p in group["params"]],
            group["weight_decay"],
            group.get("adjust_learning_rate"),
            set(group.get("tags", ())),
        )
        for group in configure_param_groups(model, {"weight_decay": 0.1, **copy.deepcopy(options)})
    ]
    ours = [(list(g.names), g.weight_decay, g.adjust_learning_rate, set(g.tags)) for g in our_groups(section, options)]
    # Groups of several tags come from a set there; those are compared without order.
    assert sorted(ours, key=str) == sorted(theirs, key=str)
    assert ours == theirs


def test_biases_and_norms_do_not_decay():
    for group in our_groups(JAIS, {}):
        for name in group.names:
            assert (group.weight_decay == 0) == ("bias" in name or "norm" in name or "ln_f" in name)


def test_every_trained_parameter_is_in_one_group():
    for section, options in CASES.values():
        names = [name for group in our_groups(section, options) for name in group.names]
        model = LanguageModel(DecoderConfig.from_section(section))
        assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)


def test_mup_scales_follow_the_widths():
    scales = learning_rate_scales(DecoderConfig.from_section(UNEVEN))
    assert scales["decoder_attention"] == scales["decoder_input_ffn"] == 1 / (32 / 16)
    assert scales["decoder_output_ffn"] == 1 / (64 / 21.0)
    assert scales["embedding"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adjust_learning_rate": {"decoder_atention": 0.5}}, "did you mean 'decoder_attention'"),
        ({"adjust_learning_rate": {"decoder_kernel": 0.125}}, "two groups"),
        ({"params": [{"params": "*nothing*", "tag": "t"}]}, "match no parameter"),
    ],
)
def test_groups_that_do_not_fit_the_model_are_refused(options, words):
    with pytest.raises(OptimizerError, match=words):
        our_groups(UNEVEN, options)
