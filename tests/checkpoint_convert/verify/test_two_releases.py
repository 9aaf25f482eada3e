"""`verify` and `diff` compare two releases: tensors, configs, and the files and the code of both.

Contract: a release is the same as a copy and as another release of its checkpoint; what differs is named with the
release that it is in, and an unlike tokenizer, which is no part of the model, is a note.
"""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from checkpoint_convert.cli import cli
from checkpoint_convert.convert import convert_to_hf
from tests.checkpoint_convert.examples import VARIANTS, random_model, state_of, write_checkpoint
from tests.checkpoint_convert.test_release import TOKENS, write_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(params=["jais-12-heads", "llama-20-heads-tied"])
def pair(request, tmp_path):
    """Two releases of one checkpoint, in one shard and in many, with one tokenizer."""
    section = VARIANTS[request.param]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    tokenizer = write_tokenizer(tmp_path / "tokenizer", TOKENS)
    convert_to_hf(checkpoint, tmp_path / "one", tokenizer=tokenizer)
    convert_to_hf(checkpoint, tmp_path / "other", tokenizer=tokenizer, max_shard_size=30_000)
    return tmp_path / "one", tmp_path / "other"


def run(*words):
    result = CliRunner().invoke(cli, list(map(str, words)))
    return result.exit_code, result.output


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["verify", "diff"])
def test_two_releases_of_a_checkpoint_are_the_same_and_both_manifests_are_checked(pair, verb):
    status, said = run(verb, *pair)
    assert status == 0
    assert [line for line in said.splitlines() if "manifest" in line] == [
        f"manifest {release}/manifest.json: {count} digests match"
        for release in pair
        for count in [len(json.loads((release / "manifest.json").read_text())["tensors"])]
    ]
    assert run(verb, pair[0], pair[0])[0] == 0


@pytest.mark.parametrize("which", [0, 1])
def test_what_differs_is_named_with_its_release(pair, which):
    config = json.loads((pair[which] / "config.json").read_text())
    name = "transformer.ln_f.weight" if config["model_type"] == "jais" else "model.norm.weight"
    index = json.loads((pair[which] / "model.safetensors.index.json").read_text())
    shard = pair[which] / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] = np.asarray(tensors[name] + 1)
    save_file(tensors, shard, metadata={"format": "pt"})
    config["layer_norm_epsilon" if config["model_type"] == "jais" else "rms_norm_eps"] = 0.5
    (pair[which] / "config.json").write_text(json.dumps(config))
    (pair[which] / "extra.py").write_text("print()\n")
    status, said = run("diff", *pair)
    assert status == 1
    assert f"differs from {pair[which]}/manifest.json" in said
    assert f"manifest {pair[1 - which]}/manifest.json: " in said
    assert "0.5" in said
    assert f"{pair[which]}/config.json: differs from manifest.json" in said
    assert f"{pair[which]}/extra.py: " in said
    assert f"{pair[1 - which]}/config.json" not in said


def test_an_unlike_tokenizer_is_a_note(pair, tmp_path):
    again = shutil.copytree(pair[0], tmp_path / "again")
    (again / "manifest.json").unlink()
    (again / "tokenizer.json").write_text((again / "tokenizer.json").read_text() + "\n")
    status, said = run("verify", pair[0], again)
    assert status == 0
    assert "note: the two tokenizers differ, in tokenizer.json; only the models are compared" in said
