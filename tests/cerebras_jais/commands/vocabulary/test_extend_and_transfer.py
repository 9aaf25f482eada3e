"""`cerebras-jais vocab extend-and-transfer`.

Contract: it gives, byte for byte, what `vocab extend` and `vocab transfer` give one after the other, and a checkpoint
from which the YAML of stage 1 starts; run again after an interruption it keeps the tokenizer that is finished, and
gives the same bytes; a dry run leaves nothing; wrong input is one line, before anything is written.
"""

import json
import shutil

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models

import cerebras_jais.vocabulary.embeddings.transfer as transferring
from cerebras_jais.cli import cli
from cerebras_jais.errors import UserError
from tests.cerebras_jais.model.examples import llama_section
from tests.cerebras_jais.train.examples import trainer_section, write_data, write_yaml
from tests.cerebras_jais.vocabulary.embeddings.examples import size_of, write_pair
from tests.checkpoint_convert.examples import listing

ROOM = 100
ADDED = {"extension.json"}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


def ran(*words):
    return CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)


def words_of(pair, output, *others, add=ROOM):
    models = ["--base", pair.base, "--donor", pair.donor]
    return ["vocab", "extend-and-transfer", *models, "--add", add, "--output", output, *others]


def said(*words):
    done = ran(*words)
    assert done.exception is None, done.exception
    return done.stdout


def refused(*words):
    done = ran(*words)
    assert isinstance(done.exception, UserError), done.exception
    assert "\n" not in str(done.exception)
    return str(done.exception)


def contents(folder, besides=frozenset()):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in besides
    }


def test_it_gives_what_the_two_verbs_give(pair, tmp_path):
    (tmp_path / "apart").mkdir()
    (tmp_path / "at-once").mkdir()
    folders = [path.parent / "tokenizer" for path in (pair.base, pair.donor)]
    tokenizer = tmp_path / "apart" / "tokenizer"
    said("vocab", "extend", "--base", folders[0], "--donor", folders[1], "--add", ROOM, "--output", tokenizer)
    output = tmp_path / "apart" / "extended.mdl"
    models = ["--base", pair.base, "--donor", pair.donor]
    said("vocab", "transfer", *models, "--tokenizer", tokenizer, "--output", output)
    shown = said(*words_of(pair, tmp_path / "at-once" / "extended.mdl"))
    assert f"{ROOM} of {ROOM}" in shown
    assert f"{ROOM} new tokens" in shown
    assert contents(tmp_path / "at-once", ADDED) == contents(tmp_path / "apart")


def test_stage_1_starts_from_it(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = size_of(pair.base.parent / "tokenizer") + ROOM + 4
    frozen = [r"transformer_decoder\.", r"ln_f\."]
    section = llama_section(name="jais_adapted", vocab_size=rows, frozen_parameters=frozen)
    write_data(tmp_path / "train", length=24, vocabulary=rows)
    stage = trainer_section(
        tmp_path,
        section,
        loop={"max_steps": 13},
        checkpoint={"steps": 13},
        callbacks=[{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}],
    )
    (tmp_path / "model").mkdir()
    stage["fit"] = {
        "train_dataloader": stage["fit"]["train_dataloader"],
        "ckpt_path": str(tmp_path / "model" / "extended.mdl"),
    }
    path = write_yaml(tmp_path / "stage-1.yaml", stage)
    shown = said(*words_of(pair, tmp_path / "model" / "extended.mdl", "--config", path))
    assert "4 rows of no token" in shown
    checked = ran("config", "check", path, "--tokenizer", tmp_path / "model" / "tokenizer")
    assert not checked.return_value, checked.output
    assert "extended.mdl" in said("fit", path, "--dry-run")
    said("fit", path)


@pytest.mark.parametrize("learned", [False, True])
def test_an_interrupted_run_keeps_the_tokenizer_and_gives_the_same_bytes(pair, tmp_path, monkeypatch, learned):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    said(*words_of(pair, tmp_path / "whole" / "extended.mdl"))
    words = words_of(pair, tmp_path / "broken" / "extended.mdl")
    with monkeypatch.context() as patch:

        def interrupted(*arguments, **options):
            raise KeyboardInterrupt

        patch.setattr(*((transferring.TransferTarget, "sink") if learned else (transferring, "fit")), interrupted)
        assert ran(*words).exception is not None
    before = contents(tmp_path / "broken" / "tokenizer")
    assert before
    assert "made before, and kept" in said(*words)
    assert contents(tmp_path / "broken" / "tokenizer") == before
    assert contents(tmp_path / "broken", ADDED) == contents(tmp_path / "whole", ADDED)


def test_a_dry_run_leaves_nothing_and_json_is_all_of_the_output(pair, tmp_path):
    assert "projection" in said(*words_of(pair, tmp_path / "extended.mdl", "--dry-run"))
    assert listing(tmp_path) == []
    found = json.loads(said(*words_of(pair, tmp_path / "extended.mdl", "--json")))
    assert found["tokenizer"] == str(tmp_path / "tokenizer")
    assert found["new_tokens"] == ROOM


def test_wrong_input_is_refused_before_anything_is_written(pair, tmp_path):
    output, taken = tmp_path / "out" / "extended.mdl", tmp_path / "taken"
    output.parent.mkdir()
    taken.mkdir()
    (taken / "file").write_text("")
    entries = size_of(pair.base.parent / "tokenizer")
    assert "give a name that ends in .mdl" in refused(*words_of(pair, output.parent / "extended"))
    assert "the directory" in refused(*words_of(pair, tmp_path / "nowhere" / "extended.mdl"))
    assert "choose another --tokenizer" in refused(*words_of(pair, output, "--tokenizer", taken))
    few = refused(*words_of(pair, output, "--vocab-size", entries + ROOM - 1))
    assert f"the extended tokenizer has {entries + ROOM:,} tokens; give at least as many rows" in few
    assert "tiny/adapted: hidden_size is 192, but 48 in the base" in refused(
        *words_of(pair, output, "--config", "tiny/adapted")
    )
    assert "no such file" in refused(*words_of(pair, output, "--corpus", tmp_path / "none.txt"))
    assert "give a file" in refused(*words_of(pair, output, "--corpus", "-"))
    assert "no character has a Unicode name" in refused(*words_of(pair, output, "--script", "klingon"))
    assert "no token of the script cyrillic" in refused(*words_of(pair, output, "--script", "cyrillic"))
    assert "the donor has" in refused(*words_of(pair, output, add=100_000))
    alone = shutil.copy(pair.base, tmp_path / "alone.mdl")
    assert "has no tokenizer.json beside it" in refused(*words_of(pair, output, "--base", alone))
    larger = "has 700 tokens, but"
    other = ["--base-tokenizer", pair.donor.parent / "tokenizer"]
    assert larger in refused(*words_of(pair, output, *other))
    unigram = tmp_path / "unigram"
    unigram.mkdir()
    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, True)).save(str(unigram / "tokenizer.json"))
    for option in ("--base-tokenizer", "--donor-tokenizer"):
        assert f"{unigram / 'tokenizer.json'}: is a Unigram" in refused(*words_of(pair, output, option, unigram))
    content = json.loads((pair.donor.parent / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = content["model"]["vocab"].items()
    own = {piece if number < 10 else f"\u0120{number}": number for piece, number in pieces}
    content["model"] |= {"vocab": own, "merges": []}
    (unigram / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert "tokens with the donor's tokenizer, at least 20 are needed" in refused(
        *words_of(pair, output, "--donor-tokenizer", unigram)
    )
    assert listing(output.parent) == []


def test_a_tokenizer_made_otherwise_is_not_taken_for_its_own(pair, tmp_path):
    said(*words_of(pair, tmp_path / "extended.mdl"))
    words = words_of(pair, tmp_path / "other.mdl", add=ROOM + 1)
    assert "made from other input or with other options; choose another --tokenizer" in refused(*words)
    said(*words, "--tokenizer", tmp_path / "other")
