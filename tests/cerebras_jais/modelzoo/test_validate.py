"""The Model Zoo's own validation takes every config of ours, and what it refuses is said with file, line and key.

Contract: `cszoo config validate` (the function it runs, and once the command itself) passes every file under configs/
when the data directories exist; `modelzoo_problems` agrees with it, whether they exist or not.
"""

import functools
import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from cerebras_jais.catalog.stock_names import with_stock_names
from cerebras_jais.catalog.yaml_files import find_preset, preset_yaml, presets
from cerebras_jais.config.callbacks import HARNESS_ARGUMENTS, WITHOUT_EFFECT
from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.evaluate.suites import tasks_of
from tests.cerebras_jais.launch.broken import BROKEN, CONFIGS

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]


@pytest.fixture(scope="module")
def modelzoo():
    """The Model Zoo with the plugin in it; its types of trainers are made once for each model, for time's sake."""
    pytest.importorskip("cerebras.modelzoo")
    from cerebras_jais.modelzoo import plugin

    plugin.register()
    from cerebras.modelzoo.trainer import validate

    made = validate.construct_trainer_config
    validate.construct_trainer_config = functools.cache(made)
    yield validate
    validate.construct_trainer_config = made


def make_data_directories(tree):
    """An empty directory for each data_dir of a YAML tree."""
    if isinstance(tree, dict):
        named = tree.get("data_dir", [])
        for folder in named if isinstance(named, list) else [named]:
            Path(folder).mkdir(parents=True, exist_ok=True)
        for value in tree.values():
            make_data_directories(value)
    elif isinstance(tree, list):
        for value in tree:
            make_data_directories(value)


@pytest.mark.parametrize("preset", presets(), ids=lambda r: r.name)
def test_cszoo_config_validate_takes_every_config(preset, modelzoo, tmp_path, monkeypatch):
    from cerebras.modelzoo.trainer.validate_configs import validate_config

    file = CONFIGS / f"{preset.name}.yaml"
    monkeypatch.chdir(tmp_path)
    make_data_directories(yaml.safe_load(file.read_text(encoding="utf-8")))
    validate_config(str(file))


@pytest.mark.parametrize(
    "name", ["jais-family-30b-16k/phases", "jais-family-590m/pretrain", "jais-adapted-70b-chat/chat"]
)
def test_it_takes_them_under_the_stock_names_too(name, modelzoo, tmp_path, monkeypatch):
    from cerebras.modelzoo.trainer.validate_configs import validate_config

    file = CONFIGS / f"{name}.yaml"
    monkeypatch.chdir(tmp_path)
    text = with_stock_names(read_yaml(file))
    Path("stock.yaml").write_text(text, encoding="utf-8")
    make_data_directories(yaml.safe_load(text))
    validate_config("stock.yaml")


@pytest.mark.parametrize("name", ["jais-family-590m/pretrain", "jais-adapted-70b/phases"])
def test_it_takes_one_with_its_evaluation_harness(name, modelzoo, tmp_path, monkeypatch):
    from cerebras.modelzoo.trainer.validate_configs import validate_config

    monkeypatch.chdir(tmp_path)
    text = preset_yaml(find_preset(name), ",".join(tasks_of("card")))
    Path("evaluated.yaml").write_text(text, encoding="utf-8")
    make_data_directories(yaml.safe_load(text))
    validate_config("evaluated.yaml")


def test_the_arguments_of_its_evaluation_harness_are_those_that_are_known_here(modelzoo):
    from cerebras.modelzoo.trainer.extensions.eleuther.eval_harness_utils import EleutherCLIArgs
    from cerebras.modelzoo.trainer.extensions.eleuther.lm_eval_harness import EleutherEvalHarness

    assert set(HARNESS_ARGUMENTS) == {field.name for field in fields(EleutherCLIArgs)}
    named = set(inspect.signature(EleutherEvalHarness).parameters) - {"dataloader_args"}
    assert named <= set(WITHOUT_EFFECT["EleutherEvalHarness"])


def test_the_tasks_of_the_card_are_known_to_its_lm_eval(modelzoo):
    from lm_eval.tasks import TaskManager

    assert set(tasks_of("card")) <= set(TaskManager().task_index)


def test_the_command_itself_takes_one(modelzoo, tmp_path):
    file = CONFIGS / "tiny" / "jais.yaml"
    for folder in ("train", "held_out/ar", "held_out/en"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    command = [sys.executable, "-m", "cerebras_jais.cli", "zoo", "config", "validate", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_what_it_refuses_is_said_with_file_line_and_key(modelzoo, tmp_path):
    from cerebras_jais.modelzoo.validate import modelzoo_problems

    (case,) = (case for case in BROKEN if case.name == "unknown half type")
    file = tmp_path / "broken.yaml"
    file.write_text(case.text(), encoding="utf-8")
    source = read_yaml(file)
    problems = [source.message(problem) for problem in modelzoo_problems(source)]
    assert problems
    assert problems[0].startswith(f"{file}, line {case.line()}: trainer.{case.key}: the Model Zoo says: ")
