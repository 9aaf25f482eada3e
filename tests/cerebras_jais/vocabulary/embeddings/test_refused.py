"""What does not fit together is refused in one line, and leaves nothing.

Contract: for each mistake the line names the file or option and what to do; the folder holds afterwards what it held
before.
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import cerebras_jais.cli
from cerebras_jais.errors import UserError
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.cerebras_jais.vocabulary.embeddings.examples import (
    run_transfer,
    size_of,
    write_base_tokenizer,
    write_extended,
    write_pair,
)
from tests.checkpoint_convert.examples import listing, random_model, state_of, write_checkpoint


@dataclass
class Arguments:
    """Of `transfer`, to be made wrong."""

    base: Path
    donor: Path
    tokenizer: Path
    output: Path
    options: dict


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def arguments(pair, tmp_path):
    return Arguments(pair.base, pair.donor, pair.extended, tmp_path / "output" / "out.mdl", {})


def _no_tokenizer(arguments, folder):
    arguments.base = Path(shutil.copy(arguments.base, folder / "alone.mdl"))


def _other_tokenizer(arguments, folder):
    arguments.options["base_tokenizer"] = arguments.tokenizer


def _nothing_shared(arguments, folder):
    content = json.loads((arguments.donor.parent / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] = {
        piece if number < 10 else f"\u0120{number}": number for piece, number in content["model"]["vocab"].items()
    }
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    arguments.options["donor_tokenizer"] = folder


def _not_extended(arguments, folder):
    arguments.tokenizer = arguments.base.parent / "tokenizer"


def _not_of_the_base(arguments, folder):
    arguments.tokenizer = arguments.donor.parent / "tokenizer"


def _too_few_rows(arguments, folder):
    arguments.options["vocab_size"] = size_of(arguments.tokenizer) - 1


def _other_config(arguments, folder):
    section = llama_section(vocab_size=size_of(arguments.tokenizer), rope_theta=500000.0)
    (folder / "run.yaml").write_text(json.dumps({"trainer": {"init": {"model": section}}}))
    arguments.options["config"] = folder / "run.yaml"


def _other_layers(arguments, folder):
    section = llama_section(vocab_size=size_of(arguments.tokenizer), num_hidden_layers=3)
    (folder / "run.yaml").write_text(json.dumps({"trainer": {"init": {"model": section}}}))
    arguments.options["config"] = folder / "run.yaml"


def _not_finite(arguments, folder):
    section = jais_section(vocab_size=size_of(arguments.donor.parent / "tokenizer"))
    state = state_of(random_model(section))
    for name, tensor in state.items():
        if "word_embeddings" in name or "lm_head" in name:
            state[name] = np.full_like(tensor, np.inf)
    arguments.options["donor_tokenizer"] = arguments.donor.parent / "tokenizer"
    arguments.donor = write_checkpoint(folder / "donor.mdl", section, state)


def _not_a_checkpoint(arguments, folder):
    arguments.output = arguments.output.with_name("release")


def _taken(arguments, folder):
    arguments.output = arguments.base


def _no_folder(arguments, folder):
    arguments.output = folder / "nowhere" / "out.mdl"


MISTAKES = {
    _no_tokenizer: r"alone\.mdl: has no tokenizer\.json beside it; .* --base-tokenizer",
    _other_tokenizer: r"extended/tokenizer\.json: has \d+ tokens, but .* give the model.s own .* --base-tokenizer",
    _nothing_shared: r"tokenizer\.json: shares \d+ tokens with the donor's tokenizer, at least 20 are needed; give a",
    _not_extended: r"tokenizer\.json: has no token beyond those of .*; give the extended tokenizer",
    _not_of_the_base: r"tokenizer\.json: the token .* has the id .*, but \d+ in .*; give a tokenizer that keeps",
    _too_few_rows: r"--vocab-size: vocab_size is \d+, but .* has \d+ tokens; give at least as many rows",
    _other_config: r"run\.yaml: rope_theta is 500000\.0, but 10000\.0 in the base, .*; give the config",
    _other_layers: r"run\.yaml: num_hidden_layers is 3, but 2 in the base",
    _not_finite: r"the embedding of a shared token is not finite in .*donor\.mdl.*; give other weights",
    _not_a_checkpoint: r"release: the output is a Cerebras checkpoint; give a name that ends in \.mdl",
    _taken: r"model\.mdl: already exists",
    _no_folder: r"the directory .*nowhere does not exist; create it first",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_a_mistake_is_one_line_and_leaves_nothing(arguments, tmp_path, mistake):
    (tmp_path / "made").mkdir()
    (tmp_path / "output").mkdir()
    mistake(arguments, tmp_path / "made")
    before = listing(arguments.base.parent)
    with pytest.raises(UserError) as refused:
        run_transfer(arguments.base, arguments.donor, arguments.tokenizer, arguments.output, **arguments.options)
    said = str(refused.value)
    assert re.search(MISTAKES[mistake], said), said
    assert "\n" not in said
    assert listing(tmp_path / "output") == []
    assert listing(arguments.base.parent) == before


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(arguments, tmp_path):
    larger = write_base_tokenizer(tmp_path / "larger", 700)
    (tmp_path / "output").mkdir()
    arguments.options["base_tokenizer"] = larger
    arguments.tokenizer = write_extended(tmp_path / "extended", larger, ["سلام"])
    with pytest.raises(UserError, match=r"larger/tokenizer\.json: has 700 tokens, but .* has 600 rows of embeddings"):
        run_transfer(arguments.base, arguments.donor, arguments.tokenizer, arguments.output, **arguments.options)
    assert listing(tmp_path / "output") == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--base": "nowhere.mdl"}, "'--base': Path 'nowhere.mdl' does not exist"),
        (
            {"--vocab-size": "800", "--config": "tiny/adapted"},
            "--config has the number of rows; leave --vocab-size out",
        ),
        ({"--vocab-size": "0"}, "must be a whole number from 1 to"),
        ({"--config": "tiny/adapted"}, "tiny/adapted: hidden_size is 192, but 48 in the base"),
        ({"--config": "nowhere"}, "nowhere"),
    ],
    ids=["base", "both", "none", "other-model", "no-config"],
)
def test_options_that_do_not_fit_are_refused(arguments, tmp_path, monkeypatch, capsys, changes, said):
    paths = {"--base": arguments.base, "--donor": arguments.donor, "--tokenizer": arguments.tokenizer}
    words = {**paths, "--output": tmp_path / "out.mdl", **changes}
    line = [str(word) for pair in words.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["cerebras-jais", "vocab", "transfer", *line])
    with pytest.raises(SystemExit) as stopped:
        cerebras_jais.cli.main()
    assert stopped.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert listing(tmp_path) == []
