"""Several processes train what one process trains.

Contract: under torchrun with gloo processes on the CPU, DDP and FSDP give the losses of one process for the same global
batch within float tolerance, with masks of different lengths, gradient accumulation and clipping; the initial weights
are the same bit for bit; the checkpoint one kind of run writes continues in the other. What is wrong in any of the
processes is said in one line, and the run ends.
"""

import csv
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
import torch

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.checkpoint import open_checkpoint, save_checkpoint
from cerebras_jais.errors import UserError
from cerebras_jais.model.load import load_model
from cerebras_jais.train.parallel import DistributedContext
from tests import tolerances
from tests.cerebras_jais.train.examples import JAIS, LLAMA, train, trainer_section, write_data, write_yaml
from tests.marks import needs_fsdp
from tests.process import PATIENCE

FROZEN = {**LLAMA, "name": "jais_adapted", "frozen_parameters": [r"transformer_decoder\.", r"ln_f\."]}


def started(yaml_path, model_dir, *options, processes=2, **how):
    """A finished run of several processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "cerebras_jais.cli", "fit", str(yaml_path), "--model-dir", str(model_dir), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False, **how
    )


def torchrun(yaml_path, model_dir, *options, processes=2):
    done = started(yaml_path, model_dir, *options, processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(row["loss"]) for row in csv.DictReader((model_dir / "losses.csv").open())]


def places(path):
    """Where a checkpoint has each of its tensors, under which names."""
    with open_checkpoint(path) as checkpoint:
        return {k: (t.shape, t.dtype, t.linked_to, t.header.offset) for k, t in checkpoint.tensors.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "model", "processes"),
    [
        ("ddp", JAIS, 2),
        pytest.param("fsdp", JAIS, 4, marks=needs_fsdp),
        ("ddp", FROZEN, 2),
        pytest.param("fsdp", FROZEN, 2, marks=needs_fsdp),
    ],
    ids=["ddp-jais", "fsdp-jais", "ddp-frozen", "fsdp-frozen"],
)
def test_several_processes_train_what_one_trains(tmp_path, sharding, model, processes):
    write_data(tmp_path / "train")
    write_data(tmp_path / "held_out", samples=10, seed=1)
    section = trainer_section(tmp_path, model, loop={"max_steps": 6, "eval_frequency": 6, "grad_accum_steps": 2})
    section["fit"]["val_dataloader"]["batch_size"] = 1  # one of the processes has no row of it
    section["init"]["checkpoint"]["save_initial_checkpoint"] = True
    path = write_yaml(tmp_path / "a.yaml", section)
    (config,) = read_trainer_yaml(path)
    alone = train(config, model_dir=tmp_path / "alone")
    together = torchrun(path, tmp_path / "together", "--sharding", sharding, processes=processes)
    np.testing.assert_allclose(together, alone.losses, atol=tolerances.LOSS_ACROSS_PROCESSES, rtol=0)
    held_out = float(list(csv.DictReader((tmp_path / "together" / "losses.csv").open()))[-1]["eval_loss"])
    assert held_out == pytest.approx(alone.eval_loss, abs=tolerances.LOSS_ACROSS_PROCESSES)
    # The same weights are drawn, and lie at the same places of the file.
    assert (tmp_path / "together/checkpoint_0.mdl").read_bytes() == (tmp_path / "alone/checkpoint_0.mdl").read_bytes()
    assert places(tmp_path / "together/checkpoint_6.mdl") == places(tmp_path / "alone/checkpoint_6.mdl")
    # What several wrote one continues, and what one wrote two continue.
    continued = train(config, model_dir=tmp_path / "a", checkpoint=tmp_path / "together" / "checkpoint_3.mdl")
    np.testing.assert_allclose(continued.losses, alone.losses[3:], atol=tolerances.LOSS_ACROSS_PROCESSES, rtol=0)
    checkpoint = tmp_path / "alone" / "checkpoint_3.mdl"
    continued = torchrun(path, tmp_path / "b", "--sharding", sharding, "--checkpoint", str(checkpoint))
    np.testing.assert_allclose(continued, alone.losses[3:], atol=tolerances.LOSS_ACROSS_PROCESSES, rtol=0)
    assert load_model(tmp_path / "b" / "checkpoint_6.mdl").config == config.init.model


@pytest.mark.slow
@needs_fsdp
@pytest.mark.parametrize("model", [JAIS, LLAMA], ids=["jais", "llama"])
def test_two_processes_that_gather_bfloat16_train_what_one_trains_in_it(tmp_path, model):
    write_data(tmp_path / "train")
    write_data(tmp_path / "held_out", samples=10, seed=1)
    precision = {"enabled": True, "fp16_type": "bfloat16", "max_gradient_norm": 1.0}
    section = trainer_section(tmp_path, model, loop={"max_steps": 6, "grad_accum_steps": 2}, precision=precision)
    path = write_yaml(tmp_path / "a.yaml", section)
    (config,) = read_trainer_yaml(path)
    alone = train(config, model_dir=tmp_path / "alone")
    together = torchrun(path, tmp_path / "together", "--sharding", "fsdp")
    np.testing.assert_allclose(together, alone.losses, atol=tolerances.SAME_IN_BFLOAT16, rtol=0)
    held = load_model(tmp_path / "together" / "checkpoint_6.mdl")
    assert {tensor.dtype for tensor in held.parameters()} == {torch.float32}


def test_sharding_among_one_process_and_an_absent_gpu_are_refused(tmp_path, monkeypatch):
    write_data(tmp_path / "train")
    write_data(tmp_path / "held_out", samples=10, seed=1)
    (config,) = read_trainer_yaml(write_yaml(tmp_path / "a.yaml", trainer_section(tmp_path)))
    with pytest.raises(UserError, match="torchrun"):
        train(config, sharding="fsdp")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        train(config, backend="gpu")
    assert not (tmp_path / "run").exists()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name, value in of_two(RANK="5", WORLD_SIZE="8", LOCAL_RANK="4").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 5 is the one of number 4 on its machine, which has GPUs for 4; start"):
        DistributedContext("gpu")


def of_two(**more):
    """The variables of the first of two processes, at an address that nothing else uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_the_others_hears_signals(tmp_path, signum):
    write_data(tmp_path / "train")
    section = trainer_section(tmp_path)
    del section["fit"]["val_dataloader"]
    command = [sys.executable, "-m", "cerebras_jais.cli", "fit", str(write_yaml(tmp_path / "a.yaml", section))]
    variables = of_two()
    with subprocess.Popen([*command, "--model-dir", str(tmp_path / "run")], env={**os.environ, **variables}) as waiting:
        until = time.monotonic() + PATIENCE
        while waiting.poll() is None and time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(variables["MASTER_PORT"]))):
                break  # where the processes meet
            time.sleep(0.1)
        time.sleep(1)
        waiting.send_signal(signum)
        try:
            assert waiting.wait(10) == -signum
        finally:
            waiting.kill()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_that_begin_from_other_checkpoints_are_refused(tmp_path):
    write_data(tmp_path / "train")
    section = trainer_section(tmp_path)
    del section["fit"]["val_dataloader"]
    path = write_yaml(tmp_path / "a.yaml", section)
    folders = [tmp_path / "0", tmp_path / "1"]  # of processes on machines without a common file system
    for seed, folder in enumerate(folders):
        section["init"]["seed"] = seed
        (config,) = read_trainer_yaml(write_yaml(tmp_path / "b.yaml", section))
        train(config, model_dir=folder / "run", max_steps=3)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    fit = f"exec {sys.executable} -m cerebras_jais.cli fit {path} --model-dir run"

    def continued():
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [*start, "sh", "-c", f"cd $RANK && {fit}"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False
        )

    for other in ("of another run", "absent"):
        if other == "absent":
            shutil.rmtree(folders[1] / "run")
            folders[1].joinpath("run").mkdir()
        before = sorted(tmp_path.rglob("*"))
        done = continued()
        assert done.returncode != 0
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "the processes do not begin from the same checkpoint" in line
        assert sorted(tmp_path.rglob("*")) == before
    # Copies of one checkpoint are one checkpoint.
    shutil.copytree(folders[0] / "run", folders[1] / "run", dirs_exist_ok=True)
    done = continued()
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@needs_fsdp
def test_what_is_wrong_in_any_process_is_said_in_one_line_and_ends_the_run(tmp_path):
    write_data(tmp_path / "train")
    section = trainer_section(tmp_path)
    del section["fit"]["val_dataloader"]
    path = write_yaml(tmp_path / "a.yaml", section)
    (config,) = read_trainer_yaml(path)
    train(config, model_dir=tmp_path / "alone", max_steps=3)
    with open_checkpoint(tmp_path / "alone" / "checkpoint_3.mdl") as checkpoint:
        tree, name = checkpoint.tree, "model.embedding_layer.word_embeddings.weight"
        tree["model"][name] = tree["model"]["model.lm_head.weight"] = tree["model"][name].read()
        tree["model"][name][-1, 0] = np.nan  # of the rows of the last process
        save_checkpoint(tmp_path / "nan.mdl", tree)

    def errors(*options, **how):
        done = started(path, tmp_path / "run", "--sharding", "fsdp", *options, **how)
        assert done.returncode != 0
        return [line for line in done.stderr.splitlines() if line.startswith("error: ")]

    (line,) = errors("--checkpoint", str(tmp_path / "nan.mdl"))
    assert line.startswith(f"error: process 1 of 2: {tmp_path / 'nan.mdl'}: model.{name} holds NaN")
    (line,) = errors(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)))
    assert "File too large" in line
    assert not list((tmp_path / "run").glob("*.mdl")) and not list((tmp_path / "run").glob(".*.tmp"))
    section["fit"]["train_dataloader"]["batch_size"] = 5
    write_yaml(path, section)
    (line,) = errors()
    assert "batch_size: 5 rows cannot be divided among 2 processes; give 4 or 6" in line
