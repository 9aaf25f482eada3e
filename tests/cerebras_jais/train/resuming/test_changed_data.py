"""A run continues on the data that it was trained on, and in one process.

Contract: changed data and a second trainer in the folder are refused by name; a copy of the data is noted and trained
on.
"""

import fcntl
import io
import json
import os
import shutil

import h5py
import pytest

from cerebras_jais.checkpoint import CheckpointError
from cerebras_jais.errors import UserError
from cerebras_jais.train import setup
from tests.cerebras_jais.train.examples import train, write_data
from tests.cerebras_jais.train.resuming.runs import checkpoints, config_of

pytestmark = pytest.mark.slow  # nearly every test trains two or three runs


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
    read = []

    class Counted(io.FileIO):
        def read(self, size=-1, /):
            read.append(super().read(size))
            return read[-1]

    monkeypatch.setattr(data_record, "open", Counted, raising=False)
    first = data_record._record([big, big])
    assert [len(block) for block in read] == [4096] * 64
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
        with pytest.raises(UserError, match=rf"{folder / 'run'}: another process is training in this folder"):
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


def test_a_last_checkpoint_whose_tensors_cannot_be_read_is_named_with_the_way_to_go_on(folder, monkeypatch):
    """Its headers can be read, so only loading shows it."""
    config = stopped_run(folder)

    def load(checkpoint, *arguments, **options):
        raise CheckpointError(f"{checkpoint.path}: reading model.x failed")

    monkeypatch.setattr(setup, "load_weights", load)
    with pytest.raises(UserError, match=r"reading model\.x failed; move it away, and the run continues from the one"):
        train(config)
