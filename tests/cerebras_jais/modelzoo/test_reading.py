"""`fit --backend csx` and `zoo fit` ask the same question of a YAML, and do the same with it.

Contract: what only the Model Zoo does is left to it, with a note that names the key; a model outside the family is left
to it whole, which the launch on a cluster does by `zoo fit` itself; under the plugin's names such a model is refused,
and so is what the Model Zoo does not have either.
"""

import pytest
import yaml

from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo import launch as launching
from cerebras_jais.modelzoo.launch import LaunchOptions, launch
from cerebras_jais.modelzoo.reading import read_unless_alone
from tests.cerebras_jais.launch.variants import NOTED, VARIANTS, base
from tests.cerebras_jais.modelzoo.runs import prepare, require_modelzoo, zoo


def write(folder, document):
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def with_model(**keys):
    document = base()
    document["trainer"]["init"]["model"] |= keys
    return document


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.check == NOTED], ids=lambda v: v.name)
def test_a_launch_says_what_was_left_to_the_model_zoo_and_finds_nothing_wrong_in_it(variant, tmp_path, capsys):
    launch(LaunchOptions(str(write(tmp_path, variant.document())), dry_run=True))
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("note  trainer")]
    assert not [line for line in said if line.startswith(f"wrong {tmp_path}")]


def test_a_dry_run_counts_no_accumulated_batches_on_cs_systems(tmp_path, capsys):
    document = base()
    document["trainer"]["init"]["loop"]["grad_accum_steps"] = 4
    launch(LaunchOptions(str(write(tmp_path, document)), dry_run=True))
    out = capsys.readouterr().out
    assert "8 sequences of 128 tokens each" in out
    assert "grad_accum_steps: has no effect on CS systems" in out


@pytest.fixture
def became(monkeypatch):
    """The command line of the process that the launch becomes, once it has."""
    found = []
    monkeypatch.setattr(launching, "require_modelzoo", lambda: None)
    monkeypatch.setattr(launching, "become_zoo", found.append)
    return found


def test_a_model_outside_the_family_is_left_to_zoo_fit_with_the_options_of_the_command_line(tmp_path, became, capsys):
    path = write(tmp_path, with_model(attention_sliding_window_length=64))
    cluster = {"num_csx": 2, "mount_dirs": ["/a", "/b"], "job_labels": ["k=v"]}
    launch(LaunchOptions(str(path), model_dir="d", checkpoint="c.mdl", cluster=cluster, only="compile_only"))
    said = "fit FILE --target_device CSX --compile_only --model_dir d --checkpoint_path c.mdl --num_csx 2"
    (words,) = became
    assert words == (*said.replace("FILE", str(path)).split(), "--mount_dirs", "/a", "/b", "--job_labels", "k=v")
    assert "note: not checked here, the Model Zoo trains it by its own rules" in capsys.readouterr().err


def test_a_dry_run_of_it_starts_nothing(tmp_path, became):
    launch(LaunchOptions(str(write(tmp_path, with_model(final_logit_softcapping=30.0))), dry_run=True))
    assert became == []


def test_an_option_that_cszoo_does_not_have_is_refused_with_the_key_to_write(tmp_path, became):
    path = write(tmp_path, with_model(attention_sliding_window_length=64))
    with pytest.raises(UserError, match=r"no option for max_steps; give trainer\.init\.loop\.max_steps in the file"):
        launch(LaunchOptions(str(path), max_steps=3))
    with pytest.raises(UserError, match=r"give trainer\.init\.backend\.cluster_config\.num_workers_per_csx"):
        launch(LaunchOptions(str(path), cluster={"num_workers_per_csx": 1}))
    assert became == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (with_model(name="jais_family", attention_sliding_window_length=64), "outside the family"),
        (with_model(hiden_size=3), "did you mean 'hidden_size'"),
    ],
    ids=["plugin", "misspelt"],
)
def test_what_the_model_zoo_does_not_have_and_other_models_under_the_plugins_names_are_refused(
    document, words, tmp_path, became
):
    path = write(tmp_path, document)
    with pytest.raises(UserError, match=words):
        read_unless_alone(read_yaml(path))
    with pytest.raises(UserError, match=words):
        launch(LaunchOptions(str(path)))
    assert became == []


@pytest.mark.modelzoo
def test_what_was_set_aside_is_judged_by_the_model_zoo_before_a_cluster_is_asked(tmp_path, capsys):
    require_modelzoo()
    document = base()
    document["trainer"]["init"]["callbacks"].append({"SaveCheckpointState": {"kk": 2}})
    path = write(tmp_path, document)
    launch(LaunchOptions(str(path), dry_run=True))
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"wrong {path}")]
    assert wrong
    assert all("trainer.init.callbacks[1].SaveCheckpointState" in line for line in wrong)
    assert all("the Model Zoo says: " in line for line in wrong)


# ---- the real one ----------------------------------------------------------------------------------------------------


@pytest.mark.modelzoo
@pytest.mark.slow
def test_zoo_fit_trains_what_the_reference_path_does_not_do_and_says_what_nobody_judged(tmp_path):
    require_modelzoo()
    path = prepare(tmp_path, "jais.yaml", steps=4, batch_size=4)
    document = yaml.safe_load(path.read_text())
    init = document["trainer"]["init"]
    init["optimizer"] = {"Adam": {"weight_decay": 0.1}}
    init["callbacks"] = [{"SaveCheckpointState": {"k": 2}}]
    init["checkpoint"] = {"steps": 1}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    output = zoo(tmp_path, "fit", path.name)
    assert "note: trainer.init.optimizer.Adam: the optimizer Adam is left to the Model Zoo" in output
    assert "note: trainer.init.callbacks[0].SaveCheckpointState" in output
    assert "Training completed successfully" in output


@pytest.mark.modelzoo
@pytest.mark.slow
def test_zoo_fit_trains_a_model_outside_the_family_by_the_model_zoos_rules_alone(tmp_path):
    require_modelzoo()
    path = prepare(tmp_path, "adapted.yaml", steps=2, batch_size=4)
    document = yaml.safe_load(path.read_text())
    init = document["trainer"]["init"]
    init["model"] |= {
        "name": "llama",
        "pos_scaling_type": "llama3",
        "pos_scaling_factor": 8.0,
        "pos_scaling_extra_args": {
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    output = zoo(tmp_path, "fit", path.name)
    assert "note: not checked here, the Model Zoo trains it by its own rules" in output
    assert "pos_scaling_type: 'llama3' is outside the family of this project" in output
    assert "Training completed successfully" in output
