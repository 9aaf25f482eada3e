"""A checkpoint of an old run, its params in whichever form, becomes a release that computes the same, and comes back.

Contract: the release of a checkpoint in the deprecated form of muP gives the logits of its own model, in transformers;
the checkpoint made of that release gives them again in the Model Zoo, and the YAML beside it is in today's form.
"""

import pytest
import torch

from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.trainer_yaml import read_model_section
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.formats.json_files import read_json
from tests import tolerances
from tests.cerebras_jais.model.examples import batch_of
from tests.checkpoint_convert.examples import random_model, state_of
from tests.checkpoint_convert.old_runs import DEPRECATED, WIDTH, in_first_form, in_trainer_form

NAMES = ["jais-as-published", "jais-untied-no-logits-scale", "llama"]


def old_checkpoint(path, name, form, version):
    model = random_model(DEPRECATED[name])
    params = form(DEPRECATED[name], {"decoder_kernel": WIDTH})
    metadata = [{"version": version, "model_name": "GPT2LMHeadModel", "params": params}]
    save_checkpoint(path, {"model": state_of(model), "__metadata__": metadata})
    return model


@pytest.mark.slow
@pytest.mark.parametrize(("form", "version"), [(in_first_form, "2.2.1"), (in_trainer_form, "2.3.0")])
@pytest.mark.parametrize("name", NAMES)
def test_the_release_gives_the_logits_of_the_run(tmp_path, name, form, version):
    from transformers import AutoModelForCausalLM

    model = old_checkpoint(tmp_path / "old.mdl", name, form, version)
    convert_to_hf(tmp_path / "old.mdl", tmp_path / "release")
    config = read_json(tmp_path / "release" / "config.json")
    if name != "llama":
        assert config["mup_width_scale"] == WIDTH
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "release", trust_remote_code=True).eval()
    ids = batch_of(model.config, packed=False)["input_ids"]
    with torch.no_grad():
        expected = model.logits(ids)
        assert (theirs(ids.long()).logits - expected).abs().max() < tolerances.RELEASE_LOGITS
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    section = read_model_section(tmp_path / "back.yaml")
    assert section["mup_base_hidden_size"] == 16
    assert DecoderConfig.from_section(section).logits_scale == model.config.logits_scale


@pytest.mark.modelzoo
@pytest.mark.parametrize("name", NAMES)
def test_the_model_zoo_goes_on_from_it_with_the_same_loss(tmp_path, name):
    pytest.importorskip("cerebras.modelzoo")
    import cerebras.pytorch as cstorch

    from tests.cerebras_jais.model.test_against_modelzoo import modelzoo_model

    model = old_checkpoint(tmp_path / "old.mdl", name, in_first_form, "2.2.1")
    convert_to_hf(tmp_path / "old.mdl", tmp_path / "release")
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    old = modelzoo_model(DEPRECATED[name]).eval()
    old.load_state_dict(model.state_dict())
    new = modelzoo_model(read_model_section(tmp_path / "back.yaml")).eval()
    new.load_state_dict(cstorch.load(tmp_path / "back.mdl")["model"])
    batch = batch_of(model.config, packed=False)
    with torch.no_grad():
        assert torch.equal(new(batch), old(batch))
