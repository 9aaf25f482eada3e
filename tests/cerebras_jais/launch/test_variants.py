"""One-edit variants of a YAML for a CS system: what the check says, with no Model Zoo installed.

Contract: each is judged as its row of the table says, and the docs list just those that the check refuses and the Model
Zoo takes. (tests/cerebras_jais/modelzoo/test_judgement.py holds the Model Zoo's half of the table.)
"""

import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.commands.config import check_file
from cerebras_jais.commands.fit import fit as fit_command
from cerebras_jais.config.modelzoo_only import WEIGHT_DECAY_SCHEDULES
from cerebras_jais.config.trainer import ConfigError, ModelZooAloneError, parse_trainer
from cerebras_jais.errors import UserError
from cerebras_jais.launch.checks import notes_of
from tests.cerebras_jais.launch.test_checks import rows_under
from tests.cerebras_jais.launch.variants import GOOD, NOTED, REFUSED, ROOT, VARIANTS, base, judge, same_model
from tests.cerebras_jais.train.examples import train
from tests.marks import slow_except

WRITTEN = ROOT / "tests" / "cerebras_jais" / "launch" / "trainer_params"


def written(variant, folder, backend="CSX"):
    """A variant as a file, for a backend."""
    document = variant.document()
    trainers = document["trainer"]
    for trainer in [each["trainer"] for each in trainers] if isinstance(trainers, list) else [trainers]:
        trainer["init"]["backend"] = {"backend_type": backend}
    path = folder / "variant.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def test_there_are_forty_variants_or_more_all_different_and_the_base_is_good(tmp_path):
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS) >= 40
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(base()), encoding="utf-8")
    assert judge(path) == GOOD


# `make check` sees all of them in tests/golden/variants.txt.
@pytest.mark.parametrize("variant", slow_except(VARIANTS[::10], VARIANTS), ids=lambda v: v.name)
def test_a_variant_is_judged_as_the_table_says(variant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "variant.yaml"
    path.write_text(yaml.safe_dump(variant.document(), sort_keys=False), encoding="utf-8")
    assert judge(path) == variant.check


def test_the_docs_list_just_the_variants_that_the_check_alone_refuses(tmp_path):
    documented = {row[0]: row for row in rows_under("Stricter than the Model Zoo")}
    stricter = [variant for variant in VARIANTS if variant.check == REFUSED and variant.modelzoo]
    assert set(documented) == {variant.name for variant in stricter}
    assert not [variant for variant in VARIANTS if variant.check != REFUSED and not variant.modelzoo]
    path = tmp_path / "variant.yaml"
    for variant in stricter:
        path.write_text(yaml.safe_dump(variant.document(), sort_keys=False), encoding="utf-8")
        _, key, said, why = documented[variant.name]
        (problem,), _ = check_file(path)
        assert key.strip("`") in problem
        assert said in problem
        assert why


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.check == NOTED], ids=lambda v: v.name)
@pytest.mark.parametrize("backend", slow_except(["cpu"], ["cpu", "gpu"]))
def test_what_only_the_model_zoo_does_is_refused_on_a_cpu_or_gpu_before_anything_starts(variant, backend, tmp_path):
    asides = [aside for config in read_trainer_yaml(written(variant, tmp_path)) for aside in config.aside]
    here = [aside for aside in asides if not aside.keys[0].startswith("validate")]  # `fit` reads no other section
    for named in ("CSX", backend.upper()):
        path = written(variant, tmp_path, named)
        result = CliRunner().invoke(fit_command, [str(path), "--backend", backend, "--dry-run"])
        if not here:
            assert result.exception is None
            continue
        assert isinstance(result.exception, UserError)
        assert "is not supported on a CPU or GPU" in str(result.exception)
        assert "`cerebras-jais zoo fit`" in str(result.exception)
        assert here[0].what in str(result.exception)
    problems, _ = check_file(path)
    assert bool(problems) == bool(here)


def test_a_note_names_the_key_and_the_phase():
    phase = base()["trainer"]
    phase["init"]["callbacks"].append({"Lora": {"lora_params": {"r": 4}}})
    (one,) = notes_of([parse_trainer(phase)])
    assert one.startswith("trainer.init.callbacks[1].Lora: the callback Lora is left to the Model Zoo")
    (two,) = notes_of([parse_trainer(base()["trainer"]), parse_trainer(phase, at=("trainer", 1, "trainer"))])
    assert two.startswith("trainer[1].trainer.init.callbacks[1].Lora:")


def test_the_python_interface_refuses_it_too(tmp_path):
    section = base()["trainer"]
    section["init"]["callbacks"].append({"Lora": {"lora_params": {"r": 4}}})
    with pytest.raises(UserError, match="the callback Lora is not supported on a CPU or GPU"):
        train(parse_trainer(section), model_dir=tmp_path)


# ---- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "value", "hint"),
    [
        ("schedulers", [{"ExponentalLR": {}}], "did you mean 'ExponentialLR'?"),
        ("schedulers", [{"Constant_WD": {}}], "did you mean 'ConstantWD'?"),
        ("optimizer", {"Addam": {}}, "did you mean 'Adam'?"),
        ("callbacks", [{"SaveCheckpointStates": {}}], "did you mean 'SaveCheckpointState'?"),
        ("callbacks", [{"Lorra": {}}], "did you mean 'Lora'?"),
        ("schedulers", [{"Warmup": {}}], "the Model Zoo 2.10 has no similar name"),
        ("optimizer", {"Shampoo": {}}, "the Model Zoo 2.10 has no similar name"),
    ],
)
def test_a_hint_is_a_spelling_of_what_was_written(keys, value, hint):
    section = base()["trainer"]
    section["init"][keys] = value
    with pytest.raises(ConfigError) as caught:
        parse_trainer(section)
    assert hint in str(caught.value)


@pytest.mark.parametrize("name", ["ExponentialLR", *WEIGHT_DECAY_SCHEDULES])
def test_a_schedule_of_the_model_zoo_is_not_taken_for_a_slip_of_another(name):
    section = base()["trainer"]
    section["init"]["schedulers"] = [{name: {}}]
    config = parse_trainer(section)
    assert [aside.what for aside in config.aside] == [f"the schedule {name}"]


# ---- outside the family ----------------------------------------------------------------------------------------------

OUTSIDE = [
    {"pos_scaling_type": "llama3", "pos_scaling_extra_args": {"low_freq_factor": 1.0}, "pos_scaling_factor": 32.0},
    {"pos_scaling_type": "yarn"},
    {"attention_sliding_window_length": 4096},
    {"attention_sink_tokens": 512},
    {"attention_chunk_size": 1024},
    {"moe_params": {"num_experts": 8, "top_k": 2}},
    {"memory_tokens_config": {"memory_tokens_enabled": True}},
    {"attention_qk_norm_layer": "rmsnorm"},
    {"final_logit_softcapping": 30.0},
    {"nonlinearity": "gelu"},
    {"norm_type": "biasless-layernorm"},
    {"position_embedding_type": "learned"},
    {"initializer": "xavier_uniform"},
    {"name": "mistral"},
]


@pytest.mark.parametrize("keys", OUTSIDE, ids=lambda keys: next(iter(keys)))
def test_a_key_outside_the_family_is_named_as_such_and_its_removal_is_not_advised(keys):
    section = base()["trainer"]
    section["init"]["model"] |= keys
    with pytest.raises(ModelZooAloneError) as caught:
        parse_trainer(section)
    message = str(caught.value)
    assert message.startswith(f"trainer.init.model.{next(iter(keys))}: ")
    assert "is outside the family of this project" in message
    assert "remove" not in message
    assert "zoo fit" in message


def test_keys_outside_the_family_are_taken_at_their_defaults():
    section = base()["trainer"]
    plain = parse_trainer(section).init.model
    section["init"]["model"] |= {
        "pos_scaling_type": "linear",
        "pos_scaling_extra_args": {"low_freq_factor": 1.0},
        "attention_sliding_window_length": None,
        "moe_params": {"num_experts": 0, "top_k": 1},
        "memory_tokens_config": {"memory_tokens_enabled": False},
        "top_p": 0.9,
    }
    assert parse_trainer(section).init.model == plain


# ---- trainer_params.yaml, which the Model Zoo's trainer writes -------------------------------------------------------


@pytest.mark.parametrize("which", ["given", "whole"])
def test_what_the_model_zoo_writes_of_a_run_is_good_and_says_the_same(which, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = WRITTEN / f"{which}.yaml"
    assert judge(path) == GOOD
    (config,) = read_trainer_yaml(path)
    (ours,) = read_trainer_yaml(ROOT / "configs" / "tiny" / "jais.yaml")
    assert same_model(config, ours)
    assert config.init.schedulers[0].computed_milestones == ours.init.schedulers[0].computed_milestones
    result = CliRunner().invoke(fit_command, [str(path), "--dry-run"])
    assert result.exception is None
    assert "parameters  2,174,092" in result.output
