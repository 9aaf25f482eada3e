"""Initial weights one by one are those of a model that is built whole.

Contract: under one seed `initial_weights` gives, bit for bit, the parameters of `LanguageModel`, whatever the
distribution of its weights, and never has two of them in memory.
"""

import pytest
import torch

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.initialize import initial_weights
from tests.cerebras_jais.model.examples import jais_section, llama_section

NARROW = {"name": "truncated_normal", "mean": 0.0, "std": 1.0, "a": -0.1, "b": 0.1}
SECTIONS = [jais_section(), jais_section(initializer=NARROW, share_embedding_weights=False), llama_section()]


@pytest.mark.parametrize("section", SECTIONS, ids=["jais", "narrow", "llama"])
def test_weights_drawn_one_by_one_are_those_of_a_model_built_whole(section):
    config = DecoderConfig.from_section(section)
    torch.manual_seed(3)
    whole = dict(LanguageModel(config).named_parameters())
    torch.manual_seed(3)
    with torch.device("meta"):
        shapes = LanguageModel(config)
    found = {}
    for name, values in initial_weights(shapes, config, torch.device("cpu")):
        assert all(parameter.is_meta for parameter in shapes.parameters())
        found[name] = values
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in whole.items())
