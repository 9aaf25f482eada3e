"""The release of a chat model has the family's template and the card's sampling, and the card's quick start runs on it.

Contract: `to-hf` releases a checkpoint of instruction tuning as a chat model, any checkpoint with --chat and none with
--no-chat; the catalog's chat phases, and no other phase, are instruction tuning. The template stands in
chat_template.jinja and nowhere else. `verify` and `to-cerebras` take such releases, and the way back to a release is
again a chat model. The card's quick start runs unchanged on them, but for the path, and nothing of ours makes it warn.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from click.testing import CliRunner

from cerebras_jais.catalog.chat import SAMPLING, chat_template
from cerebras_jais.catalog.yaml_files import preset_yaml, presets
from cerebras_jais.errors import UserError
from checkpoint_convert.cli import cli
from checkpoint_convert.configs.trainer_yaml import tunes_on_conversations
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from tests.card import prompt, quick_start
from tests.chat_tokenizers import EOS, TOKENIZERS, VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import (
    jais_section,
    listing,
    llama_section,
    random_model,
    state_of,
    write_checkpoint,
)
from tests.process import PATIENCE

SECTIONS = {"jais": jais_section, "llama": llama_section}
both_families = pytest.mark.parametrize("family", SECTIONS)
TUNING = {"train_dataloader": {"data_dir": "data/chat/train", "use_vsl": True}, "ckpt_path": "base.mdl"}
SIGNS = {"chat_template.jinja", *SAMPLING}


def checkpoint_of(directory, family, fit=TUNING, change=None, **sizes):
    """A checkpoint of random weights of a family, left by a run with a `fit` section; `change` is made to the model."""
    section = SECTIONS[family](vocab_size=VOCABULARY, **sizes)
    model = random_model(section)
    if change is not None:
        change(model)
    return write_checkpoint(directory / "c.mdl", section, state_of(model), fit=fit)


def signs_of(release):
    """What a release has of a chat model."""
    settings = json.loads((release / "generation_config.json").read_text())
    assert {key: settings[key] for key in SAMPLING if key in settings} in ({}, SAMPLING)
    return {name for name in SIGNS if (release / name).exists() or name in settings}


# ---- which models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_the_chat_phases_of_the_catalog_and_no_others_are_instruction_tuning(preset):
    found = yaml.safe_load(preset_yaml(preset))["trainer"]
    phases = [entry["trainer"] for entry in found] if isinstance(found, list) else [found]
    kinds = {"chat" in preset.name}
    assert {tunes_on_conversations({"trainer": phase}) for phase in phases} == kinds


@pytest.mark.parametrize(
    ("fit", "is_chat"),
    [
        (TUNING, True),
        ({**TUNING, "ckpt_path": None}, False),  # documents packed whole, from random weights
        ({**TUNING, "train_dataloader": {"data_dir": "data/train"}}, False),
        (None, False),
    ],
    ids=["tuning", "from_random_weights", "plain_rows", "unknown"],
)
@both_families
def test_a_checkpoint_of_instruction_tuning_becomes_a_chat_release(tmp_path, family, fit, is_chat):
    checkpoint = checkpoint_of(tmp_path, family, fit)
    report = convert_to_hf(checkpoint, tmp_path / "release")
    assert signs_of(tmp_path / "release") == (SIGNS if is_chat else set())
    assert any("--no-chat" in note for note in report.notes) == is_chat


def test_the_yaml_given_decides_and_an_option_decides_over_it(tmp_path):
    checkpoint = checkpoint_of(tmp_path, "jais", fit=None)
    section = jais_section(vocab_size=VOCABULARY)
    config = tmp_path / "chat.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"init": {"model": section}, "fit": TUNING}}))
    for name, words, expected in (
        ("by_yaml", ["--config", str(config)], SIGNS),
        ("not_by_option", ["--config", str(config), "--no-chat"], set()),
        ("by_option", ["--chat"], SIGNS),
        ("plain", [], set()),
    ):
        done = CliRunner().invoke(cli, ["to-hf", str(checkpoint), "--output", str(tmp_path / name), *words])
        assert done.exit_code == 0, done.output
        assert signs_of(tmp_path / name) == expected


# ---- the files -----------------------------------------------------------------------------------------------------


@both_families
def test_transformers_finds_the_template_and_the_sampling(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    tokenizer = write_tokenizer(family, tmp_path / "tokenizer")
    convert_to_hf(checkpoint_of(tmp_path, family), tmp_path / "release", tokenizer=tokenizer)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "release")
    assert loaded.chat_template == chat_template()
    text = loaded.apply_chat_template(
        [{"role": "user", "content": "من أنت؟"}], tokenize=False, add_generation_prompt=True
    )
    assert text == prompt("ar", "من أنت؟")
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "release")
    assert {key: getattr(settings, key) for key in SAMPLING} == SAMPLING
    assert settings.eos_token_id == loaded.eos_token_id == loaded.convert_tokens_to_ids(EOS)
    assert not settings.stop_strings


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "chat_template.json"])
def test_the_familys_template_takes_the_place_of_the_tokenizers_own(tmp_path, place):
    tokenizer = write_tokenizer("jais", tmp_path / "tokenizer")
    own = "{{ 'another' }}"
    if place.endswith(".json"):
        path = tokenizer / place
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, "chat_template": own}))
    else:
        (tokenizer / place).write_text(own)
    checkpoint = checkpoint_of(tmp_path, "jais")
    report = convert_to_hf(checkpoint, tmp_path / "release", tokenizer=tokenizer)
    assert any("takes the place of the tokenizer's own" in note for note in report.notes)
    texts = [path for path in (tmp_path / "release").iterdir() if path.suffix != ".safetensors"]
    assert not [path.name for path in texts if own in path.read_text(encoding="utf-8")]
    assert (tmp_path / "release" / "chat_template.jinja").read_text(encoding="utf-8") == chat_template()
    plain = convert_to_hf(checkpoint, tmp_path / "plain", tokenizer=tokenizer, chat=False)
    assert (tmp_path / "plain" / place).read_bytes() == (tokenizer / place).read_bytes()
    assert not [note for note in plain.notes if "template" in note]


def test_a_tokenizer_without_an_end_of_text_is_refused_and_leaves_nothing(tmp_path):
    tokenizer = write_tokenizer("jais", tmp_path / "tokenizer")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = json.loads((tokenizer / name).read_text())
        del content["eos_token"]
        (tokenizer / name).write_text(json.dumps(content))
    checkpoint = checkpoint_of(tmp_path, "jais")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: declares no eos_token"):
        convert_to_hf(checkpoint, tmp_path / "release", tokenizer=tokenizer)
    assert listing(tmp_path) == ["c.mdl", "tokenizer"]
    convert_to_hf(checkpoint, tmp_path / "release", tokenizer=tokenizer, chat=False)


# ---- the way back --------------------------------------------------------------------------------------------------


@both_families
def test_a_chat_release_verifies_and_comes_back_as_one(tmp_path, family):
    tokenizer = write_tokenizer(family, tmp_path / "tokenizer")
    checkpoint, release = checkpoint_of(tmp_path, family), tmp_path / "release"
    convert_to_hf(checkpoint, release, tokenizer=tokenizer)
    convert_to_cerebras(release, tmp_path / "back.mdl")
    for words in ([checkpoint, release], [tmp_path / "back.mdl", release], [release]):
        done = CliRunner().invoke(cli, ["verify", *map(str, words)])
        assert done.exit_code == 0, done.output
    fit = yaml.safe_load((tmp_path / "back.yaml").read_text())["trainer"]["fit"]
    assert fit["train_dataloader"]["data_dir"] == "data/chat/train"
    assert fit["train_dataloader"]["use_vsl"] and fit["val_dataloader"]["use_vsl"]
    assert "cerebras-jais data chat --output data/chat" in (tmp_path / "back.yaml").read_text()
    convert_to_hf(tmp_path / "back.mdl", tmp_path / "again", tokenizer=release)
    assert listing(tmp_path / "again") == listing(release)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (release / name).read_bytes()


def test_a_chat_template_in_an_old_place_is_one_too(tmp_path):
    tokenizer = write_tokenizer("jais", tmp_path / "tokenizer")
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ 'a' }}"}))
    convert_to_hf(checkpoint_of(tmp_path, "jais", fit=None), tmp_path / "release", tokenizer=tokenizer)
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    assert tunes_on_conversations(yaml.safe_load((tmp_path / "back.yaml").read_text()))


# ---- the card's quick start ----------------------------------------------------------------------------------------


def answers_briefly(eos):
    """A change of a model that makes EOS its most likely token everywhere: an answer has the least length asked for."""

    def change(model):
        with torch.no_grad():
            model.model.embedding_layer.word_embeddings.weight[:, 0] = 30.0
            model.model.lm_head.weight[:, 0] = 0.0
            model.model.lm_head.weight[eos, 0] = 30.0

    return change


# What transformers 5 says, and nothing in a release can change. The quick start asks `batch_decode` for a cleaning that
# transformers leaves out for BPE now. It loads the tokenizer without trust_remote_code, where transformers 5 reads
# config.json first, asks whether to run the code that it names, and goes on without it.
OF_TRANSFORMERS = (
    "[transformers] Ignoring clean_up_tokenization_spaces=True for BPE tokenizer",
    "[transformers] You are using a model of type `jais` to instantiate a model of type ``",
)
QUESTION = "Do you wish to run the custom code? [y/N] "


@pytest.mark.slow
@both_families
def test_the_quick_start_of_the_card_runs_unchanged_and_warns_of_nothing(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    eos = TOKENIZERS[family]().token_to_id(EOS)
    sizes = {"share_embedding_weights": False, "max_position_embeddings": 2048}
    checkpoint = checkpoint_of(tmp_path, family, change=answers_briefly(eos), **sizes)
    convert_to_hf(checkpoint, tmp_path / "release", tokenizer=write_tokenizer(family, tmp_path / "tokenizer"))
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-W", "ignore::ResourceWarning", "-c", quick_start(tmp_path / "release")],
        cwd=tmp_path,
        env={
            **environment,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
        },
        input="n\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "### Instruction" not in done.stdout
    assert (QUESTION in done.stdout) == (family == "jais" and transformers.__version__ >= "5")
    assert [line for line in done.stderr.splitlines() if not line.startswith(OF_TRANSFORMERS)] == []
