"""`cerebras-jais models` and `cerebras-jais config` say what the catalog and the configs say.

Contract: `models` lists all 20 with parameters, context, tokens and provenance; `config` lists, shows, compares, writes
and checks, each with a JSON form where a program would read it; wrong input is one line that says what to do.
"""

import json

import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.cli import cli
from cerebras_jais.errors import UserError
from tests import published
from tests.cerebras_jais.catalog.test_yaml_files import CONFIGS


def said(*words, status=0):
    """The standard output of a command line that ends with this status."""
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.exception is None, done.exception
    assert (done.return_value or 0) == status
    return done.stdout


def refused(*words):
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert isinstance(done.exception, UserError)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_models_lists_all_twenty_with_parameters_context_and_provenance():
    lines = {line.split()[0]: line for line in said("models").splitlines() if line.startswith("jais-")}
    assert set(lines) == {model.name for model in MODELS}
    for name, row in published.MODELS.items():
        assert f"{row.parameters:,}" in lines[name]
        assert f"{row.context:,}" in lines[name]
        if not name.endswith("-chat"):
            assert f"{row.tokens[3]:,}B" in lines[name]
    rows = json.loads(said("models", "--json"))
    assert len(rows) == 20
    assert all(set(row["provenance"]) <= {"published", "derived", "assumed"} for row in rows)


def test_a_model_is_shown_with_where_each_value_comes_from():
    details = json.loads(said("models", "jais-adapted-70b-chat", "--json"))
    assert details["values"]["phases.chat.rates.peak_lr"] == {
        "value": 2.0e-05,
        "origin": "published",
        "why": "card of jais-adapted-70b-chat",
    }
    assert details["scores"]["ar"]["ArabicMMLU"] == 66.8
    assert "8/3 of the hidden size" in said("models", "jais-family-1p3b")
    assert "did you mean 'jais-family-13b'" in refused("models", "jais-family-13")


def test_config_list_and_show_give_what_is_checked_in():
    names = [row["config"] for row in json.loads(said("config", "list", "--json"))]
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.glob("[!d]*/*.yaml")}
    assert set(names) == files
    assert said("config", "show", "tiny/jais") == (CONFIGS / "tiny" / "jais.yaml").read_text(encoding="utf-8")


def test_config_diff_names_what_differs_and_nothing_else():
    assert said("config", "diff", "tiny/jais", str(CONFIGS / "tiny" / "jais.yaml")) == ""
    found = json.loads(said("config", "diff", "jais-adapted-7b/stage-1", "jais-adapted-7b/stage-2", "--json", status=1))
    keys = [entry["key"] for entry in found]
    assert "trainer.init.model.frozen_parameters" in keys
    assert "trainer.init.model.hidden_size" not in keys
    assert "trainer.init.loop.max_steps: 3,576 -> 5,722" in said(
        "config", "diff", "jais-adapted-7b/stage-1", "jais-adapted-7b/stage-2", status=1
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1e-5", "0.00001", True),
        ("'1e-5'", "0.00001", True),  # what PyYAML, and so the Model Zoo, makes of 1e-5
        ("1", "1.0", True),
        ("[1e-5, 1]", "[0.00001, 1.0]", True),
        ("1e-5", "1e-6", False),
        ("true", "1", False),  # a trainer takes neither for the other
        ("[true]", "[1]", False),
        ("'true'", "true", False),
        ("'01'", "'1'", False),
        ("a", "1", False),
        ("null", "0", False),
        ("[1, 2]", "[1]", False),
    ],
)
def test_config_diff_compares_values_as_a_trainer_takes_them(one, other, same, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("a.yaml", one), ("b.yaml", other)):
        (tmp_path / name).write_text(f"trainer:\n  init:\n    x: {value}\n")
    for pair in (("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")):
        printed = said("config", "diff", *pair, status=0 if same else 1)
        assert printed.startswith("" if same else "trainer.init.x: ")
        assert bool(printed) != same


def test_config_diff_refuses_a_key_given_twice(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("trainer:\n  init:\n    seed: 1\n    seed: 2\n")
    assert refused("config", "diff", str(file), "tiny/jais").startswith(
        f"{file}, line 4: trainer.init.seed is given twice"
    )


@pytest.mark.parametrize("text", ["model: {}\n", "[1, 2]\n", "trainer: []\n"])
def test_config_diff_refuses_what_is_no_trainer_yaml(tmp_path, text):
    file = tmp_path / "other.yaml"
    file.write_text(text)
    assert refused("config", "diff", "tiny/jais", str(file)).startswith(f"{file}")
    assert "trainer" in refused("config", "diff", str(file), "tiny/jais")


def test_config_write_gives_a_file_and_does_not_replace_one(tmp_path):
    target = tmp_path / "new" / "mine.yaml"
    said("config", "write", "jais-family-590m", "--output", str(target))
    assert target.read_bytes() == (CONFIGS / "jais-family-590m" / "pretrain.yaml").read_bytes()
    assert "--overwrite" in refused("config", "write", "tiny/jais", "--output", str(target))
    said("config", "write", "tiny/jais", "--output", str(target), "--overwrite")


def test_config_write_stock_changes_the_model_name_and_nothing_else(tmp_path):
    target = tmp_path / "stock.yaml"
    said("config", "write", "jais-family-30b-16k/phases", "--stock", "--output", str(target))
    ours = yaml.safe_load((CONFIGS / "jais-family-30b-16k" / "phases.yaml").read_text(encoding="utf-8"))
    stock = yaml.safe_load(target.read_text(encoding="utf-8"))
    names = [phase["trainer"]["init"]["model"].pop("name") for phase in stock["trainer"]]
    assert names == ["jais"] * 3
    for phase in ours["trainer"]:
        phase["trainer"]["init"]["model"].pop("name")
    assert stock == ours


@pytest.mark.parametrize("name", ["jais-family-590m", "jais-family-30b-16k/phases", "jais-adapted-7b/stage-2"])
def test_config_write_harness_adds_the_callback_to_the_last_trainer_and_nothing_else(name, tmp_path):
    target = tmp_path / "evaluated.yaml"
    said("config", "write", name, "--harness", "card", "--output", str(target))
    assert "ok" in said("config", "check", str(target))
    ours, plain = (yaml.safe_load(text) for text in (target.read_text("utf-8"), said("config", "show", name)))
    last = ours["trainer"][-1]["trainer"] if isinstance(ours["trainer"], list) else ours["trainer"]
    arguments = last["init"]["callbacks"].pop()["EleutherEvalHarness"]
    assert ours == plain
    assert arguments["max_sequence_length"] == last["init"]["model"]["max_position_embeddings"]
    tasks = arguments["eeh_args"]["tasks"].split(",")
    assert len(tasks) == 20
    assert {"mmlu", "arabicmmlu", "truthfulqa_ar_mc2"} <= set(tasks)


@pytest.mark.parametrize("name", ["jais-adapted-7b/stage-1", "jais-adapted-70b/phases"])
def test_config_write_stock_refuses_freezing(name, tmp_path):
    line = refused("config", "write", name, "--stock", "--output", str(tmp_path / "x.yaml"))
    assert "frozen_parameters" in line
    assert "cerebras-jais zoo fit" in line
    assert not list(tmp_path.iterdir())


def test_config_check_ends_with_status_1_where_something_is_wrong(tmp_path):
    good = str(CONFIGS / "jais-adapted-13b" / "phases.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        (CONFIGS / "tiny" / "jais.yaml").read_text(encoding="utf-8").replace("max_steps: 100", "max_steps: 90")
    )
    assert f"{good}: ok" in said("config", "check", good)
    ours, theirs = json.loads(said("config", "check", good, str(bad), "--json", status=1))
    assert ours["problems"] == []
    assert "raise max_steps to 100" in theirs["problems"][0]


def test_config_check_names_the_key_of_a_start_checkpoint_that_cannot_be_read_beside_what_else_is_wrong(tmp_path):
    damaged, file = tmp_path / "checkpoint_30.mdl", tmp_path / "run.yaml"
    damaged.write_bytes(b"no HDF5")
    text = (CONFIGS / "tiny" / "jais.yaml").read_text(encoding="utf-8")
    text = text.replace("\n  fit:\n", f"\n  fit:\n    ckpt_path: {damaged}\n")
    file.write_text(text, encoding="utf-8")
    line = text.splitlines().index(f"    ckpt_path: {damaged}") + 1
    (found,) = json.loads(said("config", "check", str(file), "--json", status=1))
    assert found["problems"][0].startswith(f"{file}, line {line}: trainer.fit.ckpt_path: {damaged}: ")
    # The name of the checkpoint says that the run begins at step 30.
    assert any("schedulers[0]: the schedule takes 100 steps, the run ends after 70" in p for p in found["problems"])
