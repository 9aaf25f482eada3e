"""What is refused under the plugin's names.

Contract: sections of the published sizes pass; each change that would train something other than the family is refused
by key and remedy; the stock names take it.
"""

import pytest

from cerebras_jais.catalog.family import check_family, loss_weight_problem
from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.checkpoint_convert.examples import PUBLISHED


def sizes_of(name):
    """A published model's sizes, as keys of a `model:` section."""
    section, _ = PUBLISHED[name]
    return {key: value for key, value in section.items() if key in KEYS}


KEYS = (
    *("hidden_size", "num_hidden_layers", "num_heads", "filter_size", "vocab_size", "max_position_embeddings"),
    *("mup_base_hidden_size", "mup_base_filter_size", "embeddings_scale", "output_logits_alpha"),
)
SMALLEST, LARGEST = sizes_of("jais-family-590m"), sizes_of("jais-family-30b-8k")
ADAPTED = sizes_of("jais-adapted-7b")


def check(section):
    check_family(DecoderConfig.from_section(section))


@pytest.mark.parametrize(
    "section",
    [
        jais_section(name="jais_family", **SMALLEST),
        jais_section(name="jais_family", **LARGEST),
        jais_section(name="jais_family", loss_scaling="batch_size", loss_weight=1 / 24),
        jais_section(name="jais_family", embeddings_scale=14.6, output_logits_alpha=2.22),
        llama_section(name="jais_adapted", **ADAPTED),
        llama_section(name="jais_adapted", kv_groups=4),
    ],
)
def test_a_section_of_the_family_passes(section):
    check(section)


BROKEN = {
    "one-mup-size": (jais_section, {"mup_base_filter_size": None}, "mup_base_filter_size: give both"),
    "no-mup": (
        jais_section,
        {"mup_base_filter_size": None, "mup_base_hidden_size": None, "output_logits_alpha": None},
        "mup_base_hidden_size: jais_family is parametrised by muP",
    ),
    "one-constant": (jais_section, {"embeddings_scale": None}, "embeddings_scale: the muP constants go together"),
    "other-constant": (jais_section, {"output_logits_alpha": None}, "output_logits_alpha: the muP constants go"),
    "mixed-sets": (jais_section, {"output_logits_alpha": 2.22}, "go together"),
    "set-of-the-30b": (
        jais_section,
        {**SMALLEST, "embeddings_scale": 14.6, "output_logits_alpha": 2.22},
        "give 9.1705785388303",
    ),
    "set-of-the-small": (
        jais_section,
        {**LARGEST, "embeddings_scale": 9.1705785, "output_logits_alpha": 1.0951835},
        "give 14.6",
    ),
    "rotary-dim": (jais_section, {"rotary_dim": 4}, "rotary_dim: ALiBi has no rotary positions; remove the key"),
    "rope-theta": (jais_section, {"rope_theta": 5e5}, "rope_theta: ALiBi has no rotary positions"),
    "not-alibi": (
        jais_section,
        {"position_embedding_type": "rotary", "rotary_dim": 4},
        "jais_family uses alibi; set it to alibi",
    ),
    "vocabulary": (jais_section, {**SMALLEST, "vocab_size": 50257}, "vocab_size: .*84992"),
    "adapted-vocabulary": (llama_section, {**ADAPTED, "vocab_size": 32000}, "vocab_size: .*64000"),
    "loss-weight": (
        jais_section,
        {"loss_scaling": "batch_size", "loss_weight": 1 / 2048},
        "loss_weight: .*1/max_position_embeddings = 0.0416667",
    ),
    "untied": (jais_section, {"share_embedding_weights": False}, "share_embedding_weights: jais_family ties"),
    "part-rotary": (llama_section, {"rotary_dim": 2}, "rotary_dim: Llama rotates whole heads; set it to 4"),
    "adapted-mup": (
        llama_section,
        {"mup_base_hidden_size": 16, "mup_base_filter_size": 42.0},
        "mup_base_hidden_size: jais_adapted is not parametrised by muP",
    ),
    "adapted-alibi": (
        llama_section,
        {"position_embedding_type": "alibi", "rotary_dim": None},
        "jais_adapted uses rotary; set it to rotary",
    ),
}


@pytest.mark.parametrize(("make", "change", "words"), BROKEN.values(), ids=BROKEN)
def test_what_would_break_the_family_is_refused_under_its_name_only(make, change, words):
    name, stock = ("jais_family", "jais") if make is jais_section else ("jais_adapted", "llama")
    with pytest.raises(UserError, match=rf"model\..*{words}"):
        check(make(name=name, **change))
    if "mup_base_filter_size: give both" not in words:
        check(make(name=stock, **change))


@pytest.mark.parametrize("name", ["jais_family", "jais"])
@pytest.mark.parametrize(
    ("weight", "wrong_under"),
    [
        (1 / 8192, ()),
        (0.000122, ()),  # 1/8192 with three digits
        (0.000123, ("jais_family",)),  # no rounding of it, and a mean all the same where some tokens are padding
        (1 / 2048, ("jais_family", "jais")),
        (0.000488, ("jais_family", "jais")),  # 1/2048 with three digits is that of another context too
        (0.0001, ("jais_family", "jais")),
    ],
)
def test_the_weight_of_the_loss_has_one_tolerance_under_every_name(name, weight, wrong_under):
    section = jais_section(
        name=name, **{**SMALLEST, "max_position_embeddings": 8192}, loss_scaling="batch_size", loss_weight=weight
    )
    config = DecoderConfig.from_section(section)
    assert (loss_weight_problem(config) is not None) == (name in wrong_under)
    if name == "jais_family" and wrong_under:
        with pytest.raises(UserError, match=r"^model\.loss_weight: "):
            check_family(config)
