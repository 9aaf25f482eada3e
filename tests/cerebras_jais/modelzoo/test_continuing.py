"""A list of phases that is killed goes on, in both trainers.

Contract: three phases, killed with SIGKILL in the middle of each and started again with the same command, print at
every step the loss of a run that was never killed and end with its weights to the bit; a finished run started again
trains nothing and says so; autorestart's processes have the plugin.
"""

import csv
import subprocess
import sys

import pytest
import yaml

from tests.cerebras_jais.modelzoo.runs import (
    environment,
    last_checkpoint,
    prepare,
    require_modelzoo,
    run_until,
    trainers_of,
    weights_of,
    zoo,
    zoo_losses,
)

pytestmark = pytest.mark.slow

STEPS, SAVE_EVERY = 6, 2
# In each phase after its first checkpoint and beyond it, so that steps are made twice.
KILLED_AT = (3, 9, 15)


def three_phases(folder):
    """A config of three phases, each of which keeps its last checkpoint alone: one has 27 MB."""
    path = prepare(folder, "context.yaml", steps=STEPS, save_every=SAVE_EVERY, batch_size=4)
    document = yaml.safe_load(path.read_text())
    for trainer in trainers_of(document):
        trainer["init"].setdefault("callbacks", []).append({"KeepNCheckpoints": {"n": 1}})
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def same_bits(one, other):
    a, b = weights_of(last_checkpoint(one)), weights_of(last_checkpoint(other))
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


@pytest.mark.modelzoo
def test_a_run_of_the_model_zoo_killed_in_each_phase_ends_as_one_never_killed(tmp_path):
    require_modelzoo()
    path = three_phases(tmp_path)
    whole = zoo_losses(zoo(tmp_path, "fit", path.name, "-o", "whole"))
    assert sorted(whole) == list(range(1, 3 * STEPS + 1))

    command = ["zoo", "fit", path.name, "-o", "killed"]
    pieces = [run_until(tmp_path, command, f"Step={step}, Loss", tmp_path / f"{step}.log") for step in KILLED_AT]
    pieces.append(zoo(tmp_path, *command[1:]))
    for text, phase in zip(pieces[1:], range(3), strict=True):
        assert min(zoo_losses(text)) > phase * STEPS + 1  # from a checkpoint within the phase
    killed = {}
    for text in pieces:
        again = zoo_losses(text)
        assert all(killed.get(step, loss) == loss for step, loss in again.items())
        killed.update(again)
    assert killed == whole
    assert same_bits(tmp_path / "whole" / "128", tmp_path / "killed" / "128")

    finished = zoo(tmp_path, *command[1:])
    assert "nothing is left to train" in finished
    assert "Step=" not in finished


def reference_losses(model_dir):
    found = {}
    for file in model_dir.glob("*/losses.csv"):
        with file.open(newline="") as rows:
            found.update({int(row["step"]): float(row["loss"]) for row in csv.DictReader(rows)})
    return found


def reference_fit(folder, *arguments):
    command = [sys.executable, "-m", "cerebras_jais.cli", "fit", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def test_a_run_of_the_reference_trainer_killed_in_each_phase_ends_as_one_never_killed(tmp_path):
    path = three_phases(tmp_path)
    reference_fit(tmp_path, path.name, "--model-dir", "whole")
    whole = reference_losses(tmp_path / "whole")
    assert sorted(whole) == list(range(1, 3 * STEPS + 1))

    command = ["fit", path.name, "--model-dir", "killed"]
    for step in KILLED_AT:
        end = (step // STEPS + 1) * STEPS
        run_until(tmp_path, command, f"step {step:>{len(str(end))}}/{end}", tmp_path / f"{step}.log")
    reference_fit(tmp_path, *command[1:])
    assert reference_losses(tmp_path / "killed") == whole
    assert same_bits(tmp_path / "whole" / "128", tmp_path / "killed" / "128")

    finished = reference_fit(tmp_path, *command[1:])
    assert "nothing is left to train" in finished
    assert "step " not in finished.replace("at step ", "")


@pytest.mark.modelzoo
def test_the_processes_that_the_model_zoo_spawns_have_the_plugin(tmp_path):
    require_modelzoo()
    path = prepare(tmp_path, "stages.yaml", steps=2, batch_size=4)
    document = yaml.safe_load(path.read_text())
    for trainer in trainers_of(document):
        trainer["init"]["autorestart"] = {"max_num_restarts": 1}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    output = zoo(tmp_path, "fit", path.name)
    assert output.count("Child process started") == 2
    for stage in ("stage-1", "stage-2"):
        assert last_checkpoint(tmp_path / "stages" / stage).name == "checkpoint_2.mdl"
