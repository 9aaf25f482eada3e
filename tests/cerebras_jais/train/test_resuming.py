"""A run that was stopped and goes on is the run: its steps, its files, its records.

Contract: whatever stopped it, the same command ends at the step of a run never stopped and leaves the same checkpoints,
byte for byte, the same losses, index, evaluations and TensorBoard scalars, and nothing else; a signal saves the step
reached and says how to go on; changed data and a second trainer in the folder are named. `tests/attacks/fit_kills.py`
stops runs at random moments; here are the moments that once went wrong, one by one.
"""

import csv
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import h5py
import pytest
import yaml
from click.testing import CliRunner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.commands.fit import fit as fit_command
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.errors import UserError
from cerebras_jais.launch.plan import NothingLeft
from cerebras_jais.train import folder as folder_module
from cerebras_jais.train import loop as loop_module
from cerebras_jais.train import progress as progress_module
from cerebras_jais.train.signals import Stopped
from cerebras_jais.train.steps import Steps
from tests.cerebras_jais.train import examples
from tests.cerebras_jais.train.examples import JAIS, train, write_data, write_yaml

pytestmark = pytest.mark.slow  # nearly every test trains two or three runs


def trainer_section(folder, model=JAIS, **init):
    """As in the examples, with TensorBoard's events."""
    return examples.trainer_section(folder, model, **{"loggers": [], **init})


def config_of(folder, model=JAIS, **init):
    return parse_trainer(trainer_section(folder, model, **init))


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "train", samples=28)
    write_data(tmp_path / "held_out", samples=10, seed=1)
    return tmp_path


@pytest.fixture(autouse=True)
def no_curve(request, monkeypatch):
    """Drawing takes longer than these runs do; tests that look at the picture draw it."""
    if "curve" not in request.node.name:
        monkeypatch.setattr("cerebras_jais.train.progress.draw_curve", lambda rows, path: None)
        monkeypatch.setattr("cerebras_jais.train.setup.draw_curve", lambda rows, path: None)


class Killed(BaseException):
    """Stands for the death of the process: nothing in the package catches it."""


def die_before(monkeypatch, owner, name, times=1):
    """Make the call of that number die instead of doing its work; returns a function that mends it."""
    real, left = getattr(owner, name), [times]

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)
    return lambda: monkeypatch.setattr(owner, name, real)


def killed(config, monkeypatch, owner, name, times=1, **options):
    """Run until the process dies there; what it would still write on its way out is lost too."""
    mend = die_before(monkeypatch, owner, name, times)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Reporter, "close", lambda self: self._events.close())
        with pytest.raises(Killed):
            train(config, **options)
    mend()


def rows(model_dir):
    with (model_dir / "losses.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def scalars(model_dir):
    events = EventAccumulator(str(model_dir / "events")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag != "tokens_per_second"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def index(model_dir):
    return [os.path.basename(path) for path in yaml.safe_load((model_dir / "checkpoints_index.yaml").read_text())]


def checkpoints(model_dir):
    return {path.name: path.read_bytes() for path in model_dir.glob("*.mdl")}


def assert_same_run(one, other):
    assert checkpoints(one) == checkpoints(other)
    assert rows(one) == rows(other)
    assert scalars(one) == scalars(other)
    assert index(one) == index(other)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


# ---- steps ----------------------------------------------------------------------------------------------------------


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


# ---- records --------------------------------------------------------------------------------------------------------

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


# ---- files ----------------------------------------------------------------------------------------------------------


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


# ---- signals --------------------------------------------------------------------------------------------------------


def signalled(config, monkeypatch, signum, step, **options):
    """Run until that step, when this process sends itself the signal."""
    real, done = Steps._update, []

    def update(self, optimizer):
        real(self, optimizer)
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Steps, "_update", update)
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Stopped) as caught:
        train(config, **options)
    monkeypatch.setattr(Steps, "_update", real)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    return caught.value


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
def test_a_signal_saves_the_step_reached_and_the_run_goes_on_from_there(folder, monkeypatch, signum, status):
    keep = [{"KeepNCheckpoints": {"n": 1}}]
    config = config_of(folder, loop={"max_steps": 9, "eval_frequency": 4}, callbacks=keep)
    train(config, model_dir=folder / "whole")
    stopped = signalled(config, monkeypatch, signum, 5, model_dir=folder / "again")
    assert stopped.status == status
    assert set(checkpoints(folder / "again")) == {"checkpoint_3.mdl", "checkpoint_5_interrupted.mdl"}
    assert index(folder / "again") == ["checkpoint_3.mdl"]
    assert "after step 5 of 9" in str(stopped)
    assert f"{folder / 'again' / 'checkpoint_5_interrupted.mdl'} is kept" in str(stopped)
    assert "give the same command again" in str(stopped)
    assert not list((folder / "again").glob("*.tmp"))
    # Once more, one step later; then the regular one takes its place.
    signalled(config, monkeypatch, signum, 1, model_dir=folder / "again")
    assert set(checkpoints(folder / "again")) == {"checkpoint_3.mdl", "checkpoint_6.mdl"} - {"checkpoint_3.mdl"}
    result = train(config, model_dir=folder / "again")
    assert result.start_step == 6
    assert_same_run(folder / "again", folder / "whole")


def test_a_signal_before_the_first_step_saves_nothing_and_says_so(folder, monkeypatch):
    real = Steps._forward_backward

    def forward(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    monkeypatch.setattr(Steps, "_forward_backward", forward)
    with pytest.raises(Stopped, match="after step 0 of 6; nothing was trained"):
        train(config_of(folder))
    assert not checkpoints(folder / "run")


def test_a_signal_during_an_evaluation_keeps_the_checkpoint_and_the_evaluation_is_made_later(folder, monkeypatch):
    config = config_of(folder, loop={"max_steps": 6, "eval_frequency": 3})
    train(config, model_dir=folder / "whole")
    real = Steps.evaluate

    def evaluate(self, samples):
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, samples)

    monkeypatch.setattr(Steps, "evaluate", evaluate)
    with pytest.raises(Stopped, match=r"checkpoint_3\.mdl is kept"):
        train(config, model_dir=folder / "again")
    monkeypatch.setattr(Steps, "evaluate", real)
    assert set(checkpoints(folder / "again")) == {"checkpoint_3.mdl"}
    train(config, model_dir=folder / "again")
    assert_same_run(folder / "again", folder / "whole")


def test_a_signal_while_a_checkpoint_is_written_is_not_swallowed(folder, monkeypatch):
    """At every place of the writing where the file changes, the file is finished and the run ends."""
    config = config_of(folder, loop={"max_steps": 6, "eval_frequency": None})
    for name in ("pwrite", "fsync", "link", "unlink", "replace"):
        real, sent = getattr(os, name), []

        def call(*args, real=real, sent=sent, **kwargs):
            if not sent:
                sent.append(os.kill(os.getpid(), signal.SIGINT))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, call)
            with pytest.raises(Stopped):
                train(config, model_dir=folder / name)
        assert not list((folder / name).glob("*.tmp"))
        with open_checkpoint(folder / name / "checkpoint_3.mdl") as opened:
            assert opened.tree["global_step"] == 3


def test_a_second_signal_ends_the_run_at_once_and_leaves_no_temporary_file(folder, monkeypatch):
    real = loop_module.write_checkpoint

    def twice(*args, **kwargs):
        monkeypatch.setattr(os, "fsync", lambda descriptor: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
        return real(*args, **kwargs)

    monkeypatch.setattr(loop_module, "write_checkpoint", twice)
    with pytest.raises(Stopped, match="stopped at once by Ctrl-C"):
        train(config_of(folder))
    assert not checkpoints(folder / "run")
    assert not list((folder / "run").glob("*.tmp"))


def test_a_second_signal_whose_exception_a_library_replaces_is_said_all_the_same(folder, monkeypatch):
    """As matplotlib does: its C code calls Python, forgets what that raised, and raises an error of its own."""

    def draw(rows, path):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        except Stopped:
            pass
        raise ValueError("Invalid bounding box")

    monkeypatch.setattr(progress_module, "draw_curve", draw)
    with pytest.raises(Stopped, match=r"stopped at once by Ctrl-C .*checkpoint_6\.mdl is kept"):
        train(config_of(folder))


def test_the_step_that_a_signal_saved_is_never_removed_before_a_later_one_is_there(folder, monkeypatch):
    config = config_of(folder, loop={"max_steps": 9, "eval_frequency": None}, checkpoint={"steps": 0})
    signalled(config, monkeypatch, signal.SIGTERM, 4)
    with pytest.raises(NothingLeft):
        train(config, max_steps=4)
    assert set(checkpoints(folder / "run")) == {"checkpoint_4_interrupted.mdl"}
    assert train(config).start_step == 4


def test_the_way_to_go_on_is_the_one_that_works(folder, monkeypatch):
    config = config_of(folder, checkpoint={"steps": 3, "autoload_last_checkpoint": False})
    train(config, model_dir=folder / "whole")
    stopped = signalled(config, monkeypatch, signal.SIGTERM, 4, model_dir=folder / "again")
    kept = folder / "again" / "checkpoint_4_interrupted.mdl"
    assert str(stopped).endswith(f"to continue give --checkpoint {kept}")
    train(config, model_dir=folder / "again", checkpoint=kept)
    assert_same_run(folder / "again", folder / "whole")


def test_signals_that_are_ignored_stay_ignored_and_other_threads_take_none(folder):
    config = config_of(folder, loop={"max_steps": 1, "eval_frequency": None})
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(config)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    thread = threading.Thread(target=lambda: train(config, model_dir=folder / "thread"))
    thread.start()
    thread.join()
    assert set(checkpoints(folder / "thread")) == {"checkpoint_1.mdl"}


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=str)
def test_the_command_ends_with_the_status_of_the_signal(folder, signum, status):
    section = trainer_section(folder, loop={"max_steps": 100_000, "eval_frequency": None})
    section["init"]["checkpoint"] = {"steps": 100_000}
    path = write_yaml(folder / "a.yaml", section)
    command = [sys.executable, "-m", "cerebras_jais.cli", "fit", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step "):
                break
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    (kept,) = (folder / "run").glob("*.mdl")
    assert kept.name.endswith("_interrupted.mdl")
    assert str(kept) in err.strip().splitlines()[-1]
    assert "Traceback" not in out + err
    losses = rows(folder / "run")
    assert kept.name == f"checkpoint_{losses[-1]['step']}_interrupted.mdl"


def test_several_processes_stop_together_and_go_on(folder):
    section = trainer_section(folder, loop={"max_steps": 100_000, "eval_frequency": None})
    section["init"]["checkpoint"] = {"steps": 100_000}
    path = write_yaml(folder / "a.yaml", section)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "cerebras_jais.cli", "fit", str(path)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        for line in process.stderr:
            if line.startswith("step "):
                break
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    (kept,) = (folder / "run").glob("*.mdl")
    assert kept.name.endswith("_interrupted.mdl"), err
    with open_checkpoint(kept) as opened:
        step = opened.tree["global_step"]
    assert train(parse_trainer(section), max_steps=step + 1).start_step == step


# ---- data and other processes ---------------------------------------------------------------------------------------


def stopped_run(folder):
    config = config_of(folder)
    train(config, max_steps=3)
    return config


def rewrite(folder, change):
    with h5py.File(folder / "a.h5", "r+") as file:
        change(file["data"])


def test_training_data_of_another_size_or_content_are_refused_by_their_file(folder):
    config = stopped_run(folder)
    shutil.copytree(folder / "train", folder / "saved")
    shutil.rmtree(folder / "train")
    write_data(folder / "train", samples=40)
    with pytest.raises(UserError, match=r"checkpoint_3\.mdl: the training data changed .*a\.h5 has [\d,]+ bytes, not"):
        train(config)
    shutil.rmtree(folder / "train")
    write_data(folder / "train", samples=28, seed=5)
    with pytest.raises(UserError, match=r"a\.h5 has other content; restore them, or leave `dataloader` out"):
        train(config)
    shutil.rmtree(folder / "train")
    write_data(folder / "train", samples=28)
    shutil.copy(folder / "train" / "a.h5", folder / "train" / "b.h5")
    with pytest.raises(UserError, match="there are 2 files, not 1"):
        train(config)
    (folder / "train" / "b.h5").unlink()
    shutil.copy(folder / "saved" / "a.h5", folder / "train" / "a.h5")
    assert train(config).steps == 6


def test_a_copy_of_the_data_is_said_and_trained_on(folder, capsys):
    config = stopped_run(folder)
    os.utime(folder / "train" / "a.h5", (1, 1))
    train(config, progress=True)
    assert f"data: {folder / 'train' / 'a.h5'} have new times with the same size" in capsys.readouterr().err


def test_changed_data_are_trained_on_where_their_position_is_not_loaded_and_other_held_out_data_are_said(
    folder, capsys
):
    stopped_run(folder)
    rewrite(folder / "train", lambda data: data.write_direct(data[()][::-1].copy()))
    rewrite(folder / "held_out", lambda data: data.write_direct(data[()][::-1].copy()))
    states = [{"LoadCheckpointStates": {"load_checkpoint_states": "model,optimizer,global_step,schedulers"}}]
    assert train(config_of(folder, callbacks=states)).steps == 6
    shutil.rmtree(folder / "run")
    config = stopped_run(folder)
    rewrite(folder / "held_out", lambda data: data.write_direct(data[()][::-1].copy()))
    train(config, progress=True)
    assert "the held-out data changed: " in capsys.readouterr().err


def test_the_record_of_the_data_reads_64_blocks_at_most(folder, monkeypatch):
    from cerebras_jais.train import data_record

    big = folder / "big.h5"
    with big.open("wb") as file:
        file.truncate(2**40)  # a file of holes
    began = time.perf_counter()
    first = data_record._record([big, big])
    assert time.perf_counter() - began < 5
    with big.open("r+b") as file:
        file.seek(2**39)
        file.write(b"x" * 4096)
    assert data_record._record([big, big])["sample"] != first["sample"]
    assert json.loads(json.dumps(first)) == first


def test_a_second_trainer_in_the_folder_is_refused(folder):
    config = stopped_run(folder)
    before = checkpoints(folder / "run")
    with (folder / "run" / ".fit.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=rf"{folder / 'run'}: another process trains there"):
            train(config)
    assert checkpoints(folder / "run") == before
    assert train(config).steps == 6  # a lock file that no process holds is nothing
    assert not (folder / "run" / ".fit.lock").exists()


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(folder, monkeypatch, capsys):
    def no_locks(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    train(config_of(folder, loop={"max_steps": 1, "eval_frequency": None}), progress=True)
    said = capsys.readouterr().err
    assert f"{folder / 'run'}: its file system has no locks (No locks available)" in said


# ---- what is said ---------------------------------------------------------------------------------------------------


def test_steps_beyond_the_schedule_are_said(folder, capsys):
    train(config_of(folder), max_steps=6, progress=True)
    assert "the schedule ends" not in capsys.readouterr().err
    train(config_of(folder), max_steps=15, progress=True)
    assert "the schedule ends after 13 steps, the run goes on for 15: the last 2 train at its last rate, 0.002" in (
        capsys.readouterr().err
    )


def test_the_progress_line_says_how_long_the_rest_takes(folder, monkeypatch, capsys):
    train(config_of(folder, JAIS, loop={"max_steps": 3, "eval_frequency": None}), progress=True)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(lines) == 3
    assert lines[-1].endswith("  0:00:00 left")
