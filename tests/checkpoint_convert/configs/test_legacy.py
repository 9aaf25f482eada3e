"""`model:` sections of every release of the Model Zoo are taken as release 2.10 takes them.

Contract: keys that are gone are left out where they change nothing of the model and refused by name where they do; a
section of release 2.10 stays as it is; the Model Zoo's own config class accepts what comes out.
"""

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import check_convertible
from checkpoint_convert.configs.legacy import migrate_keys
from tests.checkpoint_convert.examples import VARIANTS, jais_section, llama_section

# Key and value of a release, and the releases whose own files or classes have it.
GONE = {
    "1.9 to 2.4": {"mixed_precision": True},
    "2.1 to 2.4": {"fp16_type": "cbfloat16"},
    "1.9 and 2.0": {"use_bfloat16": True, "tf_summary": False, "use_position_embedding": True},
    "2.0 and 2.1": {"alibi_implementation": "expand", "weight_initialization_seed": 1},
    "1.9": {"norm_first": True, "use_ff_layer1_dropout": False, "precision_opt_level": 1},
    "2.2 and 2.3": {"pad_rope": True},
    "2.3": {
        "moe_params": {"num_experts": 1},
        "moe": None,
        "lora_params": None,
        "compression": {"format": "mx8-e4m3", "param_filter": "*"},
        "selective_grad": {"init_method": "outlier"},
    },
    "2.4": {"num_memory_tokens_per_chunk": None, "attn_memory_chunk_size": None},
    "2.5 on, switched off": {
        "memory_tokens": {"memory_tokens_enabled": False},
        "moe": {"num_experts": 1, "top_k": 1},
        "pos_scaling_type": "Linear",
        "pos_scaling_extra_args": {},
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_section_of_today_stays(name):
    assert migrate_keys(VARIANTS[name]) == VARIANTS[name]


@pytest.mark.parametrize("releases", GONE)
def test_keys_that_are_gone_are_left_out(releases):
    assert migrate_keys(jais_section() | GONE[releases]) == jais_section()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"model_name": "jais"}, {"name": "jais"}),
        ({"use_rms_norm": True}, {"name": "jais", "norm_type": "rmsnorm"}),
        ({"use_rms_norm": False}, {"name": "jais", "norm_type": "layernorm"}),
        ({"position_embedding_type": "rotary"}, {"name": "llama", "position_embedding_type": "rotary"}),
        ({"position_embedding_type": "alibi"}, {"name": "jais", "position_embedding_type": "alibi"}),
    ],
)
def test_keys_that_have_another_name_today_get_it(old, new):
    assert migrate_keys(old) == new


@pytest.mark.parametrize(
    "change",
    [
        {"use_position_embedding": False},
        {"norm_first": False},
        {"use_ff_layer1_dropout": True},
        {"lora_params": {"r": 16}},
        {"lora_params": [{"r": 0}]},
        {"moe": {"num_experts": 8}},
        {"moe_params": {"num_experts": 1, "num_shared_experts": 2}},
        {"memory_tokens": {"memory_tokens_enabled": True}},
        {"attn_memory_chunk_size": 128},
        {"model_name": "llama"},
        {"use_rms_norm": True, "norm_type": "layernorm"},
        {"pos_scaling_type": "yarn", "pos_scaling_factor": 2.0},
        {"pos_scaling_type": "llama3", "pos_scaling_extra_args": {"low_freq_factor": 1}},
        {"pos_scaling_type": "longrope"},
    ],
)
def test_what_no_model_of_the_family_has_is_refused_by_name(change):
    with pytest.raises(UserError, match=rf"model\.{next(iter(change))}"):
        migrate_keys(jais_section() | change)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (jais_section(alibi_trainable_slopes=True), "alibi_trainable_slopes"),
        (jais_section(embedding_layer_norm=True), "embedding_layer_norm"),
        (llama_section(attention_sliding_window_length=16), "attention_sliding_window_length"),
        (llama_section(rel_distance_mode="capped"), "rel_distance_mode"),
        (llama_section(final_logit_softcapping=30.0), "final_logit_softcapping"),
        (jais_section(attention_type="dot_product"), "attention_type"),
        (jais_section(position_embedding_type="learned"), "position_embedding_type"),
        (jais_section(pos_scaling_factor=0.25), "pos_scaling_factor"),
    ],
)
def test_what_a_release_cannot_say_is_refused_by_name(section, key):
    with pytest.raises(UserError, match=rf"model\.{key}"):
        check_convertible(DecoderConfig.from_section(migrate_keys(section)))


@pytest.mark.modelzoo
@pytest.mark.parametrize("family", [jais_section, llama_section])
@pytest.mark.parametrize("releases", GONE)
def test_the_model_zoo_takes_the_section(releases, family):
    pytest.importorskip("cerebras.modelzoo")
    from cerebras.modelzoo.models.nlp.jais.model import JAISModelConfig
    from cerebras.modelzoo.models.nlp.llama.model import LlamaModelConfig

    config = JAISModelConfig if family is jais_section else LlamaModelConfig
    old = {key: value for key, value in family().items() if key != "name"}
    taken = config(**migrate_keys(old | GONE[releases]))
    assert (taken.hidden_size, taken.filter_size, taken.vocab_size) == (48, 128, 97)
