"""`config check` finds what is wrong with a YAML before any machine is taken.

Contract: every config of ours is good; each of the broken ones, a small edit of one of ours, is caught by one line that
names file, line, key and remedy; so is a YAML that does not fit the data or tokenizer beside it. docs/config-check.md
lists those that the Model Zoo's own validation lets through, and (where it is installed) it does let through just them.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.catalog.yaml_files import presets
from cerebras_jais.commands.config import check_file
from cerebras_jais.config.cluster import FLAGS, ClusterConfig
from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.launch.checks import rate_notes
from cerebras_jais.launch.phases import plan_phases
from cerebras_jais.modelzoo_version import STOCK_NAME_OF
from tests.cerebras_jais.launch.broken import BROKEN, CONFIGS
from tests.cerebras_jais.train.examples import write_data
from tests.marks import slow_except

DOCS = CONFIGS.parent / "docs" / "config-check.md"

# The backend, what a phase loads from the one before, and whether its first step differs there.
TAKEN_OVER = [
    ("CPU", "model,optimizer,global_step", True),
    ("GPU", "model,optimizer,schedulers,global_step", True),  # a list of phases never takes over the schedules
    ("CPU", "model,global_step", False),
    ("CSX", "model,optimizer,global_step", False),
]


def problems_of(path, tokenizer=None):
    """As `config check` finds them without the Model Zoo."""
    return check_file(path, tokenizer)[0]


# `make check` sees all of them in tests/golden/config-check.txt.
@pytest.mark.parametrize("preset", slow_except(presets()[-1:], presets()), ids=lambda preset: preset.name)
def test_every_config_of_ours_is_good(preset):
    problems, notes = check_file(CONFIGS / f"{preset.name}.yaml")
    assert problems == []
    assert not [note for note in notes if "first step" in note]


@pytest.mark.parametrize(("backend", "states", "noted"), TAKEN_OVER)
def test_phases_whose_rates_do_not_meet_are_noted_where_the_model_zoo_takes_another_first_step(
    backend, states, noted, tmp_path
):
    document = yaml.safe_load((CONFIGS / "tiny" / "context.yaml").read_text(encoding="utf-8"))
    phases = [each["trainer"]["init"] for each in document["trainer"]]
    for phase in phases:
        phase["backend"]["backend_type"] = backend
    second = phases[1]
    second["schedulers"][0]["LinearLR"]["initial_learning_rate"] = 0.006
    second["callbacks"] = [{"LoadCheckpointStates": {"load_checkpoint_states": states}}]
    file = tmp_path / "apart.yaml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    found = list(rate_notes(plan_phases(read_trainer_yaml(file))))
    said = (
        "trainer[1].trainer.init.schedulers[0]: begins at 0.006; on a CPU or GPU the Model Zoo takes the first step at "
        "the rate 0.008, where phase 1 ends"
    )
    assert found == [said] * noted


def test_there_are_forty_broken_ones_or_more_all_different():
    assert len({case.name for case in BROKEN}) == len(BROKEN) >= 40


@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.name)
def test_a_broken_config_is_caught_with_line_key_and_remedy(case, tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text(case.text(), encoding="utf-8")
    problems = problems_of(file)
    assert problems
    assert all("\n" not in problem and problem.startswith(str(file)) for problem in problems)
    place = re.compile(rf"broken\.yaml, line {case.line()}: trainer(\[\d+\]\.trainer)?\.{re.escape(case.key)}( |:)")
    told = [problem for problem in problems if place.search(problem)]
    assert told, problems
    assert any(case.remedy in problem for problem in told), told


@pytest.fixture
def beside_data(tmp_path, monkeypatch):
    """A folder with tiny/jais.yaml and, on demand, its data; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text((CONFIGS / "tiny" / "jais.yaml").read_text(encoding="utf-8"), encoding="utf-8")

    def make(**changes):
        for folder in ("train", "held_out/ar", "held_out/en"):
            given = {"length": 128, "vocabulary": 2048, **(changes if folder == "train" else {})}
            write_data(tmp_path / "data" / folder, samples=8, **given)
        return problems_of("run.yaml")

    return make


def test_data_that_fits_is_good(beside_data):
    assert beside_data() == []


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"length": 64}, "--max-sequence-length 128"),
        ({"vocabulary": 4096}, "vocab_size"),
        ({"packed": True}, "use_vsl"),
    ],
)
def test_data_that_does_not_fit_is_named_with_the_remedy(beside_data, changes, remedy):
    (problem,) = beside_data(**changes)
    assert re.match(r"run\.yaml, line \d+: trainer\.fit\.train_dataloader: ", problem)
    assert remedy in problem


def test_data_of_a_larger_tokenizer_is_refused_though_its_ids_would_fit(beside_data):
    assert beside_data() == []
    Path("data/train/data_params.json").write_text(json.dumps({"processing": {"vocab_size": 4096}}), encoding="utf-8")
    (problem,) = problems_of("run.yaml")
    assert "trainer.init.model.vocab_size: 2048 is smaller than the tokenizer of 4096 entries" in problem


def test_data_that_is_not_here_is_no_problem_but_named():
    problems, notes = check_file(CONFIGS / "jais-family-13b-chat" / "chat.yaml")
    assert problems == []
    assert "data not found, so not checked: data/jais-family/chat-2048/train and 2 more" in notes


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 0, "b": 2047}}, "added_tokens": [{"id": 2048}]}), encoding="utf-8"
    )
    (problem,) = problems_of(CONFIGS / "tiny" / "jais.yaml", tmp_path)
    assert "model.vocab_size: 2048 is smaller than the 2049 entries" in problem


def rows_under(heading):
    """The cells of the rows of the table below a heading of the docs."""
    _, _, below = DOCS.read_text(encoding="utf-8").partition(f"# {heading}\n")
    lines = below.partition("\n#")[0].splitlines()
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines if line.startswith("| ")][2:]


def test_the_docs_list_what_the_model_zoo_lets_through_and_what_is_said_of_it(tmp_path):
    documented = {
        row[0]: (row[1].strip("`"), row[2]) for row in rows_under("What the Model Zoo's validation lets through")
    }
    assert set(documented) == {case.name for case in BROKEN if case.modelzoo}
    file = tmp_path / "broken.yaml"
    for case in BROKEN:
        if case.modelzoo:
            file.write_text(case.text(), encoding="utf-8")
            key, said = documented[case.name]
            assert key == case.key
            assert any(said in problem for problem in problems_of(file)), case.name


@pytest.mark.modelzoo
@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.name)
def test_the_model_zoo_lets_through_just_what_the_docs_list(case, tmp_path):
    pytest.importorskip("cerebras.modelzoo")
    from cerebras_jais.modelzoo.validate import modelzoo_problems

    # Under its own model names where it has them: the plugin's classes refuse more.
    text = case.text()
    if "frozen_parameters" not in text:
        for ours, theirs in STOCK_NAME_OF.items():
            text = re.sub(rf"name: {ours}\b", f"name: {theirs}", text)
    # Read as `cszoo config validate` reads it, which takes the last of two equal keys.
    file = tmp_path / "broken.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(text)), encoding="utf-8")
    found = modelzoo_problems(read_yaml(file))
    assert (not found) == case.modelzoo, found


@pytest.mark.cerebras
def test_flags_and_cluster_options_are_those_of_cerebras_pytorch():
    cstorch = pytest.importorskip("cerebras.pytorch")
    from cerebras.appliance.cluster_config import ClusterConfig as Theirs

    def flags(part, path):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            nested = dataclasses.is_dataclass(value) and not path.endswith("debug.")
            yield from flags(value, f"{path}{field.name}.") if nested else (f"{path}{field.name}",)

    assert set(FLAGS) == set(flags(cstorch.backends.csx, "csx."))
    assert set(ClusterConfig.model_fields) == {field.name for field in dataclasses.fields(Theirs)}
