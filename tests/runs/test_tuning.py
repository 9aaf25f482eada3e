"""The tuning runs go through with small settings, on releases of both families.

Contract: each ends with less loss on what it was given than it began with, or more right answers; LoRA's merged release
becomes a checkpoint with the same tensors and logits, on which `fit` trains; what is saved loads again.
"""

import contextlib
import importlib.util
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from cerebras_jais.cli import cli as cerebras_jais_cli
from checkpoint_convert.cli import cli as checkpoint_convert_cli
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.load import load_release
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import jais_section, llama_section, state_of, write_checkpoint

MISSING = [name for name in ("trl", "peft") if importlib.util.find_spec(name) is None]
# The module is collected everywhere: skipped as a whole, it would count as a skip in a run of any mark.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]

RUNS = Path(__file__).parents[2] / "runs"
SECTIONS = {"jais": jais_section, "llama": llama_section}


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    """A chat release of each family with the weights that training begins with, and room for a conversation."""
    from cerebras_jais.model.config import DecoderConfig
    from cerebras_jais.model.decoder import LanguageModel

    found = {}
    for family, section_of in SECTIONS.items():
        folder = tmp_path_factory.mktemp(family)
        section = section_of(vocab_size=VOCABULARY, max_position_embeddings=1024)
        torch.manual_seed(0)
        model = LanguageModel(DecoderConfig.from_section(section))
        write_checkpoint(folder / "c.mdl", section, state_of(model))
        tokenizer = write_tokenizer(family, folder / "tokenizer")
        convert_to_hf(folder / "c.mdl", folder / "release", tokenizer=tokenizer, chat=True)
        found[family] = folder / "release"
    return found


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """Runs a script of `runs` in this process, where its libraries are imported once; what it prints."""

    def call(name, release, *words):
        output = tmp_path / "output"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", str(release), "--output", str(output), *map(str, words)])
        monkeypatch.syspath_prepend(str(RUNS))
        runpy.run_path(str(RUNS / f"{name}.py"), run_name="__main__")
        return output, capfd.readouterr().out

    return call


def table(printed):
    """The rows of the table of a run: name -> (before, after)."""
    rows = re.findall(r"^(.{26}) *(\d+\.\d{3}) +(\d+\.\d{3})$", printed, flags=re.MULTILINE)
    return {name.strip(): (float(before), float(after)) for name, before, after in rows}


def run_here(*words, folder):
    """A command of the project in this process, which has its libraries; prints what it prints."""
    program = {"cerebras-jais": cerebras_jais_cli, "checkpoint-convert": checkpoint_convert_cli}[words[0]]
    with contextlib.chdir(folder):
        done = CliRunner().invoke(program, [str(word) for word in words[1:]])
    assert done.exit_code == 0, done.output
    print(done.output)


@pytest.mark.parametrize("family", SECTIONS)
def test_lora_comes_back_to_cerebras_and_trains_on(run, releases, family, monkeypatch):
    monkeypatch.syspath_prepend(str(RUNS))
    monkeypatch.setattr(importlib.import_module("tuning"), "command", run_here)
    output, printed = run("lora", releases[family], "--steps", 4)
    before, after = table(printed)["held out"]
    assert after < before
    assert re.search(r"(\d+) of \1 tensors identical", printed)
    assert re.search(r"the same most likely token at (\d+) of \1 positions", printed)
    assert (output / "adapters" / "adapter_model.safetensors").is_file()
    assert (output / "model_dir" / "checkpoint_3.mdl").is_file()
    tuned, base = load_release(output / "release").state_dict(), load_release(releases[family]).state_dict()
    moved = {name for name, value in tuned.items() if not torch.equal(value, base[name])}
    assert any("proj_q" in name for name in moved) and any("ffn" in name for name in moved)
    assert not any("embedding" in name or "lm_head" in name for name in moved)


def test_sentiment_is_learnt(run, releases):
    output, printed = run("sentiment", releases["jais"], "--steps", 40)
    before, after = table(printed)["learnt from"]
    assert after > before
    assert re.search(r"^المكان نظيف والطعام لذيذ\.  (positive|negative)$", printed, flags=re.MULTILINE)
    assert (output / "classifier" / "model.safetensors").is_file()


def test_summaries_are_learnt_in_both_languages_and_the_release_still_talks(run, releases):
    from transformers import AutoTokenizer

    output, printed = run("summaries", releases["llama"], "--steps", 4)
    losses = table(printed)
    assert losses.keys() == {f"{source} to {target}" for source in ("ar", "en") for target in ("ar", "en")}
    assert all(after < before for before, after in losses.values())
    assert load_release(output / "release").config.vocab_size == VOCABULARY
    tokenizer = AutoTokenizer.from_pretrained(output / "release")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(releases["llama"]).chat_template


@pytest.mark.parametrize("name", ["lora", "summaries"])
def test_a_release_with_too_few_positions_is_refused_in_one_line(run, releases, tmp_path, name):
    release = tmp_path / "release"
    shutil.copytree(releases["llama"], release)
    config = json.loads((release / "config.json").read_text(encoding="utf-8"))
    (release / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"release: has 64 positions, and \d+ of \d+ examples have more tokens, up to"):
        run(name, release)
    assert not (tmp_path / "output").exists()
