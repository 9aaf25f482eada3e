"""Runs of the same YAML through both trainers, and what they leave; not a test itself."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.checkpoint import open_checkpoint, save_checkpoint
from cerebras_jais.launch.start import plan_launch, remaining_phases
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.stored import stored_weights
from cerebras_jais.optimizer.groups import parameter_groups
from cerebras_jais.optimizer.schedule import learning_rate, learning_rates
from cerebras_jais.train.loop import FitOptions, fit
from tests.process import PATIENCE

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "tiny"
CONFIGS = ["jais.yaml", "adapted.yaml", "chat.yaml", "context.yaml", "stages.yaml"]


def require_modelzoo():
    """Skip where the Model Zoo, or what it imports, is absent."""
    pytest.importorskip("rich")
    pytest.importorskip("cerebras.modelzoo")


# ---- the YAML and its data -------------------------------------------------------------------------------------------


def trainers_of(document):
    """The mappings under `trainer:`, one per phase."""
    found = document["trainer"]
    return [each["trainer"] for each in found] if isinstance(found, list) else [found]


def loaded_from(trainer):
    """The names of the states that a phase loads from its checkpoint, as LoadCheckpointStates lists them."""
    states = next(iter(trainer["init"].get("callbacks", [{}])), {}).get("LoadCheckpointStates", {})
    return states.get("load_checkpoint_states", "model,optimizer,schedulers,global_step").split(",")


def prepare(folder, name, *, steps=None, save_every=None, batch_size=None, rates_meet=True):
    """Write a tiny config with its data and one initial checkpoint into `folder`; every step is logged, none evaluated.

    Args:
        folder: where; paths of the config are relative to it.
        name: of the file in configs/tiny.
        steps: of each phase, the config's own if None.
        save_every: steps between checkpoints, only the end of each phase if None.
        batch_size: the config's own if None.
        rates_meet: whether a phase begins at the learning rate at which the one before was cut short.
    """
    document = yaml.safe_load((TINY / name).read_text(encoding="utf-8"))
    trainers = trainers_of(document)
    end = 0
    for trainer in trainers:
        init, data = trainer["init"], trainer["fit"]["train_dataloader"]
        if trainer is not trainers[0]:
            trainer["fit"]["ckpt_path"] = re.sub(r"checkpoint_\d+", f"checkpoint_{end}", trainer["fit"]["ckpt_path"])
        end = (end if "global_step" in loaded_from(trainer) else 0) + (steps or 30)
        init["loop"] = {"max_steps": end, "eval_frequency": None}
        init["checkpoint"] = {"steps": save_every or end}
        init["logging"] = {"log_steps": 1}
        trainer["fit"].pop("val_dataloader", None)
        if batch_size:
            data["batch_size"] = batch_size
        model = init["model"]
        directory = folder / data["data_dir"]
        if not directory.exists():
            write_documents(
                directory,
                length=model["max_position_embeddings"],
                vocabulary=model["vocab_size"],
                packed=data.get("use_vsl", False),
            )
    trainers[0]["fit"]["ckpt_path"] = "initial.mdl"
    path = folder / name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    for number, trainer in enumerate(trainers[1:] if steps and rates_meet else ()):
        if "schedulers" in loaded_from(trainer) or "optimizer" not in loaded_from(trainer):
            continue
        # Otherwise the first step of the phase differs between the trainers (docs/differences.md).
        (before,) = read_trainer_yaml(path)[number].init.schedulers
        trainer["init"]["schedulers"][0]["LinearLR"]["initial_learning_rate"] = learning_rate(before, steps)
        path.write_text(yaml.safe_dump(document, sort_keys=False))
    torch.manual_seed(7)
    model = LanguageModel(read_trainer_yaml(path)[0].init.model)
    save_checkpoint(folder / "initial.mdl", {"model": {k: v.detach().numpy() for k, v in model.state_dict().items()}})
    return path


def write_documents(directory, *, length, vocabulary, packed, samples=256, seed=0):
    """Rows that can be learned but not to the end: a token follows from the one before, or is drawn, one time in four.

    Packed rows hold two or three documents, whose loss counts for their second half alone, the response.
    """
    directory.mkdir(parents=True)
    rng = np.random.default_rng(seed + length)
    ids = rng.integers(0, vocabulary // 8, (samples, length + 1))
    for at in range(1, length + 1):
        follows = rng.random(samples) < 0.75
        ids[:, at] = np.where(follows, (3 * ids[:, at - 1] + 1) % (vocabulary // 8), ids[:, at])
    mask = np.ones((samples, length), dtype=int)
    rows = [ids[:, :-1], mask, ids[:, 1:]]
    if packed:
        span, position = np.zeros((samples, length), dtype=int), np.zeros((samples, length), dtype=int)
        for row in range(samples):
            cuts = sorted(rng.choice(np.arange(8, length - 8), 2, replace=False))
            for begin, end in zip([0, *cuts], [*cuts, length], strict=True):
                position[row, begin:end] = np.arange(end - begin)
                span[row, begin:end] = np.arange(end - begin)[::-1]
                mask[row, begin : begin + (end - begin) // 2] = 0
        rows += [span, position]
    with h5py.File(directory / "a.h5", "w") as file:
        file.create_dataset("data", data=np.stack(rows, 1).astype(np.int32))
        file.attrs["n_examples"] = samples


# ---- the Model Zoo's trainer -----------------------------------------------------------------------------------------


def environment():
    """That of a process which imports this checkout."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def zoo(folder, *arguments, status=0):
    """Run `cerebras-jais zoo ARGUMENTS` in `folder`; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cerebras_jais.cli", "zoo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        env=environment(),
        cwd=folder,
        check=False,
    )
    assert done.returncode == status, done.stdout[-4000:]
    return done.stdout


# The program runs in the process that watches what it prints, which kills itself: a look from outside would come late.
KILLED = """
import io, os, runpy, signal, sys
module, printed, *words = sys.argv[1:]
class Watched(io.TextIOWrapper):
    before = ""
    def write(self, text):
        written = super().write(text)
        Watched.before = (Watched.before + text)[-10_000:]
        if printed in Watched.before:
            self.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return written
sys.stdout, sys.stderr = (Watched(s.buffer, s.encoding, line_buffering=True) for s in (sys.stdout, sys.stderr))
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_until(folder, arguments, printed, log):
    """Run `cerebras-jais ARGUMENTS`, which is killed once it has printed that; returns what it printed."""
    verb, *words = map(str, arguments)
    program = ["cerebras_jais.modelzoo.zoo", printed] if verb == "zoo" else ["cerebras_jais.cli", printed, verb]
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *program, *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(),
            cwd=folder,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == -signal.SIGKILL, f"ended before {printed!r}: {log.read_text()[-3000:]}"
    return log.read_text()


def zoo_losses(text):
    """Loss by step as the Model Zoo prints it; of a step printed twice the later."""
    return {int(step): float(loss) for step, loss in re.findall(r"Train Device=.*?Step=(\d+), Loss=([\d.]+)", text)}


def zoo_scalars(model_dir):
    """Everything the Model Zoo recorded for TensorBoard in a run's folder: tag -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for file in sorted(Path(model_dir).rglob("*tfevents*")):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    return found


# ---- the reference trainer -------------------------------------------------------------------------------------------


def reference(folder, path, model_dir, change=lambda configs: configs):
    """Run all phases of a YAML, its configs changed, on the reference path; (phase, result, start) of each."""
    with contextlib.chdir(folder):
        launch = plan_launch(change(read_trainer_yaml(path)), model_dir=model_dir)
        remaining = remaining_phases(launch, lambda line: None)
        return [(phase, fit(phase, start, FitOptions(progress=False)), start) for phase, start in remaining]


def group_rates(config, steps):
    """The learning rate of each parameter group, [steps, groups], for a phase whose schedule begins at 0."""
    model = LanguageModel(config.init.model)
    from cerebras_jais.model.freeze import freeze_parameters

    freeze_parameters(model, config.init.model.frozen_parameters)
    optimizer = config.init.optimizer
    groups = parameter_groups(
        model,
        config.init.model,
        weight_decay=optimizer.weight_decay,
        adjust_learning_rate=optimizer.adjust_learning_rate,
    )
    rates = [learning_rates(config.init.schedulers, groups, optimizer.learning_rate, step) for step in range(steps)]
    return np.asarray(rates)


# ---- what a run leaves -----------------------------------------------------------------------------------------------


def last_checkpoint(model_dir):
    """The checkpoint of the highest step in a folder."""
    return max(Path(model_dir).glob("checkpoint_*.mdl"), key=lambda p: int(re.findall(r"checkpoint_(\d+)", p.name)[0]))


def weights_of(path):
    """Tensors of a checkpoint's model by name, float32."""
    with open_checkpoint(path) as checkpoint:
        return {name: np.array(leaf.read()) for name, leaf in stored_weights(checkpoint).items()}


def optimizer_tensors(path):
    """How many tensors a checkpoint holds optimizer state of."""
    with open_checkpoint(path) as checkpoint:
        return len(checkpoint.tree["optimizer"]["state"])
