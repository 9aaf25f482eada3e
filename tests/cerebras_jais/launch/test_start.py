"""What a launch begins from is planned once, whether or not the start checkpoint is on this machine.

Contract: `config check`, `--dry-run` and the plan of both trainers name the same steps; where the start checkpoint is
not here, its step is taken from its name by the config's own `checkpoint_name`, else from the catalog, and the dry run
says so; training refuses to begin without it. LoadCheckpointStates is refused in every place where the Model Zoo could
not load a checkpoint with it, and taken in every place where it could.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.commands.config import check_file
from cerebras_jais.commands.config import config as config_command
from cerebras_jais.commands.fit import fit as fit_command
from cerebras_jais.config.callbacks import CHECKPOINT_STATES, named_states
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.errors import UserError
from cerebras_jais.launch.saved import wanted_states
from cerebras_jais.launch.start import plan_launch, remaining_phases
from tests.cerebras_jais.launch.broken import BROKEN, CONFIGS
from tests.cerebras_jais.train.examples import config_of, trainer_section, write_data

LARGE = CONFIGS / "jais-family-30b-8k" / "8k.yaml"
BEFORE, END = 189_929, 260_648  # its steps, as its comments say them


@pytest.fixture
def renamed(tmp_path, monkeypatch):
    """A function that writes 8k.yaml with other names of checkpoints, in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(checkpoint_name, ckpt_path):
        document = yaml.safe_load(LARGE.read_text(encoding="utf-8"))
        document["trainer"]["init"]["checkpoint"]["checkpoint_name"] = checkpoint_name
        document["trainer"]["fit"]["ckpt_path"] = ckpt_path
        path = tmp_path / "8k.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("name", "ckpt_path", "why"),
    [
        ("checkpoint_{step}.mdl", f"2k/checkpoint_{BEFORE}.mdl", "from its name"),
        ("ckpt_{step}.mdl", f"2k/ckpt_{BEFORE}.mdl", "from its name"),
        ("ckpt_{step}.mdl", f"2k/checkpoint_{BEFORE}.mdl", "from its name"),  # the run before named it so
        ("ckpt_{step}.mdl", "2k/last.mdl", "from the catalog: jais-family-30b-8k/8k begins there"),
    ],
)
def test_a_start_checkpoint_that_is_not_here_is_planned_by_its_name_or_the_catalog(renamed, name, ckpt_path, why):
    path = str(renamed(name, ckpt_path))
    checked = CliRunner().invoke(config_command, ["check", path], standalone_mode=False)
    assert not checked.return_value, checked.output
    assert f"start checkpoint not found, so not checked: {ckpt_path}" in checked.output
    dry = CliRunner().invoke(fit_command, [path, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert f"({BEFORE:,} to {END:,})" in dry.output
    assert f"; the file does not exist yet, step {BEFORE:,} is assumed {why}\n" in dry.output
    with pytest.raises(UserError, match=r"\.mdl: no such checkpoint"):
        list(remaining_phases(plan_launch(read_trainer_yaml(path)), lambda line: None))


def test_a_start_checkpoint_that_is_here_counts_for_more_than_its_name(renamed, tmp_path):
    path = str(renamed("ckpt_{step}.mdl", f"ckpt_{BEFORE}.mdl"))
    states = dict.fromkeys(("model", "optimizer"), np.zeros(1, np.float32))
    save_checkpoint(tmp_path / f"ckpt_{BEFORE}.mdl", {**states, "global_step": BEFORE - 29})
    dry = CliRunner().invoke(fit_command, [path, "--dry-run"])
    assert f"({BEFORE - 29:,} to {END:,})" in dry.output
    assert "is assumed" not in dry.output
    checked = CliRunner().invoke(config_command, ["check", path], standalone_mode=False)
    assert "lower max_steps to 260619" in checked.output  # the schedule has 29 steps fewer than the run


def test_a_phase_that_names_a_checkpoint_elsewhere_begins_at_its_step(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "checkpoint_20.mdl"
    first = trainer_section(tmp_path, loop={"max_steps": 4}, checkpoint={"steps": 2})
    second = trainer_section(tmp_path, loop={"num_steps": 4}, checkpoint={"steps": 2})
    second["init"]["model_dir"] = str(tmp_path / "second")
    second["fit"]["ckpt_path"] = str(elsewhere)
    phases = plan_launch([parse_trainer(first), parse_trainer(second)]).phases
    assert [(phase.begins, phase.ends) for phase in phases] == [(0, 4), (20, 24)]
    elsewhere.parent.mkdir()
    save_checkpoint(elsewhere, {"model": np.zeros(1, np.float32), "global_step": 30})
    phases = plan_launch([parse_trainer(first), parse_trainer(second)]).phases
    assert [(phase.begins, phase.ends) for phase in phases] == [(0, 4), (30, 34)]


def test_the_command_line_replaces_every_length_of_a_single_trainer(tmp_path):
    (phase,) = plan_launch([config_of(tmp_path, loop={"num_steps": 4})], max_steps=9).phases
    assert (phase.begins, phase.ends) == (0, 9)
    loop = phase.config.init.loop
    assert (loop.max_steps, loop.num_steps, loop.num_epochs) == (9, None, None)


def test_only_max_steps_says_that_a_single_trainer_is_finished(tmp_path):
    """The Model Zoo counts num_steps from where a run goes on, so there such a run is never finished."""
    path = tmp_path / "run" / "checkpoint_4.mdl"
    path.parent.mkdir()
    save_checkpoint(path, {"model": np.zeros(1, np.float32), "global_step": 4})
    counted = plan_launch([config_of(tmp_path, loop={"num_steps": 4})])
    assert (counted.index, counted.phases[0].ends, counted.start.checkpoint) == (0, 4, path)
    assert plan_launch([config_of(tmp_path, loop={"max_steps": 4})]).index == 1


# ---- LoadCheckpointStates --------------------------------------------------------------------------------------------

TAKEN = {
    "all": None,
    "model": {"model"},
    "model,global_step": {"model", "global_step"},
    ("model", "optimizer"): {"model", "optimizer"},
}
REFUSED = {
    "All": "write all, alone and in small letters",
    "ALL": "write all, alone and in small letters",
    " all": "write all, alone and in small letters",
    "all,model": "write all, alone and in small letters",
    "model, optimizer": "write the names without spaces",
    "Model": "write it in small letters",
    "": "known: all, dataloader",
    "model,weights": "no checkpoint holds 'weights'; known: all, dataloader",
}


def with_states(folder, value):
    return trainer_section(folder, callbacks=[{"LoadCheckpointStates": {"load_checkpoint_states": value}}])


@pytest.mark.parametrize(("value", "states"), TAKEN.items(), ids=map(str, TAKEN))
def test_states_that_the_model_zoo_loads_are_taken(tmp_path, value, states):
    value = list(value) if isinstance(value, tuple) else value
    assert wanted_states(parse_trainer(with_states(tmp_path, value))) == states


@pytest.mark.parametrize(("value", "remedy"), [*REFUSED.items(), (["all"], "write all, alone")], ids=str)
def test_states_that_the_model_zoo_cannot_load_are_refused_by_check_and_fit_alike(tmp_path, value, remedy):
    write_data(tmp_path / "train")
    write_data(tmp_path / "held_out", samples=10)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"trainer": with_states(tmp_path, value)}), encoding="utf-8")
    checked = CliRunner().invoke(config_command, ["check", str(path)], standalone_mode=False)
    assert checked.return_value == 1
    trained = str(CliRunner().invoke(fit_command, [str(path)]).exception)
    assert re.search(
        r"line \d+: trainer\.init\.callbacks\[0\]\.LoadCheckpointStates\.load_checkpoint_states: ", trained
    )
    assert remedy in trained
    assert trained in checked.output
    assert not (tmp_path / "run").exists()


@pytest.mark.modelzoo
@pytest.mark.parametrize("value", [*TAKEN, *REFUSED, ("all",)], ids=str)
def test_the_model_zoo_loads_what_is_taken_and_fails_on_what_is_refused(value):
    checkpoints = pytest.importorskip("cerebras.modelzoo.trainer.callbacks.checkpoint")

    class Trainer:
        class logger:
            info = staticmethod(lambda line: None)

    state = dict.fromkeys(CHECKPOINT_STATES, 0)
    is_taken = value in TAKEN
    value = list(value) if isinstance(value, tuple) else value
    callback = checkpoints.LoadCheckpointStates(value)
    if is_taken:
        callback.preprocess_checkpoint(Trainer, state)
        wanted = named_states(value)
        assert set(state) == (set(CHECKPOINT_STATES) if wanted is None else wanted)
    else:
        with pytest.raises((KeyError, AttributeError)):
            callback.preprocess_checkpoint(Trainer, state)


@pytest.mark.parametrize("options", [["--dry-run"], ["--backend", "cpu"]], ids=" ".join)
def test_phases_of_different_widths_are_refused_by_fit_in_the_words_of_config_check(tmp_path, monkeypatch, options):
    (case,) = (case for case in BROKEN if case.name == "phases of different widths")
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(case.text(), encoding="utf-8")
    problem, *_ = (problem for problem in check_file("run.yaml")[0] if case.key in problem)
    assert str(CliRunner().invoke(fit_command, ["run.yaml", *options]).exception) == problem
