"""The adaptation in miniature goes through on the bundled text, and its comparison is fair.

Contract: stage 1 changes the embedding and the head alone; base rows are the base's in what stage 1 starts from, for
every method, and the methods differ in new rows alone; every method sees as many tokens, and without an extension as
many tokens or as much text; the table has every row; the release writes text as plain LlamaForCausalLM.
"""

import contextlib
import importlib
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cerebras_jais.checkpoint.reader import open_checkpoint
from cerebras_jais.cli import cli as cerebras_jais_cli
from checkpoint_convert.cli import cli as checkpoint_convert_cli

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.slow

RUNS = Path(__file__).parents[2] / "runs"
METHODS = ("projection", "unscaled", "pieces", "mean", "random")
STEPS = 3  # of each stage
TOKENS = STEPS * 16 * 128


def run_here(*words, output):
    """A command of the project in this process, which has its libraries; its standard output."""
    program = {"cerebras-jais": cerebras_jais_cli, "checkpoint-convert": checkpoint_convert_cli}[words[0]]
    with contextlib.chdir(output):
        done = CliRunner().invoke(program, list(words[1:]))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """The folder of a run with a tiny budget, and what it printed."""
    output = tmp_path_factory.mktemp("adapt") / "output"
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(RUNS))
        patch.setattr(importlib.import_module("demo"), "command", run_here)
        patch.setattr(sys, "argv", ["adapt.py", "--output", str(output), "--steps-scale", "0.02"])
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        runpy.run_path(str(RUNS / "adapt.py"), run_name="__main__")
    return output, "\n".join(printed)


def tensors(path):
    """Name -> array of a checkpoint's model."""
    with open_checkpoint(path) as checkpoint:
        tensors = checkpoint.tensors.items()
        return {key.removeprefix("model."): tensor.read() for key, tensor in tensors if key.startswith("model.")}


def rows(printed):
    """Name -> cells of the table."""
    cells = ([cell.strip() for cell in line.strip("| ").split("|")] for line in printed.splitlines() if line[:1] == "|")
    return {name: rest for name, *rest in cells}


def test_stage_1_leaves_the_backbone_as_it_was_and_trains_both_embeddings(adapted):
    output, _ = adapted
    before = tensors(output / "projection-1" / "extended.mdl")
    after = tensors(output / "projection-1" / "stage-1" / f"checkpoint_{STEPS}.mdl")
    changed = {name for name, value in after.items() if not np.array_equal(value, before[name])}
    assert changed == {"model.embedding_layer.word_embeddings.weight", "model.lm_head.weight"}
    later = tensors(output / "projection-1" / "stage-2" / f"checkpoint_{STEPS}.mdl")
    assert all(not np.array_equal(value, after[name]) for name, value in later.items())


def test_methods_differ_in_new_rows_alone(adapted):
    output, _ = adapted
    base = tensors(output / "base" / f"checkpoint_{STEPS}.mdl")
    entries = len(base["model.lm_head.weight"])
    starts = [tensors(output / f"{method}-1" / "extended.mdl") for method in METHODS]
    for name, value in base.items():
        for start in starts:
            np.testing.assert_array_equal(start[name][: len(value)], value)
            assert len(start[name]) > entries or start[name].shape == value.shape
    new = [start["model.lm_head.weight"][entries:] for start in starts]
    assert len({rows_of.tobytes() for rows_of in new}) == len(METHODS)


def test_the_table_has_every_row_and_equal_budgets(adapted):
    _, printed = adapted
    table = rows(printed)
    judged = {*METHODS, "no extension, as many tokens", "no extension, as much text"}
    assert table.keys() == {"new embeddings", "---", "base, before", "donor", *judged}
    budgets = {name: tuple(table[name][:2]) for name in judged}
    assert {budgets[name] for name in METHODS} == {(f"{2 * TOKENS:,}", budgets["mean"][1])}
    assert budgets["no extension, as many tokens"][0] == f"{2 * TOKENS:,}"
    text = {name: int(budget[1].split()[0]) for name, budget in budgets.items()}
    assert text["no extension, as many tokens"] < text["mean"]
    assert text["no extension, as much text"] == pytest.approx(text["mean"], rel=0.2)  # steps are whole
    for name in judged:
        assert all(float(cell) > 0 for cell in table[name][2:6])


def test_held_out_text_is_not_learned_from(adapted):
    output, _ = adapted
    lines = {name: (output / "texts" / f"{name}.jsonl").read_text().splitlines() for name in ("en", "ar", "held-out")}
    assert lines["held-out"]
    assert not set(lines["held-out"]) & {*lines["en"], *lines["ar"]}


def test_the_release_writes_text_as_a_plain_llama(adapted):
    output, printed = adapted
    assert re.search(r"^\nArabic sample \(projection\): كانت المدينة", printed, flags=re.MULTILINE)
    assert (output / "release" / "tokenizer.json").is_file()
    assert '"LlamaForCausalLM"' in (output / "release" / "config.json").read_text()


def test_an_output_that_exists_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RUNS))
    monkeypatch.setattr(sys, "argv", ["adapt.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        runpy.run_path(str(RUNS / "adapt.py"), run_name="__main__")
    assert "exists already; choose another --output" in capsys.readouterr().err
