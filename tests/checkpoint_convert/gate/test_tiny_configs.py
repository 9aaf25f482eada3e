"""A release of every tiny config passes the gate; a chat one in bfloat16 and an adapted one in float16 too.

Contract: the model of a tiny config (of several phases: the last), with random weights and a tokenizer of its family,
is released with no option but a card and passes every check; the chat config, and no other, gives a chat release.
"""

import pytest
import yaml

from cerebras_jais.catalog.yaml_files import find_preset, preset_yaml, presets
from checkpoint_convert.card import Card
from checkpoint_convert.configs.trainer_yaml import model_section_of
from checkpoint_convert.convert import convert_to_hf
from tests.chat_tokenizers import write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint
from tests.checkpoint_convert.gate.test_damaged import checked, failures

pytest.importorskip("transformers")

TINY = [preset.name for preset in presets() if preset.name.startswith("tiny/")]
CASES = [*((name, None) for name in TINY), ("tiny/chat", "bfloat16"), ("tiny/adapted", "float16")]


@pytest.mark.parametrize(
    ("name", "dtype"), [param if param == CASES[0] else pytest.param(*param, marks=pytest.mark.slow) for param in CASES]
)
def test_a_release_of_a_tiny_config_passes(tmp_path, name, dtype):
    params = yaml.safe_load(preset_yaml(find_preset(name)))
    section = model_section_of(params, name)
    trainer = params["trainer"]
    fit = (trainer[-1]["trainer"] if isinstance(trainer, list) else trainer)["fit"]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)), fit=fit)
    family = "llama" if section["name"] == "jais_adapted" else "jais"
    tokenizer = write_tokenizer(family, tmp_path / "tokenizer")
    card = Card(languages=("ar", "en"), licence="apache-2.0")
    convert_to_hf(checkpoint, tmp_path / "release", tokenizer=tokenizer, dtype=dtype, card=card)
    found = checked(tmp_path / "release")
    assert failures(found) == {}
    skipped = {check["name"] for check in found["checks"] if check["status"] == "skipped"}
    assert skipped == (set() if "chat" in name else {"template"})
