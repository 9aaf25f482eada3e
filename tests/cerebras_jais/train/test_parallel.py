"""Several processes train what one process trains.

Contract: under torchrun with two gloo processes on the CPU, DDP and FSDP give the losses of one process for the same
global batch within float tolerance, with masks of different lengths, gradient accumulation and clipping; the checkpoint
one kind of run writes continues in the other.
"""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.errors import UserError
from cerebras_jais.model.load import load_model
from tests import tolerances
from tests.cerebras_jais.train.examples import JAIS, LLAMA, train, trainer_section, write_data, write_yaml
from tests.process import PATIENCE

has_fsdp = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 6)

FROZEN = {**LLAMA, "name": "jais_adapted", "frozen_parameters": [r"transformer_decoder\.", r"ln_f\."]}


def torchrun(yaml_path, model_dir, *options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "cerebras_jais.cli", "fit", str(yaml_path), "--model-dir", str(model_dir), *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [float(row["loss"]) for row in csv.DictReader((model_dir / "losses.csv").open())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharding", "model"),
    [
        ("ddp", JAIS),
        pytest.param("fsdp", LLAMA, marks=pytest.mark.skipif(not has_fsdp, reason="needs PyTorch 2.6")),
        ("ddp", FROZEN),
        pytest.param("fsdp", FROZEN, marks=pytest.mark.skipif(not has_fsdp, reason="needs PyTorch 2.6")),
    ],
    ids=["ddp-jais", "fsdp-llama", "ddp-frozen", "fsdp-frozen"],
)
def test_two_processes_train_what_one_trains(tmp_path, sharding, model):
    write_data(tmp_path / "train")
    write_data(tmp_path / "held_out", samples=10, seed=1)
    section = trainer_section(tmp_path, model, loop={"max_steps": 6, "eval_frequency": 6, "grad_accum_steps": 2})
    section["fit"]["val_dataloader"]["batch_size"] = 1  # one of the processes has no row of it
    path = write_yaml(tmp_path / "a.yaml", section)
    (config,) = read_trainer_yaml(path)
    alone = train(config, model_dir=tmp_path / "alone")
    together = torchrun(path, tmp_path / "together", "--sharding", sharding)
    np.testing.assert_allclose(together, alone.losses, atol=tolerances.LOSS_ACROSS_PROCESSES, rtol=0)
    held_out = float(list(csv.DictReader((tmp_path / "together" / "losses.csv").open()))[-1]["eval_loss"])
    assert held_out == pytest.approx(alone.eval_loss, abs=tolerances.LOSS_ACROSS_PROCESSES)
    # What two wrote one continues, and what one wrote two continue.
    continued = train(config, model_dir=tmp_path / "a", checkpoint=tmp_path / "together" / "checkpoint_3.mdl")
    np.testing.assert_allclose(continued.losses, alone.losses[3:], atol=tolerances.LOSS_ACROSS_PROCESSES, rtol=0)
    checkpoint = tmp_path / "alone" / "checkpoint_3.mdl"
    continued = torchrun(path, tmp_path / "b", "--sharding", sharding, "--checkpoint", str(checkpoint))
    np.testing.assert_allclose(continued, alone.losses[3:], atol=tolerances.LOSS_ACROSS_PROCESSES, rtol=0)
    assert load_model(tmp_path / "b" / "checkpoint_6.mdl").config == config.init.model


@pytest.mark.slow
@pytest.mark.skipif(not has_fsdp, reason="needs PyTorch 2.6")
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
