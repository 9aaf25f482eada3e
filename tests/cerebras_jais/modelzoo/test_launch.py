"""A launch on a cluster, as far as a machine without one goes.

Contract: the command line's options land in every phase's backend; the pre-flight check names what is wrong with the
YAML, the data, the mounts and the cluster before anything is started; a cluster that does not answer is one line that
says what is missing; `--dry-run` says per phase what would run.
"""

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais import params
from cerebras_jais.commands.fit import fit as fit_command
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.launch.saved import EVERYTHING
from cerebras_jais.launch.start import Start, plan_launch
from cerebras_jais.modelzoo import launch as launching
from cerebras_jais.modelzoo import preflight
from cerebras_jais.modelzoo.launch import LaunchOptions, launch, with_cluster
from cerebras_jais.modelzoo.phases import trainer_of
from cerebras_jais.modelzoo.preflight import NotReady, inspect_launch
from tests import tolerances
from tests.cerebras_jais.modelzoo.runs import environment, prepare, require_modelzoo, trainers_of
from tests.process import PATIENCE

CLUSTER = {"num_csx": 2, "num_workers_per_csx": 1, "job_labels": ["project=jais"], "job_priority": "p1"}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A folder with a config that a CS system could take, and its data."""
    folder = tmp_path_factory.mktemp("ready")
    path = prepare(folder, "context.yaml", steps=4, batch_size=4)
    document = yaml.safe_load(path.read_text())
    for trainer in trainers_of(document):
        trainer["init"]["precision"] |= {
            "enabled": True,
            "fp16_type": "cbfloat16",
            "loss_scaling_factor": "dynamic",
        }
        part = trainer["init"]["schedulers"][0]
        for schedule in part.get("SequentialLR", {}).get("schedulers", [part]):
            next(iter(schedule.values()))["total_iters"] = 2 if "SequentialLR" in part else 4
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def launch_of(path, **cluster):
    merged = with_cluster(yaml.safe_load(path.read_text()), LaunchOptions(str(path), cluster=cluster))
    return plan_launch([parse_trainer(trainer, at=at) for at, trainer in params.trainers_of(merged)])


def findings(path, monkeypatch, **cluster):
    """Lines of the pre-flight check, and the error it ends with; the software and the cluster count as there."""
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(preflight, "_software", lambda: iter([preflight.Finding("software")]))
    cluster = {"mgmt_address": "there:443", "credentials_path": "x.crt", **cluster}
    said = []
    try:
        inspect_launch(read_yaml(path), launch_of(path, **cluster), log=said.append)
    except NotReady as error:
        return said, str(error)
    return said, None


# ---- the command line ------------------------------------------------------------------------------------------------


def test_options_of_a_cluster_land_in_every_phase(ready):
    merged = with_cluster(
        yaml.safe_load(ready.read_text()), LaunchOptions(str(ready), cluster=CLUSTER, only="compile_only")
    )
    for trainer in trainers_of(merged):
        assert trainer["init"]["backend"] == {
            "backend_type": "CSX",
            "compile_only": True,
            "validate_only": False,
            "cluster_config": CLUSTER,
        }


def test_fit_hands_its_options_to_the_launching_process(ready, monkeypatch):
    seen = {}
    monkeypatch.setattr(os, "execv", lambda file, words: seen.update(words=words) or sys.exit(0))
    options = "--num-csx 2 --workers-per-csx 1 --mount-dir /a --mount-dir /b --python-path /c --job-label k=v"
    arguments = [str(ready), "--backend", "csx", *options.split(), "--job-priority", "p3", "--validate-only"]
    CliRunner().invoke(fit_command, arguments)
    assert seen["words"][1:3] == ["-m", "cerebras_jais.modelzoo.launch"]
    assert LaunchOptions(**json.loads(seen["words"][3])) == LaunchOptions(
        str(ready),
        cluster={
            "num_csx": 2,
            "num_workers_per_csx": 1,
            "mount_dirs": ["/a", "/b"],
            "python_paths": ["/c"],
            "job_labels": ["k=v"],
            "job_priority": "p3",
        },
        only="validate_only",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--backend", "cpu", "--num-csx", "2"], "--num-csx is an option of a cluster; add --backend csx"),
        (["--backend", "cpu", "--compile-only"], "--compile-only is an option of a cluster"),
        (["--backend", "cpu", "--lower-only"], "--lower-only is an option of a cluster"),
        (["--backend", "csx", "--compile"], "--compile and --sharding are for --backend cpu and gpu"),
    ],
)
def test_options_of_the_other_kind_of_machine_are_refused(ready, arguments, words):
    result = CliRunner().invoke(fit_command, [str(ready), *arguments])
    assert words in str(result.exception)


def test_a_dry_run_says_per_phase_what_would_run(ready, monkeypatch):
    monkeypatch.chdir(ready.parent)
    result = CliRunner().invoke(fit_command, [str(ready), "--dry-run"])
    assert result.exit_code == 0, result.output
    second = result.output.split("phase 2 of 3")[1].split("phase 3 of 3")[0]
    assert re.search(r"parameters +2,174,092\n", second)
    assert re.search(r"steps +4 \(4 to 8\), 4 sequences of 64 tokens each", second)
    assert re.search(r"tokens +1,024\n", second)
    # 6 per matrix weight and token, and attention: 12 x length x width x layers.
    matrices = 2048 * 192 + 4 * (4 * 192**2 + 3 * 192 * 512)
    assert f"FLOPs       {1024 * (6 * matrices + 12 * 64 * 192 * 4):.3g}\n" in second
    assert (
        "context/32/checkpoint_4.mdl (the end of phase 1), loading global_step, model, optimizer; the file does not"
        in second
    )
    assert not (ready.parent / "context").exists()


@pytest.mark.parametrize(("samples_are_there", "status"), [(True, 0), (False, 1)])
def test_a_dry_run_for_a_cluster_ends_with_status_1_where_something_is_wrong(
    ready, monkeypatch, tmp_path, capsys, samples_are_there, status
):
    monkeypatch.chdir(ready.parent if samples_are_there else tmp_path)
    monkeypatch.setattr(preflight, "_software", lambda: iter([preflight.Finding("software")]))
    cluster = {"mgmt_address": "there:443", "credentials_path": "x.crt"}
    assert launch(LaunchOptions(str(ready), cluster=cluster, dry_run=True)) == status
    assert ("wrong" in capsys.readouterr().out) == bool(status)


@pytest.mark.slow
def test_what_a_dry_run_says_of_checkpoint_bytes_is_what_the_trainer_writes(ready, monkeypatch):
    monkeypatch.chdir(ready.parent)
    said = CliRunner().invoke(fit_command, [str(ready), "--dry-run", "--max-steps", "1"]).output
    result = CliRunner().invoke(fit_command, [str(ready), "--backend", "cpu", "--max-steps", "1", "--model-dir", "w"])
    assert result.exit_code == 0, result.output
    written = (ready.parent / "w" / "32" / "checkpoint_1.mdl").stat().st_size
    foreseen = int(re.search(r"of ([\d,]+) bytes each", said)[1].replace(",", ""))
    tied = 4 * 2048 * 192  # the Model Zoo writes the tied head a second time, the reference trainer links it
    assert foreseen - tied == pytest.approx(written, rel=tolerances.CHECKPOINT_BYTES_RELATIVE)


# ---- before the cluster ----------------------------------------------------------------------------------------------


def test_a_launch_with_nothing_wrong_passes(ready, monkeypatch):
    said, error = findings(ready, monkeypatch)
    assert error is None, error
    assert all(line.startswith("ok    ") for line in said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t["init"]["precision"].update(loss_scaling_factor=1.0), "cbfloat16 needs dynamic loss scaling"),
        (lambda t: t["init"]["precision"].update(enabled=False), "a CS system computes in a 16-bit type"),
        (lambda t: t["fit"]["train_dataloader"].update(data_dir="data/context/64/train"), "its samples have 64 tokens"),
        (lambda t: t["fit"]["train_dataloader"].update(data_dir="nowhere"), "nowhere"),
        (lambda t: t["fit"]["train_dataloader"].update(batch_size=1000), "fewer than one batch of 1000"),
        (lambda t: t["init"]["model"].update(frozen_parameters=["backbone"]), "matches no tensor name"),
        (lambda t: t["fit"].update(ckpt_path="gone.mdl"), "no such checkpoint"),
        (lambda t: t["init"].pop("optimizer"), "init.optimizer: missing; add AdamW"),
        (lambda t: t.pop("fit"), "fit: missing; it names the data to train on"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started(ready, monkeypatch, change, words):
    document = yaml.safe_load(ready.read_text())
    change(trainers_of(document)[0])
    path = ready.with_name("broken.yaml")
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    said, error = findings(path, monkeypatch)
    assert error.startswith("nothing was started: ")
    assert words in error or any(words in line for line in said if line.startswith("wrong"))


def test_data_of_a_larger_tokenizer_is_refused(ready, monkeypatch):
    beside = ready.parent / "data" / "context" / "32" / "train" / "data_params.json"
    beside.write_text(json.dumps({"processing": {"vocab_size": 5000}}))
    try:
        _, error = findings(ready, monkeypatch)
    finally:
        beside.unlink()
    assert "2048 is smaller than the tokenizer of 5000 entries that made data/context/32/train" in error


@pytest.mark.slow
def test_data_outside_the_mounts_is_refused(ready, monkeypatch, tmp_path):
    _, error = findings(ready, monkeypatch, mount_dirs=[str(tmp_path)])
    assert "is not below any mounted directory" in error
    _, error = findings(ready, monkeypatch, mount_dirs=[str(ready.parent)])
    assert error is None


def test_a_machine_without_a_cluster_is_told_what_is_missing(ready, monkeypatch):
    monkeypatch.setenv("CSCONFIG_PATH", "/nowhere/config_v2")
    _, error = findings(ready, monkeypatch, mgmt_address=None)
    assert "/nowhere/config_v2 is absent, so this is no user node of a cluster" in error


def test_a_launch_without_torch_cirh_opt_is_told_so(monkeypatch):
    monkeypatch.setattr(preflight, "require_modelzoo", lambda: None)
    monkeypatch.setattr(preflight.metadata, "version", lambda name: "2.10.0")
    monkeypatch.setenv("PATH", "/nowhere")
    (wrong,) = (finding for finding in preflight._software() if "torch-cirh-opt" in finding.subject)
    assert wrong.problem.startswith("torch-cirh-opt is not on PATH, and cerebras_pytorch lowers with it; activate")


PROGRAM = {"step": "train", "hash": "a" * 64, "violations": {}}


@pytest.mark.parametrize(
    ("found", "said", "error"),
    [
        ({"programs": [PROGRAM]}, "ok    phase 2 of 3 lowers to the programs train aaaaaaaaaaaaaaaa\n", None),
        ({"error": "run.yaml, line 3: wrong"}, "", "nothing was started: run.yaml, line 3: wrong"),
        ({"programs": [{**PROGRAM, "violations": {"relu": "2D"}}]}, "", "relu violates a constraint of CS systems: 2D"),
    ],
)
def test_what_cannot_be_lowered_is_not_started(ready, monkeypatch, capsys, found, said, error):
    facts = {"file": "run.yaml", "phase": 2, "phases": 3, **found}
    monkeypatch.setattr(launching, "lower_phases", lambda file, phases: iter([facts]))
    with contextlib.nullcontext() if error is None else pytest.raises(NotReady, match=error):
        launching._lower_first(read_yaml(ready), [])
    assert capsys.readouterr().out == said


# ---- what the Model Zoo's trainer is given ---------------------------------------------------------------------------


def test_the_trainer_is_told_its_end_its_beginning_and_what_to_load(ready):
    phase = launch_of(ready).phases[1]
    raw = trainers_of(yaml.safe_load(ready.read_text()))[1]
    raw["init"]["loop"] = {"num_steps": 4, "eval_frequency": None}
    trainer = trainer_of(phase, Start(ready, ("model", "global_step"), "x"), raw)
    assert trainer["init"]["loop"] == {"max_steps": 8, "eval_frequency": None}
    assert trainer["fit"]["ckpt_path"] == str(ready)
    assert trainer["init"]["callbacks"] == [{"LoadCheckpointStates": {"load_checkpoint_states": "model,global_step"}}]
    going_on = trainer_of(phase, Start(ready, EVERYTHING, "x"), raw)["init"]["callbacks"]
    assert going_on == [{"LoadCheckpointStates": {"load_checkpoint_states": "all"}}]
    assert "callbacks" not in raw["init"] or raw["init"]["callbacks"] != trainer["init"]["callbacks"]
    # Without a checkpoint it must not look for one by itself: that of a later phase may lie there.
    assert trainer_of(phase, Start(None), raw)["fit"]["ckpt_path"] is None


# ---- on the real Model Zoo -------------------------------------------------------------------------------------------

NOBODY = {
    "currentContext": "c",
    "contexts": [{"name": "c", "cluster": "none"}],
    "clusters": [
        {
            "name": "none",
            "server": "127.0.0.1:1",
            "authority": "none.local",
            "namespaces": [{"name": "job-operator", "certificateAuthorityData": "eA=="}],
        }
    ],
}


@pytest.mark.modelzoo
@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_one_line_after_everything_else_worked(ready):
    require_modelzoo()
    file = ready.with_name("config_v2")
    file.write_text(json.dumps(NOBODY))
    done = subprocess.run(
        [sys.executable, "-m", "cerebras_jais.cli", "fit", ready.name, "--backend", "csx", "--num-csx", "2"],
        cwd=ready.parent,
        env={**environment(), "CSCONFIG_PATH": str(file)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: no connection to the cluster: ")
    assert f"the address is from {file}" in last
    assert "muP configured run" in done.stdout + done.stderr  # the model was built
