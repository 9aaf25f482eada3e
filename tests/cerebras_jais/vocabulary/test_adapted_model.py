"""A model with a new language: extended, transferred, trained in two stages, released.

Contract: the commands of the documentation, one after the other, make a release that loads as a plain LlamaForCausalLM
with its tokenizer, and writes the Arabic that it was trained on; llama.cpp's own script makes a GGUF file of it that
writes the same.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import checkpoint_convert.cli
from cerebras_jais.cli import cli
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.cerebras_jais.train.examples import trainer_section, write_yaml
from tests.cerebras_jais.vocabulary.bases import arabic_donor, learned_pieces, write_llama
from tests.cerebras_jais.vocabulary.embeddings.examples import size_of
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint
from tests.checkpoint_convert.test_llamacpp import MISSING, open_gguf

pytestmark = pytest.mark.slow

SENTENCE = "العلم نور والجهل ظلام، ومن جد وجد ومن زرع حصد."
PROMPT, ROOM, LENGTH = "العلم نور", 300, 48
STEPS = {"stage-1": 30, "stage-2": 120}


def done(program, *words):
    result = CliRunner().invoke(program, [str(word) for word in words], standalone_mode=False)
    assert result.exception is None, result.exception
    assert not result.return_value, result.output


def stage(folder, name, section, start):
    """The YAML of one stage, which begins at a checkpoint with new states of the optimizer."""
    rates = {"initial_learning_rate": 0.01, "end_learning_rate": 0.001, "total_iters": STEPS[name]}
    trainer = trainer_section(
        folder,
        section,
        model_dir=str(folder / name),
        schedulers=[{"LinearLR": rates}],
        loop={"max_steps": STEPS[name]},
        checkpoint={"steps": STEPS[name]},
        callbacks=[{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}],
    )
    del trainer["fit"]["val_dataloader"]
    trainer["fit"]["ckpt_path"] = str(start)
    trainer["fit"]["train_dataloader"]["data_dir"] = str(folder / "data" / "train")
    return write_yaml(folder / f"{name}.yaml", trainer)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    tokenizers = {
        "base": write_llama(folder / "base" / "tokenizer", learned_pieces()),
        "donor": arabic_donor(folder / "donor" / "tokenizer"),
    }
    adapted = {"name": "jais_adapted", "num_heads": 4, "hidden_size": 64, "max_position_embeddings": LENGTH}
    for name, section in (
        ("base", llama_section(**adapted, vocab_size=size_of(tokenizers["base"]))),
        ("donor", jais_section(vocab_size=size_of(tokenizers["donor"]))),
    ):
        write_checkpoint(folder / name / "model.mdl", section, state_of(random_model(section)))
    section = llama_section(**adapted, vocab_size=size_of(tokenizers["base"]) + ROOM)
    (folder / "model").mkdir()
    extended, tokenizer = folder / "model" / "extended.mdl", folder / "model" / "tokenizer"
    frozen = {**section, "frozen_parameters": [r"transformer_decoder\.", r"ln_f\."]}
    first = stage(folder, "stage-1", frozen, extended)
    models = ["--base", folder / "base" / "model.mdl", "--donor", folder / "donor" / "model.mdl"]
    done(cli, "vocab", "extend-and-transfer", *models, "--add", ROOM, "--config", first, "--output", extended)
    lines = [json.dumps({"text": SENTENCE, "language": "ar"}, ensure_ascii=False)] * 64
    (folder / "arabic.jsonl").write_text("\n".join(lines), encoding="utf-8")
    packing = ["--tokenizer", tokenizer, "--max-sequence-length", LENGTH, "--held-out", 0, "--engine", "tokenizers"]
    done(cli, "data", "pack", "--text", folder / "arabic.jsonl", *packing, "--output", folder / "data")
    done(cli, "config", "check", first, "--tokenizer", tokenizer)
    done(cli, "fit", first)
    second = stage(folder, "stage-2", section, folder / "stage-1" / f"checkpoint_{STEPS['stage-1']}.mdl")
    done(cli, "fit", second)
    trained = folder / "stage-2" / f"checkpoint_{STEPS['stage-2']}.mdl"
    words = ["to-hf", trained, "--output", folder / "release", "--tokenizer", tokenizer]
    done(checkpoint_convert.cli.cli, *words)
    return folder / "release"


def by_transformers(release):
    """The ids of the prompt, and those that transformers writes after it, the most likely ones."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(release), AutoModelForCausalLM.from_pretrained(release)
    assert type(model).__name__ == "LlamaForCausalLM"
    prompt = tokenizer(PROMPT, add_special_tokens=False)["input_ids"]
    more = len(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]) - len(prompt)
    given = torch.tensor([prompt])
    ids = model.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=more, do_sample=False)
    return tokenizer, prompt, ids[0, len(prompt) :].tolist()


def test_the_release_writes_arabic_in_transformers(release):
    tokenizer, prompt, ids = by_transformers(release)
    assert tokenizer.decode([*prompt, *ids], skip_special_tokens=True) == SENTENCE
    before = len(json.loads((release / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]) - ROOM
    assert sum(number >= before for number in ids) > len(ids) / 3  # new tokens, behind the letters of the base


@pytest.mark.llamacpp
@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_llama_cpp_writes_what_transformers_writes(release, tmp_path):
    _, prompt, ids = by_transformers(release)
    script, output = Path(os.environ["LLAMA_CPP_SOURCE"]) / "convert_hf_to_gguf.py", tmp_path / "model.gguf"
    command = [sys.executable, str(script), str(release), "--outtype", "f32", "--outfile", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    model = open_gguf(output)
    assert model.tokenize(PROMPT.encode(), add_bos=False, special=False) == prompt
    assert [token for token, _ in zip(model.generate(prompt, temp=0.0), ids, strict=False)] == ids
    assert model.detokenize([*prompt, *ids]).decode().strip() == SENTENCE
