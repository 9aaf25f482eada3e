"""Freezing by name.

Contract: patterns are searched for anywhere in a tensor's name; a tensor of two names is found by either; what is found
needs no gradient; a pattern that finds nothing, is none, or leaves nothing to train is refused.
"""

import pytest
import torch

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from tests.cerebras_jais.model.examples import jais_section, llama_section


def model_of(section):
    with torch.device("meta"):
        return LanguageModel(DecoderConfig.from_section(section))


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_a_pattern_finds_does_not_train():
    model = model_of(llama_section())
    frozen = freeze_parameters(model, [r"transformer_decoder\."])
    assert trained(model) == {"model.embedding_layer.word_embeddings.weight", "model.lm_head.weight"}
    # The last norm goes by another name first, and is found by the one that the pattern names.
    assert "model.ln_f.weight" in frozen


def test_a_tied_tensor_is_found_by_either_name():
    model = model_of(jais_section())
    assert freeze_parameters(model, ["lm_head"]) == ["model.embedding_layer.word_embeddings.weight"]


def test_no_pattern_freezes_nothing():
    model = model_of(jais_section())
    before = trained(model)
    assert freeze_parameters(model, []) == []
    assert trained(model) == before


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["decoder.layers.9"], "matches no tensor name"),
        (["layers.("], "is not a regular expression"),
        ([""], "nothing is left to train"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, words):
    with pytest.raises(UserError, match=rf"model\.frozen_parameters: .*{words}"):
        freeze_parameters(model_of(llama_section()), patterns)


def test_the_key_belongs_to_the_models_of_the_plugin():
    with pytest.raises(UserError, match=r"frozen_parameters: .*use name: jais_family or jais_adapted"):
        DecoderConfig.from_section(llama_section(frozen_parameters=["x"]))
    section = llama_section(name="jais_adapted", frozen_parameters=["x", "y"])
    config = DecoderConfig.from_section(section)
    assert config.frozen_parameters == ("x", "y")
    with pytest.raises(UserError, match="must be a list of strings"):
        DecoderConfig.from_section({**section, "frozen_parameters": "x"})
