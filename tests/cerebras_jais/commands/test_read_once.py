"""Each command reads each YAML once and checks it once.

Contract: `config check`, `diff`, `show` and `write`, `fit` with and without `--dry-run`, `fit --backend csx`, `zoo fit`
and the converter's `--config` parse each YAML that they are given one time, and no check of a YAML runs twice. The
first process of `fit --backend csx`, which the launching one replaces, parses nothing.
"""

import json
import os
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.cli import cli
from cerebras_jais.config import yaml_file
from cerebras_jais.launch import checks, phases, surroundings
from cerebras_jais.modelzoo.launch import LaunchOptions, launch
from checkpoint_convert.cli import cli as converter
from tests.cerebras_jais.train.examples import JAIS, trainer_section, write_data, write_yaml
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

MODEL = {**JAIS, "mup_base_filter_size": 32}  # in which no check finds anything, so that every kind of them runs
CHECKS = [check.__name__ for check in checks.CHECKS]
# Of what is checked of a launch as a whole: the module that asks, and the function.
OF_A_LAUNCH = [
    (checks, "phase_problems"),
    (checks, "_schedule_problems"),
    (checks, "_problems_between"),
    (phases, "phase_problems"),
    (surroundings, "check_surroundings"),
    (surroundings, "section_problems"),
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """a.yaml and b.yaml in the working directory, with data, which differ in one key."""
    monkeypatch.chdir(tmp_path)
    write_data(Path("train"), samples=8)
    write_data(Path("held_out"), samples=4)
    for seed, name in enumerate(("a.yaml", "b.yaml")):
        loop = {"max_steps": 13, "eval_frequency": None}
        write_yaml(Path(name), trainer_section(Path(), MODEL, seed=seed, loop=loop))


@pytest.fixture
def counted(files, monkeypatch):
    """How often each file was composed, by its name, and how often each check was called, by that of its function."""
    names = {Path(name).read_text(): name for name in ("a.yaml", "b.yaml")}
    found = Counter()

    class Counting(yaml_file._Loader):
        def __init__(self, text):
            found[names.get(text, "another")] += 1
            super().__init__(text)

    def counting(check):
        def call(*arguments):
            found[check.__name__] += 1
            return check(*arguments)

        return call

    monkeypatch.setattr(yaml_file, "_Loader", Counting)
    monkeypatch.setattr(checks, "CHECKS", [counting(check) for check in checks.CHECKS])
    for module, name in OF_A_LAUNCH:
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    return found


def run(group, command):
    done = CliRunner().invoke(group, command.split(), standalone_mode=False)
    assert done.exception is None, done.exception
    return done


@pytest.mark.parametrize(
    ("command", "read", "checked", "planned"),
    [
        ("config check a.yaml b.yaml", ["a.yaml", "b.yaml"], 2, 2),
        ("config check a.yaml --json", ["a.yaml"], 1, 1),
        ("config diff a.yaml b.yaml", ["a.yaml", "b.yaml"], 0, 0),
        ("config show a.yaml", ["a.yaml"], 0, 0),
        ("config write a.yaml --output new.yaml", ["a.yaml"], 0, 0),
        ("config write a.yaml --stock --output new.yaml", ["a.yaml"], 0, 0),
        ("fit a.yaml --dry-run", ["a.yaml"], 0, 1),
        ("fit a.yaml --backend cpu --max-steps 1", ["a.yaml"], 0, 1),
    ],
)
def test_a_command_parses_each_file_once_and_runs_each_check_once_for_each(command, read, checked, planned, counted):
    """`planned` counts what must hold between phases, which `fit` asks too."""
    run(cli, command)
    assert {name: counted[name] for name in ("a.yaml", "b.yaml") if counted[name]} == dict.fromkeys(read, 1)
    others = [*CHECKS, "_schedule_problems", "_problems_between", "check_surroundings", "section_problems"]
    assert {name: counted[name] for name in others} == dict.fromkeys(others, checked)
    assert counted["phase_problems"] == planned


def test_a_launch_on_cs_systems_parses_once_and_checks_once_in_the_process_that_launches(counted, monkeypatch):
    options = []
    monkeypatch.setattr(os, "execv", lambda file, words: options.append(words[-1]) or sys.exit(0))
    CliRunner().invoke(cli, ["fit", "a.yaml", "--backend", "csx", "--num-csx", "2", "--dry-run"])
    assert not counted
    launch(LaunchOptions(**json.loads(options[0])))
    assert counted["a.yaml"] == 1
    others = [*CHECKS, "_schedule_problems", "_problems_between", "phase_problems"]
    assert {name: counted[name] for name in others} == dict.fromkeys(others, 1)


@pytest.mark.parametrize("command", ["to-hf m.mdl --config a.yaml --output new", "verify m.mdl m.mdl --config a.yaml"])
def test_the_converter_parses_its_config_once(command, counted):
    write_checkpoint(Path("m.mdl"), MODEL, state_of(random_model(MODEL)))
    run(converter, command)
    assert counted["a.yaml"] == 1


@pytest.mark.modelzoo
def test_zoo_fit_parses_once(counted, monkeypatch):
    pytest.importorskip("cerebras.modelzoo")
    from cerebras.modelzoo.cli import utils

    from cerebras_jais.modelzoo import phases as through_modelzoo
    from cerebras_jais.modelzoo import zoo

    given = []
    monkeypatch.setattr(utils, "_args_to_params", lambda args: yaml.safe_load(Path(args.params).read_text()))
    monkeypatch.setattr(through_modelzoo, "run_fit", lambda params, configs, **options: given.append(configs))
    zoo._fit(Namespace(params="a.yaml", seen_args=[]), None)
    assert len(given) == 1
    assert counted["a.yaml"] == 1
