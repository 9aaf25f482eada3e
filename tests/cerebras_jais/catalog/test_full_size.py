"""Each of the 20 models at its full size is what its YAML says, here and in the Model Zoo.

Contract: built on the meta device from every YAML that trains it, a model has the published number of parameters; the
Model Zoo's class, built from the same YAML, has the same tensors by name and shape, and the same number of them.
"""

import copy

import pytest
import torch
import yaml

from cerebras_jais.catalog.yaml_files import find_preset, preset_yaml, presets
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests import published
from tests.marks import slow_except

FULL_SIZE = [preset for preset in presets() if not preset.is_miniature]
FAST = [find_preset("jais-family-590m"), find_preset("jais-adapted-70b/stage-1")]


def sections(preset):
    """The `model:` section of each phase, read from the YAML text."""
    found = yaml.safe_load(preset_yaml(preset))["trainer"]
    found = [phase["trainer"] for phase in found] if isinstance(found, list) else [found]
    return [trainer["init"]["model"] for trainer in found]


def reference_model(section):
    with torch.device("meta"):
        return LanguageModel(DecoderConfig.from_section(section))


def size_of(model):
    return sum(parameter.numel() for parameter in model.parameters())


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("preset", slow_except(FAST, FULL_SIZE), ids=lambda preset: preset.name)
def test_a_model_built_from_its_yaml_has_the_published_parameters(preset):
    for section in sections(preset):
        assert size_of(reference_model(section)) == published.MODELS[preset.model.name].parameters


@pytest.mark.modelzoo
@pytest.mark.slow
@pytest.mark.parametrize("preset", [r for r in FULL_SIZE if len(r.trainers) == 1], ids=lambda r: r.name)
def test_the_model_zoo_builds_the_same_tensors_from_the_same_yaml(preset):
    pytest.importorskip("cerebras.modelzoo")
    import cerebras.pytorch as cstorch

    from cerebras_jais.modelzoo.models import JaisAdaptedConfig, JaisAdaptedModel, JaisFamilyConfig, JaisFamilyModel
    from tests.cerebras_jais.train.examples import use_cpu

    use_cpu(cstorch)
    (section,) = sections(preset)
    kinds = {
        "jais_family": (JaisFamilyModel, JaisFamilyConfig),
        "jais_adapted": (JaisAdaptedModel, JaisAdaptedConfig),
    }
    build, config = kinds[section["name"]]
    with torch.device("meta"):
        theirs = build(config(**copy.deepcopy(section)))
    ours = reference_model(section)
    assert shapes_of(theirs) == shapes_of(ours)
    assert size_of(theirs) == size_of(ours) == published.MODELS[preset.model.name].parameters
    frozen = {name for name, p in theirs.named_parameters() if not p.requires_grad}
    assert bool([n for n in frozen if "slopes" not in n]) == preset.name.endswith("stage-1")
