"""The plugin's models among those of the real Model Zoo.

Contract: registered once however often that is asked, with the stock models' data processors; their configs derive from
the Model Zoo's own and refuse, by key, what would break the family; what is frozen needs no gradient; the tensors are
those of the stock class.
"""

import pytest

from cerebras_jais.modelzoo_version import MODEL_CLASSES, class_name
from tests.cerebras_jais.catalog.test_family import BROKEN
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.cerebras_jais.modelzoo.runs import require_modelzoo

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]


@pytest.fixture(scope="module")
def registry():
    require_modelzoo()
    from cerebras.modelzoo.registry import registry

    from cerebras_jais.modelzoo import plugin

    plugin.register()
    return registry


def config_of(registry, section):
    """The section as the Model Zoo's trainer reads it."""
    from cerebras.modelzoo.config.utils import create_config_class

    return create_config_class(registry.get_model_class(section["name"])).model_validate(section)


@pytest.mark.parametrize(("name", "stock"), [("jais_family", "jais"), ("jais_adapted", "llama")])
def test_the_models_are_registered_with_the_data_processors_of_the_stock_ones(registry, name, stock):
    assert registry.get_model_names().count(name) == 1
    assert registry.get_data_processor_names(name) == registry.get_data_processor_names(stock)


@pytest.mark.parametrize("name", MODEL_CLASSES)
def test_the_class_of_a_name_is_the_one_that_the_model_zoo_builds_and_records(registry, name):
    found = registry.get_model_class(name)
    assert f"{found.__module__}.{found.__qualname__}" == MODEL_CLASSES[name]
    assert found.__name__ == class_name(name)  # what trainer/callbacks/metadata.py writes


@pytest.mark.parametrize(("make", "change", "words"), BROKEN.values(), ids=BROKEN)
def test_a_config_that_would_break_the_family_is_refused_by_key(registry, make, change, words):
    name = "jais_family" if make is jais_section else "jais_adapted"
    with pytest.raises(ValueError, match=rf"model\..*{words}"):
        config_of(registry, make(name=name, **change))


@pytest.mark.parametrize(
    ("section", "stock"),
    [(jais_section(name="jais_family"), "jais"), (llama_section(kv_groups=4, name="jais_adapted"), "llama")],
    ids=["jais_family", "jais_adapted"],
)
def test_the_tensors_are_those_of_the_stock_class_and_freezing_only_stops_their_gradients(registry, section, stock):
    ours = config_of(registry, {**section, "frozen_parameters": [r"transformer_decoder\."]})()
    theirs = config_of(registry, {**section, "name": stock})()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    outside = {name for name, p in theirs.named_parameters() if p.requires_grad and "transformer_decoder" not in name}
    assert trained == {
        name for name in outside if "ln_f" not in name
    }  # the last norm of the decoder, by its other name


def test_a_pattern_that_finds_nothing_is_refused_when_the_model_is_built(registry):
    config = config_of(registry, llama_section(name="jais_adapted", frozen_parameters=["backbone"]))
    with pytest.raises(Exception, match="'backbone' matches no tensor name"):
        config()
