"""A run that was stopped and continues is the run: its steps, its files, its records.

Contract: whatever stopped it, the same command ends at the step of a run never stopped and leaves the same checkpoints,
byte for byte, the same losses, index, evaluations and TensorBoard scalars, and nothing else. Here are the moments that
once went wrong, one by one; `tests/attacks/fit_kills.py` stops runs at random moments.
"""

import itertools

import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.commands.fit import fit as fit_command
from cerebras_jais.errors import UserError
from cerebras_jais.launch.plan import NothingLeft
from cerebras_jais.train import folder as folder_module
from cerebras_jais.train import loop as loop_module
from cerebras_jais.train.steps import Steps
from tests.cerebras_jais.train.examples import JAIS, train, write_yaml
from tests.cerebras_jais.train.resuming.runs import (
    Killed,
    assert_same_run,
    checkpoints,
    config_of,
    die_before,
    index,
    killed,
    rows,
    trainer_section,
)

pytestmark = pytest.mark.slow  # nearly every test trains two or three runs

# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [{"num_epochs": 2}, {"num_steps": 14}, {"num_epochs": 3, "max_steps": 14}], ids=str)
def test_a_run_of_so_many_steps_or_epochs_ends_where_one_never_stopped_does(folder, monkeypatch, loop):
    """28 samples are 7 batches of 4; killed at 8 and once more at 11, the run ends at 14, not at 22 or 36."""
    config = config_of(folder, loop={"eval_frequency": 4, **loop}, checkpoint={"steps": 3})
    whole = train(config, model_dir=folder / "whole")
    assert whole.steps == 14
    for at in (8, 5):  # 5 more from checkpoint 6
        killed(config, monkeypatch, Steps, "_update", at, model_dir=folder / "again")
    assert train(config, model_dir=folder / "again").steps == 14
    assert_same_run(folder / "again", folder / "whole")
    with pytest.raises(NothingLeft):
        train(config, model_dir=folder / "again")
    assert_same_run(folder / "again", folder / "whole")


def test_a_run_begun_from_another_runs_checkpoint_counts_from_there(folder, monkeypatch):
    first = train(config_of(folder), max_steps=2).checkpoint_path
    config = config_of(folder, loop={"num_steps": 5, "eval_frequency": 2}, checkpoint={"steps": 3})
    assert train(config, model_dir=folder / "whole", checkpoint=first).steps == 7
    assert set(checkpoints(folder / "whole")) == {"checkpoint_5.mdl", "checkpoint_7.mdl"}
    killed(config, monkeypatch, Steps, "_update", 5, model_dir=folder / "again", checkpoint=first)
    # Where it began is in its own checkpoint, so the relaunch need not name the other one.
    assert train(config, model_dir=folder / "again").steps == 7
    assert_same_run(folder / "again", folder / "whole")


def test_a_finished_run_of_epochs_has_nothing_left_and_status_0(folder):
    path = write_yaml(folder / "a.yaml", trainer_section(folder, loop={"num_epochs": 1, "eval_frequency": None}))
    first = CliRunner().invoke(fit_command, [str(path)])
    again = CliRunner().invoke(fit_command, [str(path)])
    assert (first.exit_code, again.exit_code) == (0, 0)
    assert "nothing is left to train" in again.output
    assert rows(folder / "run")[-1]["step"] == "7"


# ---- records ---------------------------------------------------------------------------------------------------------


MOMENTS = {
    "before-the-checkpoint-is-written": (loop_module, "write_checkpoint", 1),
    "before-the-index-is-written": (folder_module.RunFolder, "put_in_order", 2),
    "before-the-losses-are-written": (loop_module.Reporter, "flush", 2),
    "before-the-evaluation": (Steps, "evaluate", 1),
    "before-the-evaluation-is-recorded": (loop_module.Reporter, "evaluation", 1),
    "after-the-evaluation-went-to-tensorboard": (loop_module, "Reporter.flush", 2),
    "before-the-last-evaluation": (Steps, "evaluate", 2),
    "before-the-last-index-is-written": (folder_module.RunFolder, "put_in_order", 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_between_two_records_of_one_event_leaves_them_all(folder, monkeypatch, moment):
    owner, name, times = MOMENTS[moment]
    if "." in name:
        owner, name = loop_module.Reporter, "flush"
    config = config_of(folder, loop={"max_steps": 6, "eval_frequency": 3}, logging={"log_steps": 2})
    train(config, model_dir=folder / "whole")
    killed(config, monkeypatch, owner, name, times, model_dir=folder / "again")
    train(config, model_dir=folder / "again")
    assert_same_run(folder / "again", folder / "whole")
    with pytest.raises(NothingLeft):
        train(config, model_dir=folder / "again")


def test_the_phase_that_ended_last_gets_its_evaluation(folder, monkeypatch):
    def phase(end):
        return {"trainer": trainer_section(folder, loop={"max_steps": end, "eval_frequency": 3})}

    path = folder / "phases.yaml"
    path.write_text(yaml.safe_dump({"trainer": [phase(3), phase(6)]}))

    def command(name):
        return CliRunner().invoke(fit_command, [str(path), "--model-dir", str(folder / name)])

    assert command("whole").exit_code == 0
    mend = die_before(monkeypatch, Steps, "evaluate")
    with pytest.raises(Killed):
        command("again")
    mend()
    assert command("again").exit_code == 0
    assert_same_run(folder / "again", folder / "whole")


def test_the_curve_is_drawn_by_a_relaunch_that_has_nothing_else_to_do(folder, monkeypatch):
    config = config_of(folder, loop={"max_steps": 3, "eval_frequency": None})
    mend = die_before(monkeypatch, loop_module.Reporter, "close")
    with pytest.raises(Killed):
        train(config)
    mend()
    curve = folder / "run" / "loss_curve.png"
    assert not curve.exists()
    with pytest.raises(NothingLeft):
        train(config)
    assert curve.read_bytes().startswith(b"\x89PNG")


def test_the_curve_is_whole_or_not_there(folder, monkeypatch):
    """Killed while it is drawn, a run leaves no half of a picture under its name."""
    from matplotlib.figure import Figure

    def half(self, target, **options):
        with open(target, "wb") as file:
            file.write(b"\x89PNG")
        raise Killed

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(Killed):
        train(config_of(folder, loop={"max_steps": 1, "eval_frequency": None}))
    assert not list((folder / "run").glob("loss_curve*"))


@pytest.mark.parametrize(
    "content", ["", "step,loss\n1,\0\n", "step,loss,learning_rate,tokens,seconds,eval_loss\n1,a,b"]
)
def test_damaged_losses_are_named_before_the_training(folder, content):
    config = config_of(folder)
    train(config, max_steps=3)
    losses = folder / "run" / "losses.csv"
    losses.write_text(content)
    if not content:  # an empty file has no rows, and none that is damaged
        assert train(config).steps == 6
        return
    with pytest.raises(UserError, match=rf"{losses}: cannot be read"):
        train(config)
    assert losses.read_text() == content


@pytest.mark.parametrize("content", ["[", "3", "- [1]\n", "\0"])
def test_a_damaged_index_is_made_anew(folder, content):
    config = config_of(folder)
    train(config, max_steps=3)
    (folder / "run" / "checkpoints_index.yaml").write_text(content)
    train(config)
    assert index(folder / "run") == ["checkpoint_3.mdl", "checkpoint_6.mdl"]


def test_an_index_that_expands_without_end_is_made_anew(folder):
    """Each alias stands for ten of the one before: a hundred million entries, if they were made."""
    train(config_of(folder), max_steps=3)
    lines = [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in itertools.pairwise("abcdefghi")]
    (folder / "run" / "checkpoints_index.yaml").write_text("\n".join(["a: &a [x]", *lines]))
    train(config_of(folder))
    assert index(folder / "run") == ["checkpoint_3.mdl", "checkpoint_6.mdl"]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_temporary_files_of_a_killed_process_are_removed_and_no_others(folder):
    config = config_of(folder, checkpoint={"steps": 3, "checkpoint_root": str(folder / "kept")})
    train(config, max_steps=3)
    ours = [
        folder / "kept" / "checkpoint_6.mdl.0123abcd.tmp",
        folder / "run" / "losses.csv.0123abcd.tmp",
        folder / "run" / "loss_curve.png.0123abcd.tmp",
        folder / "run" / "checkpoints_index.yaml.0123abcd.tmp",
    ]
    theirs = [folder / "kept" / name for name in ("other_6.mdl.0123abcd.tmp", "checkpoint_6.mdl.tmp", "notes.tmp")]
    for path in (*ours, *theirs):
        path.write_text("half")
    train(config)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)


def test_the_checkpoints_to_keep_are_counted_over_restarts(folder, monkeypatch):
    section = {"checkpoint": {"steps": 1, "save_initial_checkpoint": True}}
    config = config_of(folder, callbacks=[{"KeepNCheckpoints": {"n": 2}}], **section)
    train(config, model_dir=folder / "whole")
    killed(config, monkeypatch, Steps, "_update", 4, model_dir=folder / "again")
    train(config, model_dir=folder / "again")
    assert set(checkpoints(folder / "again")) == {"checkpoint_5.mdl", "checkpoint_6.mdl"}
    assert_same_run(folder / "again", folder / "whole")


def test_checkpoints_of_another_run_are_not_counted_and_not_removed(folder):
    train(config_of(folder), max_steps=3)
    config = config_of(
        folder,
        checkpoint={"steps": 1, "autoload_last_checkpoint": False},
        callbacks=[{"KeepNCheckpoints": {"n": 1}}],
        loop={"max_steps": 5, "eval_frequency": None},
    )
    train(config)
    assert set(checkpoints(folder / "run")) == {"checkpoint_3.mdl", "checkpoint_5.mdl"}


# ---- what is said ----------------------------------------------------------------------------------------------------


def test_steps_beyond_the_schedule_are_said(folder, capsys):
    train(config_of(folder), max_steps=6, progress=True)
    assert "the schedule ends" not in capsys.readouterr().err
    train(config_of(folder), max_steps=15, progress=True)
    assert "the schedule ends after 13 steps, the run continues for 15: the last 2 train at its last rate, 0.002" in (
        capsys.readouterr().err
    )


def test_the_progress_line_says_how_long_the_rest_takes(folder, monkeypatch, capsys):
    train(config_of(folder, JAIS, loop={"max_steps": 3, "eval_frequency": None}), progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    assert lines[-1].endswith("  0:00:00 left")
