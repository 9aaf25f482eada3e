"""The trainer YAML is read whole or refused in one line.

Contract: `read_trainer_yaml` takes every key of the Model Zoo's trainer; a key it does not know, a key given twice, a
value of the wrong kind or values that contradict one another end in a ConfigError that names the file, the line and
the path of the key, and the nearest known key; keys that only concern CS systems are listed by `without_effect_here`.
"""

import glob

import pytest
import yaml

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.config.schedules import CosineDecayLR, LinearLR, SequentialLR
from cerebras_jais.config.trainer import ConfigError, without_effect_here
from cerebras_jais.errors import UserError
from tests.cerebras_jais.train.examples import trainer_section, write_yaml


def changed(tmp_path, **changes):
    """A good YAML with the values at dotted paths under `trainer` changed; None as path deletes nothing."""
    section = trainer_section(tmp_path)
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = section
        for parent in parents:
            target = target[int(parent) if isinstance(target, list) else parent]
        target[last] = value
    return write_yaml(tmp_path / "a.yaml", section)


def error_of(path):
    with pytest.raises(ConfigError) as caught:
        read_trainer_yaml(path)
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_yaml_is_read_with_types_and_defaults(tmp_path):
    (config,) = read_trainer_yaml(changed(tmp_path))
    assert config.init.model.hidden_size == 32
    assert config.init.optimizer.betas == (0.9, 0.95)
    (schedule,) = config.init.schedulers
    assert isinstance(schedule, SequentialLR)
    assert [type(s) for s in schedule.schedulers] == [LinearLR, CosineDecayLR]
    assert schedule.computed_milestones == [3]
    assert config.init.checkpoint.checkpoint_name == "checkpoint_{step}.mdl"
    assert config.fit.autoloads
    assert [v.batch_size for v in config.fit.val_dataloader] == [4]


def test_the_yaml_comes_back_as_it_was(tmp_path):
    path = changed(tmp_path)
    (config,) = read_trainer_yaml(path)
    assert config.to_dict() == yaml.safe_load(path.read_text())


def test_a_list_of_trainers_is_a_list_of_configs(tmp_path):
    section = trainer_section(tmp_path)
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"trainer": [{"trainer": section}, {"trainer": section}]}))
    assert len(read_trainer_yaml(path)) == 2


def test_numbers_in_every_notation_are_numbers(tmp_path):
    path = changed(tmp_path)
    path.write_text(
        path.read_text().replace("eps: 1.0e-08", "eps: 1e-08").replace("weight_decay: 0.1", "weight_decay: 5.0e-2")
    )
    (config,) = read_trainer_yaml(path)
    assert (config.init.optimizer.eps, config.init.optimizer.weight_decay) == (1e-8, 0.05)


@pytest.mark.parametrize(
    ("where", "key", "hint"),
    [
        ("init", "sheduler", "schedulers"),
        ("init__loop", "max_step", "max_steps"),
        ("init__checkpoint", "step", "steps"),
        ("init__precision", "fp16type", "fp16_type"),
        ("init__model", "hiden_size", "hidden_size"),
        ("init__backend", "cluster_confg", "cluster_config"),
        ("init__optimizer__AdamW", "weight_decy", "weight_decay"),
        ("fit__train_dataloader", "batchsize", "batch_size"),
        ("fit", "val_dataloaders", "val_dataloader"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(tmp_path, where, key, hint):
    path = changed(tmp_path, **{f"{where}__{key}": 1})
    message = error_of(path)
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if text.strip().startswith(f"{key}:"))
    assert f"line {line}: trainer.{where.replace('__', '.')}.{key}" in message
    assert f"'{hint}'" in message


def test_an_unknown_key_in_a_schedule_is_named_with_its_place_in_the_list(tmp_path):
    path = changed(tmp_path)
    path.write_text(path.read_text().replace("total_iters: 10", "total_iter: 10"))
    assert "trainer.init.schedulers[0].SequentialLR.schedulers[1].CosineDecayLR.total_iter:" in error_of(path)


def test_a_key_given_twice_is_refused(tmp_path):
    path = changed(tmp_path)
    path.write_text(path.read_text().replace("    seed: 1\n", "    seed: 1\n    seed: 2\n"))
    assert "trainer.init.seed is given twice" in error_of(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init__optimizer": {"SDG": {"learning_rate": 0.1}}}, "optimizer.SDG: unknown optimizer"),
        ({"init__schedulers": [{"PolinomialLR": {}}]}, "schedulers[0].PolinomialLR: unknown schedule; did you mean"),
        ({"init__schedulers": []}, "no learning rate"),
        ({"init__callbacks": [{"TensorBoardLogger": {}}]}, "is a logger; write it under loggers"),
        ({"init__callbacks": [{"KeepNCheckpoint": {"n": 1}}]}, "did you mean 'KeepNCheckpoints'"),
        ({"init__callbacks": [{"KeepNCheckpoints": {"m": 1}}]}, "unknown key 'm'"),
        ({"init__callbacks": [{"GlobalFlags": {"cpu.x": 1}}]}, "flag 'cpu.x'"),
        ({"init__loop": {"max_steps": 0}}, "trainer.init.loop.max_steps"),
        ({"init__loop": {"eval_steps": 1}}, "give one of max_steps, num_steps and num_epochs"),
        ({"init__loop": {"num_steps": 1, "num_epochs": 1}}, "not both"),
        ({"init__loop": {"max_steps": 4, "eval_frequency": 1.5}}, "eval_frequency"),
        ({"init__precision": {"max_gradient_norm": 1.0, "max_gradient_value": 1.0}}, "by norm or by value"),
        ({"init__precision": {"fp16_type": "fp16"}}, "trainer.init.precision.fp16_type"),
        ({"init__seed": "one"}, "trainer.init.seed"),
        ({"init__checkpoint": {"steps": 1, "checkpoint_name": "last.mdl"}}, "must hold {step}, once"),
        ({"init__precision": {"loss_scaling_factor": None}}, "trainer.init.precision.loss_scaling_factor"),
        ({"init__callbacks": [{"KeepNCheckpoints": 3}]}, "must be a mapping with the keys n (got 3)"),
        (
            {"init__callbacks": [{"KeepNCheckpoints": {"n": "two"}}]},
            "n must be a whole number from 1 to 2147483647, or null (got 'two')",
        ),
        ({"init__checkpoint": {"checkpoint_name": "c_{step:04d}.mdl"}}, "must hold {step}, once and without a format"),
        ({"init__checkpoint": {"checkpoint_name": "c_{}_{step}.mdl"}}, "trainer.init.checkpoint.checkpoint_name"),
        ({"init__checkpoint": {"checkpoint_name": "sub/c_{step}.mdl"}}, "name the folder in checkpoint_root"),
        ({"init__loop": {"max_steps": 4, "eval_frequency": float("nan")}}, "trainer.init.loop.eval_frequency"),
        (
            {"init__schedulers": [{"ConstantLR": {"learning_rate": 0.1, "total_iters": -1}}]},
            "schedulers[0].ConstantLR.total_iters",
        ),
        (
            {"init__schedulers__0__SequentialLR__schedulers__0__LinearLR__total_iters": 0},
            "schedulers[0].LinearLR.total_iters",
        ),
        ({"init__model__num_heads": [4]}, "trainer.init.model"),
        ({"init__model__hidden_size": float("inf")}, "trainer.init.model"),
        ({"init__model__extra_attention_params": 3}, "trainer.init.model"),
        ({"fit__train_dataloader__data_processor": "GptHDF5MapProcessor"}, "mean 'GptHDF5MapDataProcessor'"),
        ({"init__model__num_heads": 5}, "line"),
    ],
)
def test_a_value_that_cannot_be_is_refused(tmp_path, changes, words):
    assert words in error_of(changed(tmp_path, **changes))


def test_a_missing_key_is_named(tmp_path):
    section = trainer_section(tmp_path)
    del section["fit"]["train_dataloader"]["batch_size"]
    assert "trainer.fit.train_dataloader.batch_size: missing key" in error_of(write_yaml(tmp_path / "a.yaml", section))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ": the file is empty"),
        ("a: [1", ", line 1: not valid YAML: "),
        ("trainer: 3", ", line 1: trainer: must be a mapping (got 3)"),
        ("trainer:", ", line 1: trainer: must be a mapping (got None)"),
        ("trainer: {init: 3}", ", line 1: trainer.init: must be a mapping (got 3)"),
        ("trainer: []", ", line 1: trainer: the list is empty"),
        ("model: {}", ": the file must hold a mapping with the key 'trainer'"),
        ("trainer:\n- {init: {}}", ", line 2: trainer[0]: each phase must be a mapping with the one key 'trainer'"),
        ("trainer: {}\na: 1", ", line 2: a: unknown key"),
    ],
)
def test_a_file_that_is_no_trainer_yaml_is_refused(tmp_path, text, words):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    assert error_of(path).startswith(f"{path}{words}")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "not_there.yaml: no such file" in error_of(tmp_path / "not_there.yaml")


def test_keys_of_cs_systems_are_taken_and_listed(tmp_path):
    path = changed(
        tmp_path,
        init__backend={"backend_type": "CSX", "cluster_config": {"num_csx": 4}, "compile_dir": "c"},
        init__callbacks=[
            {"ScopedTrainFlags": {"csx.performance.micro_batch_size": "auto"}},
            {"KeepNCheckpoints": {"n": 2}},
            {"CheckLoss": None},
        ],
        init__loggers=[{"WandbLogger": {"project": "p"}}, {"TensorBoardLogger": None}],
        init__autorestart={"max_num_restarts": 3},
        init__model__attention_kernel="optimized_beta",
        fit__train_dataloader__num_workers=2,
    )
    (config,) = read_trainer_yaml(path)
    assert set(without_effect_here(config)) == {
        "trainer.init.backend.cluster_config",
        "trainer.init.backend.compile_dir",
        "trainer.init.autorestart",
        "trainer.init.model.attention_kernel",
        "trainer.init.callbacks: ScopedTrainFlags",
        "trainer.init.loggers: WandbLogger",
        "trainer.fit.train_dataloader.num_workers",
    }
    assert config.callback("KeepNCheckpoints") == {"n": 2}
    assert config.switched_off("CheckLoss")
    assert config.switched_off("TensorBoardLogger")


HARNESS = {
    "eeh_args": {"tasks": "winogrande"},
    "data_dir": "d",
    "batch_size": 4,
    "tokenizer_file_path": "t",
    "eos_id": 0,
}


def test_the_harness_of_the_model_zoo_is_taken(tmp_path):
    other = {**HARNESS, "eos_id": None, "tokenizer_file_path": None, "pretrained_model_name_or_path": "p"}
    path = changed(tmp_path, init__callbacks=[{"EleutherEvalHarness": HARNESS}, {"EleutherEvalHarness": other}])
    (config,) = read_trainer_yaml(path)
    assert "trainer.init.callbacks: EleutherEvalHarness" in without_effect_here(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eeh_arg": {}}, "did you mean 'eeh_args'?"),
        ({"eeh_args": None}, "eeh_args must be a mapping with tasks"),
        ({"eeh_args": {"task": "winogrande"}}, "did you mean 'tasks'?"),
        ({"eeh_args": {"tasks": ["winogrande", "piqa"]}}, "with commas between them"),
        ({"data_dir": None}, "data_dir must be a folder"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"eos_id": None}, "has no tokenizer"),
        ({"tokenizer_file_path": None}, "has no tokenizer"),
    ],
)
def test_what_the_harness_of_the_model_zoo_would_refuse_when_it_is_run_is_refused_before(tmp_path, changes, words):
    message = error_of(changed(tmp_path, init__callbacks=[{"EleutherEvalHarness": {**HARNESS, **changes}}]))
    assert words in message
    assert "EleutherEvalHarness" in message


def test_keys_that_do_nothing_here_are_listed_too(tmp_path):
    path = changed(
        tmp_path,
        init__loggers=[
            {"TensorBoardLogger": {"legacy_event_dirs": True, "summary_dir": "e"}},
            {"ProgressLogger": None},
        ],
        init__model__attention_softmax_fp32=False,
        init__model__loss_weight=0.5,
        validate={"val_dataloader": trainer_section(tmp_path)["fit"]["val_dataloader"]},
        validate_all={"val_dataloaders": []},
    )
    (config,) = read_trainer_yaml(path)
    assert set(without_effect_here(config)) == {
        "trainer.validate",
        "trainer.validate_all",
        "trainer.init.model.attention_softmax_fp32",
        "trainer.init.model.loss_weight",
        "trainer.init.loggers: TensorBoardLogger.legacy_event_dirs",
        "trainer.init.loggers: ProgressLogger",
    }
    assert config.logger("TensorBoardLogger")["summary_dir"] == "e"


@pytest.mark.parametrize(
    "path", sorted(set(glob.glob("configs/**/*.yaml", recursive=True)) - set(glob.glob("configs/data/*"))) or [None]
)
def test_every_shipped_yaml_is_read(path):
    if path is None:
        pytest.skip("no configs in this checkout")
    assert read_trainer_yaml(path)


@pytest.mark.modelzoo
def test_every_jais_yaml_of_the_model_zoo_is_read():
    modelzoo = pytest.importorskip("cerebras.modelzoo")
    folder = next(iter(modelzoo.__path__))
    paths = glob.glob(f"{folder}/models/nlp/jais/configs/*.yaml")
    assert paths
    for path in paths:
        assert read_trainer_yaml(path)
