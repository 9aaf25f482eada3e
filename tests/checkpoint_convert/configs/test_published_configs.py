"""config.json of every published model, as published, is understood to the last key.

Contract: the public keys of each of the 20 models become a section whose model has the published number of parameters,
and come back from that section equal; so do those of the Jais models before the family, in their old names.
"""

import math

import pytest

from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SpecialTokens, to_config_json, to_model_section
from checkpoint_convert.mapping.rules import expected_tensors, ties
from tests import published

CONFIGS = {name: published.config_json(name) for name in published.MODELS} | {
    "jais-family-256m": published.sibling_config_json()
}


def there_and_back(config):
    section, notes = to_model_section(config)
    return DecoderConfig.from_section(section), to_config_json(section, "float32", SpecialTokens(0, 0, 0)), notes


@pytest.mark.parametrize("name", CONFIGS)
def test_the_public_keys_come_back_equal(name):
    config = CONFIGS[name]
    model, again, notes = there_and_back(config | published.WITHOUT_MEANING)
    assert {key: again.get(key) for key in config} == config
    if config["model_type"] == "jais":
        assert (model.mup_base_hidden_size, again["tie_word_embeddings"]) == (256, True)
        assert not any("assumed" in note for note in notes)


@pytest.mark.parametrize("name", published.MODELS)
@pytest.mark.parametrize("side", ["cerebras", "hugging_face"])
def test_the_number_of_parameters_is_the_published_one(name, side):
    model, _, _ = there_and_back(CONFIGS[name])
    second = ties(model, side)
    shapes = expected_tensors(model, side)
    assert (
        sum(math.prod(shape) for tensor, shape in shapes.items() if tensor not in second)
        == published.MODELS[name].parameters
    )


@pytest.mark.parametrize("name", published.OLDER)
def test_the_old_names_give_the_same_logits_and_the_width_that_all_published_models_have(name):
    row, (embeddings_scale, alpha) = published.OLDER[name], published.OF_30B
    model, again, notes = there_and_back(published.older_config_json(name) | published.WITHOUT_MEANING)
    assert model.logits_scale == row.logits_scale  # to the last bit
    assert model.attention_scale == 1 / 128
    assert again["mup_output_alpha"] * again["mup_width_scale"] == row.logits_scale
    assert (again["mup_output_alpha"], again["mup_width_scale"]) == (alpha, 256 / row.hidden)
    assert (again["mup_embeddings_scale"], again["mup_scale_qk_dot_by_d"]) == (embeddings_scale, True)
    assert (model.mup_base_hidden_size, again["tie_word_embeddings"]) == (256, True)
    assert any("assumed" in note and "256" in note for note in notes)
