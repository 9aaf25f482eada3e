"""The YAML under configs/ is what the catalog gives, for every model and phase.

Contract: generating again gives the checked-in bytes and no other files; each file is read by the schema and names a
model of the family; phase lists are the single phases one after another; what is published about a run stands in its
file; stage 1 freezes the backbone and nothing else.
"""

import itertools
import re
from pathlib import Path

import pytest
import yaml

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.catalog.yaml_files import find_preset, preset_yaml, presets, write_configs
from cerebras_jais.errors import UserError
from tests import published

CONFIGS = Path(__file__).parents[3] / "configs"


def trainers(name):
    """The `trainer:` mappings of a recipe, as any YAML reader sees them."""
    found = yaml.safe_load(preset_yaml(find_preset(name)))["trainer"]
    return [phase["trainer"] for phase in found] if isinstance(found, list) else [found]


def test_generating_again_gives_the_same_bytes_and_no_other_files(tmp_path):
    write_configs(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    there = {path.relative_to(CONFIGS): path.read_bytes() for path in CONFIGS.rglob("*.yaml")}
    assert made == {path: content for path, content in there.items() if path.parts[0] != "data"}  # data runs


def test_every_model_and_phase_has_a_file():
    names = {preset.name for preset in presets()}
    assert {f"{model.name}/{phase.name}" for model in MODELS for phase in model.phases} <= names
    assert {"tiny/jais", "tiny/adapted", "tiny/context", "tiny/stages", "tiny/chat"} <= names
    assert {f"jais-family-30b-{length}/phases" for length in ("8k", "16k")} <= names


@pytest.mark.parametrize("preset", presets(), ids=lambda r: r.name)
def test_a_file_says_what_the_catalog_says(preset):
    configs = read_trainer_yaml(CONFIGS / f"{preset.name}.yaml")
    for config, (model, phase) in zip(configs, preset.trainers, strict=True):
        section = config.init.model
        assert section.name == model.family.replace("-", "_")
        assert section.max_position_embeddings == phase.context.value
        assert section.vocab_size == model.architecture.vocabulary.value
        assert config.fit.train_dataloader.batch_size == phase.batch_size.value
        assert config.fit.train_dataloader.use_vsl == (phase.kind == "chat")
        steps = sum(getattr(s, "total_iters", 0) for s in getattr(config.init.schedulers[0], "schedulers", []))
        assert (steps or config.init.schedulers[0].total_iters) == phase.steps.value


@pytest.mark.parametrize("name", ["jais-family-30b-16k", "jais-family-30b-8k", "jais-adapted-7b", "jais-adapted-70b"])
def test_a_phase_list_is_the_single_phases_one_after_another(name):
    preset = find_preset(f"{name}/phases")
    singly = [trainers(f"{model.name}/{phase.name}")[0] for model, phase in preset.trainers]
    assert trainers(f"{name}/phases") == singly
    for before, after in itertools.pairwise(singly):
        last = f"{before['init']['model_dir']}/checkpoint_{before['init']['loop']['max_steps']}.mdl"
        assert after["fit"]["ckpt_path"] == last


def test_jais_adapted_70b_chat_is_as_published():
    run = published.ADAPTED_70B_CHAT
    (trainer,) = trainers("jais-adapted-70b-chat/chat")
    warmup, decay = trainer["init"]["schedulers"][0]["SequentialLR"]["schedulers"]
    assert warmup == {
        "LinearLR": {
            "initial_learning_rate": 0.0,
            "end_learning_rate": run.peak_lr,
            "total_iters": run.warmup_steps,
        }
    }
    assert decay == {
        "CosineDecayLR": {
            "initial_learning_rate": run.peak_lr,
            "end_learning_rate": run.final_lr,
            "total_iters": run.steps - run.warmup_steps,
        }
    }
    assert trainer["init"]["loop"]["max_steps"] == run.steps
    assert trainer["init"]["optimizer"]["AdamW"]["weight_decay"] == run.weight_decay
    assert trainer["init"]["model"]["max_position_embeddings"] == run.context
    assert trainer["fit"]["train_dataloader"]["batch_size"] == run.batch_size


def test_the_context_phases_of_30b_carry_the_optimizer_and_step_and_not_the_data():
    phases = trainers("jais-family-30b-16k/phases")
    assert [p["init"]["model"]["max_position_embeddings"] for p in phases] == [2048, 8192, 16384]
    assert [p["init"]["model"]["loss_weight"] for p in phases] == [1 / 2048, 1 / 8192, 1 / 16384]
    assert [p["init"]["loop"]["max_steps"] for p in phases] == [189929, 260648, 287033]
    for phase in phases[1:]:
        (states,) = (c["LoadCheckpointStates"] for c in phase["init"]["callbacks"] if "LoadCheckpointStates" in c)
        assert set(states["load_checkpoint_states"].split(",")) == {"model", "optimizer", "global_step"}


@pytest.mark.parametrize("name", ["jais-adapted-7b", "jais-adapted-13b", "jais-adapted-70b"])
def test_stage_1_freezes_the_backbone_and_stage_2_nothing(name):
    from cerebras_jais.model.config import DecoderConfig
    from cerebras_jais.model.decoder import LanguageModel

    first, second = trainers(f"{name}/phases")
    assert "frozen_parameters" not in second["init"]["model"]
    small = {"hidden_size": 64, "num_heads": 8, "num_hidden_layers": 2, "filter_size": 32, "vocab_size": 64}
    section = {**second["init"]["model"], **small, "rotary_dim": 8}
    patterns = first["init"]["model"]["frozen_parameters"]
    names = [n for n, _ in LanguageModel(DecoderConfig.from_section(section)).named_parameters()]
    trained = [n for n in names if not any(re.search(p, n) for p in patterns)]
    assert trained == ["model.embedding_layer.word_embeddings.weight", "model.lm_head.weight"]
    assert first["init"]["loop"]["max_steps"] * 1024 * 4096 == pytest.approx(15e9, rel=1e-3)


def test_comments_say_where_numbers_come_from():
    text = preset_yaml(find_preset("jais-family-590m"))
    assert "batch_size: 1120 # published: card of jais-family-590m" in text
    assert "eps: 1.0e-08 # assumed: " in text
    assert "mup_base_filter_size: 682.6666666666666 # filter_size x base width / hidden_size" in text


def test_a_name_may_be_a_file_a_recipe_or_a_model_with_one_phase():
    assert find_preset("configs/tiny/jais.yaml") is find_preset("tiny/jais")
    assert find_preset("jais-family-13b") is find_preset("jais-family-13b/pretrain")
    with pytest.raises(UserError, match=r"give one of .*stage-1"):
        find_preset("jais-adapted-7b")
    with pytest.raises(UserError, match="did you mean 'tiny/jais'"):
        find_preset("tiny/jai")
