"""`generate` and `score` take a release: the model that transformers computes, with the release's tokenizer.

Contract: a release gives the words and the scores of the checkpoint it was made of, its logits are those of
transformers, none of its code is run, and what cannot be read is refused in one line with a remedy.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from cerebras_jais.cli import cli
from cerebras_jais.data.documents import read_documents, sample_corpus_path, split_held_out
from cerebras_jais.data.pipeline import held_out_documents
from cerebras_jais.data.tokenizer import save_tokenizer, train_tokenizer
from cerebras_jais.errors import UserError
from cerebras_jais.model.load import load_model
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.load import load_release
from tests import tolerances
from tests.checkpoint_convert.examples import VARIANTS, random_model, state_of, write_checkpoint

pytestmark = pytest.mark.slow

CHOSEN = ["jais-12-heads", "jais-20-heads-untied", "llama-20-heads-tied", "llama-40-heads-grouped", "llama-biases"]
WORDS = ["--prompt", "الشمس", "--max-new-tokens", "5"]


@pytest.fixture
def released(tmp_path):
    """A tokenizer, a checkpoint and the release of it, in a folder."""
    tokenizer = train_tokenizer(list(read_documents(sample_corpus_path())), 300)
    save_tokenizer(tokenizer, tmp_path / "tokenizer", 24)
    section = {**VARIANTS["jais-12-heads"], "vocab_size": 300}
    write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(tmp_path / "c.mdl", tmp_path / "release", tokenizer=tmp_path / "tokenizer")
    return tmp_path


def said(*words):
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert result.exception is None, result.exception
    return result.output


def refusal(*words):
    with pytest.raises(UserError) as refused:
        CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    return str(refused.value)


@pytest.mark.parametrize("variant", CHOSEN)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_release_is_the_model_of_its_checkpoint_bit_for_bit(tmp_path, variant, dtype):
    section = VARIANTS[variant]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section), getattr(torch, dtype)))
    convert_to_hf(checkpoint, tmp_path / "release")
    ours, theirs = load_model(checkpoint).state_dict(), load_release(tmp_path / "release").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for rounded in (
        load_model(checkpoint, dtype=torch.bfloat16).state_dict(),
        load_release(tmp_path / "release", dtype=torch.bfloat16).state_dict(),
    ):
        wanted = {name: value if name.endswith("slopes") else value.bfloat16() for name, value in ours.items()}
        assert all(torch.equal(rounded[name], wanted[name]) for name in ours)
        assert {name: value.dtype for name, value in rounded.items()} == {n: v.dtype for n, v in wanted.items()}


@pytest.mark.parametrize("variant", ["llama-20-heads-tied", "llama-40-heads-grouped"])
def test_a_release_of_transformers_has_its_logits(tmp_path, variant):
    transformers = pytest.importorskip("transformers")
    section = VARIANTS[variant]
    convert_to_hf(write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section))), tmp_path / "made")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    model.save_pretrained(tmp_path / "saved")  # by other hands: no manifest, the head once, no section of ours
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config.pop("cerebras")
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        difference = (load_release(tmp_path / "saved").logits(ids) - model(ids).logits).abs().max().item()
    assert difference < tolerances.RELEASE_LOGITS


def test_generate_continues_from_a_release_as_from_its_checkpoint(released):
    of_checkpoint = said("generate", released / "c.mdl", "--tokenizer", released / "tokenizer", *WORDS)
    assert said("generate", released / "release", *WORDS) == of_checkpoint


def test_score_of_a_release_is_that_of_its_checkpoint(released):
    (released / "t.jsonl").write_text('{"text": "One short text.", "language": "en"}\n')
    text = ["--text", released / "t.jsonl", "--json"]
    of_checkpoint = said("score", released / "c.mdl", "--tokenizer", released / "tokenizer", *text)
    assert json.loads(said("score", released / "release", *text)) == json.loads(of_checkpoint)


def test_score_of_packed_data_is_that_of_the_documents_held_out_and_of_no_others(released):
    documents = list(read_documents(sample_corpus_path()))
    pack = ["--tokenizer", released / "tokenizer", "--max-sequence-length", 24, "--output", released / "data"]
    said("data", "pack", *pack)
    held_out = released / "held_out.jsonl"
    lines = [{"text": d.text, "language": d.language} for d in split_held_out(documents, 10)[1]]
    held_out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    model = ["score", released / "release", "--json"]
    of_data = json.loads(said(*model, "--data", released / "data"))
    assert of_data == json.loads(said(*model, "--text", held_out))
    assert sum(score["documents"] for score in of_data.values()) == len(lines) < len(documents)
    said("data", "pack", *pack[:-1], released / "whole", "--held-out", 0)
    assert "no document is known to be held out" in refusal(*model, "--data", released / "whole")
    with pytest.raises(FileNotFoundError):  # the command line names it, as every file that is not there
        held_out_documents(released / "none")


def test_score_asks_for_what_it_scores(released):
    both = ["--data", released / "data", "--text", released / "t.jsonl"]
    for words in ([], both):
        assert "give exactly one of --data and --text" in refusal("score", released / "release", *words)


def test_the_code_of_a_release_is_not_run(released):
    (released / "release" / "modeling_jais.py").write_text("raise SystemExit('it was run')\n")
    assert said("generate", released / "release", *WORDS)


def test_weights_in_pickle_files_are_read_where_that_is_allowed(released):
    release = released / "release"
    (shard,) = release.glob("*.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in load_file(shard).items()}
    expected = said("generate", release, *WORDS)
    torch.save(tensors, release / "pytorch_model.bin")
    for name in (shard.name, "model.safetensors.index.json"):
        (release / name).unlink()
    assert "--allow-pickle" in refusal("generate", release, *WORDS)
    assert said("generate", release, "--allow-pickle", *WORDS) == expected


def test_what_is_missing_is_named_with_its_option(released):
    assert "--tokenizer" in refusal("generate", released / "c.mdl", *WORDS)
    (released / "release" / "tokenizer.json").unlink()
    assert "release: has no tokenizer.json; give the folder of one with --tokenizer" in refusal(
        "score", released / "release"
    )
    line = refusal(
        "generate",
        *(released / "release", "--tokenizer", released / "tokenizer", "--config", released / "x.yaml", *WORDS),
    )
    assert "leave --config out" in line


def damaged(release, change):
    (shard,) = release.glob("*.safetensors")
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})


def test_a_damaged_release_is_refused_by_the_name_of_its_tensor(released):
    release = released / "release"
    shutil.copytree(release, released / "nan")
    damaged(released / "nan", lambda t: t["transformer.h.1.ln_1.bias"].fill(np.nan))
    assert "transformer.h.1.ln_1.bias holds NaN" in refusal("generate", released / "nan", *WORDS)
    damaged(release, lambda t: t["lm_head.weight"].__setitem__((0, 0), 7.0))
    assert "lm_head.weight differs from the embedding" in refusal("generate", release, *WORDS)


def test_no_message_sends_to_a_file_that_a_release_does_not_have(released):
    with pytest.raises(UserError, match=r"`checkpoint-convert to-cerebras` makes a \.mdl"):
        load_model(released / "release")


def test_rounded_weights_are_scored_beside_float32(released):
    (released / "text").mkdir()
    (released / "text" / "en.txt").write_text("The sun is bright today.\n", encoding="utf-8")
    found = json.loads(
        said("score", released / "release", "--text", released / "text", "--weights", "bfloat16", "--json")
    )
    plain = json.loads(said("score", released / "release", "--text", released / "text", "--json"))
    for language, score in plain.items():
        rounded = found[language].pop("bits_per_byte_bfloat16")
        assert found[language] == score
        assert rounded == pytest.approx(score["bits_per_byte"], rel=0.02)
        assert rounded != score["bits_per_byte"]
    table = said("score", released / "release", "--text", released / "text", "--weights", "bfloat16")
    assert "bfloat16    more" in table
