"""The table names the tensors that models really have.

Contract: for every published model and every trainer YAML of `configs/`, from the config alone, the rules join the
names of the Cerebras side and of the Hugging Face side one to one; no tensor of the model is left out (which there are:
tests/cerebras_jais/model/test_tensors.py); names and shapes of the Hugging Face side are those of its own classes.
"""

import functools
import json
from pathlib import Path

import pytest
import torch

from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SpecialTokens, to_config_json
from checkpoint_convert.mapping.rules import expected_tensors, grouped, rules, ties
from tests.checkpoint_convert.examples import PUBLISHED, VARIANTS
from tests.marks import slow_except

CONFIGS = Path(__file__).parents[3] / "configs"


def sections_of_configs():
    """The `model:` section of each trainer YAML, the first one of a list of phases, by the name of the file."""
    for path in sorted(CONFIGS.glob("[!d]*/*.yaml")):  # without data runs
        trainer = read_yaml(path).data["trainer"]
        first = trainer[0]["trainer"] if isinstance(trainer, list) else trainer
        yield str(path.relative_to(CONFIGS)), first["init"]["model"]


SECTIONS = {
    **{name: section for name, (section, _) in PUBLISHED.items()},
    **VARIANTS,
    **dict(sections_of_configs()),
}
FAST = ("jais-family-590m", "jais-adapted-70b")  # both families, grouped queries; 590m is the smallest


def config_of(name):
    return DecoderConfig.from_section(SECTIONS[name])


@functools.cache
def _hugging_face_shapes(section_json):
    section = json.loads(section_json)
    keys = to_config_json(section, "float32", SpecialTokens(0, 0, 0))
    if keys["model_type"] == "jais":
        from checkpoint_convert.hf_code.configuration_jais import JAISConfig as Config
        from checkpoint_convert.hf_code.modeling_jais import JAISLMHeadModel as Model
    else:
        from transformers import LlamaConfig as Config
        from transformers import LlamaForCausalLM as Model
    keys.pop("auto_map", None)
    with torch.device("meta"):
        model = Model(Config(**keys))
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("name", slow_except([*VARIANTS, *FAST], SECTIONS))
def test_hugging_face_names_and_shapes_are_those_of_its_own_class(name):
    assert expected_tensors(config_of(name), "hugging_face") == _hugging_face_shapes(json.dumps(SECTIONS[name]))


@pytest.mark.parametrize("name", SECTIONS)
def test_rules_join_both_sides_one_to_one(name):
    config = config_of(name)
    for side in ("cerebras", "hugging_face"):
        names = [n for rule in rules(config) for n in rule.names(side)]
        assert len(names) == len(set(names))
        assert set(names) | ties(config, side).keys() == expected_tensors(config, side).keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    section, count = PUBLISHED[name]
    config = DecoderConfig.from_section(section)
    tied = ties(config, "hugging_face")
    shapes = {n: s for n, s in expected_tensors(config, "hugging_face").items() if n not in tied}
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == count


@pytest.mark.parametrize("name", SECTIONS)
def test_shapes_come_back_through_the_inverse(name):
    for rule in rules(config_of(name)):
        back = rule.operation("hugging_face", "cerebras").shapes(rule.shapes("hugging_face"))
        assert tuple(back) == rule.cerebras_shapes


def test_names_fold_by_layers():
    names = [f"transformer.h.{i}.mlp.c_fc.bias" for i in (0, 1, 2, 5)] + ["lm_head.weight", "model.layers.3.x"]
    assert grouped(names) == ["lm_head.weight", "layers 0-2, 5: mlp.c_fc.bias", "layer 3: x"]
