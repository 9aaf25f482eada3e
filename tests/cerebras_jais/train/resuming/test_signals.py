"""A signal saves the step that was reached, and the run continues from there.

Contract: the message names the checkpoint and how to continue; the status is that of the signal; a second signal ends
the run at once; no temporary file is left; the run that continues is the run never stopped.
"""

import os
import signal
import subprocess
import sys
import threading

import pytest

from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.launch.plan import NothingLeft
from cerebras_jais.train import loop as loop_module
from cerebras_jais.train import progress as progress_module
from cerebras_jais.train.signals import Stopped
from cerebras_jais.train.steps import Steps
from tests.cerebras_jais.train.examples import train, write_yaml
from tests.cerebras_jais.train.resuming.runs import (
    assert_same_run,
    checkpoints,
    config_of,
    index,
    rows,
    trainer_section,
)
from tests.process import PATIENCE

pytestmark = pytest.mark.slow  # nearly every test trains two or three runs


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
        out, err = process.communicate(timeout=PATIENCE)
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
        err = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode != 0
    (kept,) = (folder / "run").glob("*.mdl")
    assert kept.name.endswith("_interrupted.mdl"), err
    with open_checkpoint(kept) as opened:
        step = opened.tree["global_step"]
    assert train(parse_trainer(section), max_steps=step + 1).start_step == step
