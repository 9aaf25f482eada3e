"""The list of tensors is that of the real modules.

Contract: for every model of the catalog and every variant of a config, names, order, shapes, second names and what
trains are those of the reference decoder on the meta device, and of the Model Zoo's own model (marked `modelzoo`);
importing the list, and the size of a model, needs no torch.
"""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.launch.estimate import model_size
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters, trained_names
from cerebras_jais.model.tensors import parameter_count, second_names, tensors, under_both_names
from tests.cerebras_jais.model.examples import jais_section, llama_section

CONFIGS = Path(__file__).parents[3] / "configs"
VARIANTS = {
    "jais": jais_section(),
    "jais untied": jais_section(share_embedding_weights=False),
    "jais with a bias in its head": jais_section(use_bias_in_output=True),
    "jais without biases": jais_section(
        use_ffn_bias=False, use_projection_bias_in_attention=False, use_ffn_bias_in_attention=False
    ),
    "llama": llama_section(),
    "llama grouped": llama_section(kv_groups=4),
    "llama tied": llama_section(share_embedding_weights=True),
    "llama with biases": llama_section(
        use_ffn_bias=True, use_projection_bias_in_attention=True, use_ffn_bias_in_attention=False
    ),
}


def sections_of_configs():
    """The `model:` section of each trainer YAML, the first one of a list of phases, by the name of the file."""
    for path in sorted(CONFIGS.glob("[!d]*/*.yaml")):  # without data runs
        trainer = read_yaml(path).data["trainer"]
        first = trainer[0]["trainer"] if isinstance(trainer, list) else trainer
        yield path.relative_to(CONFIGS).with_suffix("").as_posix(), first["init"]["model"]


SECTIONS = {**VARIANTS, **dict(sections_of_configs())}


@functools.cache
def config_and_module(name):
    """A config, and its reference decoder on the meta device with what it freezes frozen."""
    config = DecoderConfig.from_section(SECTIONS[name])
    with torch.device("meta"):
        model = LanguageModel(config)
    freeze_parameters(model, config.frozen_parameters)
    return config, model


@pytest.mark.parametrize("name", SECTIONS)
def test_the_list_is_that_of_the_reference_decoder(name):
    config, model = config_and_module(name)
    state = model.state_dict(keep_vars=True)
    listed = tensors(config)
    assert [(t.name, t.shape) for t in listed] == [(name, tuple(t.shape)) for name, t in state.items()]
    assert [t.name for t in listed if t.same_as is None] == [name for name, _ in model.named_parameters()]
    assert all(state[t.name] is state[t.same_as] for t in listed if t.same_as)
    assert trained_names(config) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_every_model_of_the_catalog_is_among_them():
    assert {name.partition("/")[0] for name in SECTIONS} >= {model.name for model in MODELS}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_size_of_a_model_is_that_of_its_modules(name):
    config, model = config_and_module(name)
    size = model_size(config)
    parameters = list(model.parameters())
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert size.parameters == parameter_count(config) == sum(p.numel() for p in parameters)
    assert size.trained == sum(p.numel() for p in parameters if p.requires_grad)
    assert size.stored == sum(t.numel() for t in model.state_dict().values())
    assert size.multiplied == sum(p.numel() for p in linear)
    assert size.multiplied_and_trained == sum(p.numel() for p in linear if p.requires_grad)


@pytest.mark.modelzoo
@pytest.mark.parametrize("name", [*VARIANTS, "tiny/jais", "tiny/adapted"])
def test_the_list_is_that_of_the_model_zoo(name):
    from tests.cerebras_jais.modelzoo.runs import require_modelzoo

    require_modelzoo()
    from cerebras.modelzoo.config.utils import create_config_class
    from cerebras.modelzoo.registry import registry

    section = {**SECTIONS[name], "name": "jais" if SECTIONS[name]["name"].startswith("jais_f") else "llama"}
    config = DecoderConfig.from_section(section)
    model = create_config_class(registry.get_model_class(section["name"])).model_validate(section)()
    listed = {tensor.name: tensor.shape for tensor in tensors(config)}
    assert listed == {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert [t.name for t in tensors(config) if t.same_as is None] == [key for key, _ in model.named_parameters()]
    assert trained_names(config) == {key for key, p in model.named_parameters() if p.requires_grad}


def test_either_name_of_a_tied_tensor_may_be_the_only_one():
    config = DecoderConfig.from_section(jais_section())
    second = second_names(config)
    assert second["model.lm_head.weight"] == "model.embedding_layer.word_embeddings.weight"
    every = {tensor.name: tensor.same_as or tensor.name for tensor in tensors(config)}
    first_alone = {name: first for name, first in every.items() if name not in second}
    second_alone = {name: first for name, first in every.items() if name not in second.values()}
    assert under_both_names(first_alone, second) == under_both_names(second_alone, second) == every
    both = {"a": 1, "b": 2}
    assert under_both_names(both, {"b": "a"}) == both
    assert under_both_names({}, {"b": "a"}) == {}


def test_the_list_and_the_sizes_need_no_torch():
    code = "import sys, cerebras_jais.launch.estimate, cerebras_jais.model.stored; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
