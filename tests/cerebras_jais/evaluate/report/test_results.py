"""Results of lm_eval, read.

Contract: numbers, errors, counts, versions, digests and settings are those of the files, of groups too; several files
of one model are one run; what is not lm_eval's is refused in one line that names the file. The files made by hand here
have the form of those that lm_eval itself writes.
"""

import json
import os
import subprocess
import sys

import pytest

from cerebras_jais.catalog.models import find_model
from cerebras_jais.evaluate.report.results import ResultsError, read_run, with_own_names
from cerebras_jais.evaluate.report.samples import pick_samples
from tests.cerebras_jais.evaluate.report.examples import Results, card_run, choice, sha


def test_a_task_is_read_with_everything_that_says_how_it_was_made(tmp_path):
    results = Results("org/some-model").task("boolq", "acc", 0.6, 3270, shots=0)
    run = read_run(results.write(tmp_path / "a"))
    assert (run.name, run.parameters, run.precision) == ("org/some-model", 1_300_000_000, "bfloat16")
    task = run.tasks["boolq"]
    assert task.metrics["acc"].value == 0.6
    assert task.metrics["acc"].error == results.found["results"]["boolq"]["acc_stderr,none"]
    assert (task.count, task.total, task.shots, task.version, task.template) == (3270, 3270, 0, "1.0", None)
    assert (task.digest, task.harness) == (sha("boolq"), "0.4.13")


def test_a_group_has_the_leaves_below_its_groups_and_their_questions(tmp_path):
    run = read_run(card_run(find_model("jais-family-13b").scores).write(tmp_path))
    group = run.tasks["arabicmmlu"]
    leaves = {"arabicmmlu_biology_high_school", "arabicmmlu_civics_high_school"}
    assert set(group.parts) == leaves
    assert set(group.groups) == {"arabicmmlu_stem", "arabicmmlu_social_science"}
    assert (group.count, group.total) == (14575, 14575)
    assert group.digest == sha("".join(sorted(map(sha, leaves))))
    assert len(group.samples) == 2
    assert run.inner == leaves | set(group.groups)


def test_a_limit_a_template_examples_and_a_missing_error_are_read(tmp_path):
    results = Results().task("boolq", "acc", 0.5, 100, total=3270, shots=5, error="N/A")
    results.found["chat_template_sha"] = sha("template")
    task = read_run(results.write(tmp_path)).tasks["boolq"]
    assert (task.count, task.total, task.shots, task.template) == (100, 3270, 5, sha("template"))
    assert task.metrics["acc"].error is None


def test_of_several_filters_none_counts_else_the_first(tmp_path):
    results = Results().task("gsm", "exact_match", 0.5)
    found = results.found["results"]["gsm"]
    found["exact_match,strict"], found["f1,strict"], found["f1,loose"] = 0.1, 0.2, 0.3
    metrics = read_run(results.write(tmp_path)).tasks["gsm"].metrics
    assert {name: (metric.value, metric.filter) for name, metric in metrics.items()} == {
        "exact_match": (0.5, "none"),
        "f1": (0.2, "strict"),
    }


def test_files_of_one_model_are_one_run_and_the_later_result_of_a_task_counts(tmp_path):
    Results(date=2.0).task("boolq", "acc", 0.7).write(tmp_path / "m", "2026-01-02T00-00-00.0")
    Results(date=1.0).task("boolq", "acc", 0.6).task("race", "acc", 0.5).write(tmp_path / "m", "2026-01-03T00-00-00.0")
    run = read_run(tmp_path)
    assert {name: task.metrics["acc"].value for name, task in run.tasks.items()} == {"boolq": 0.7, "race": 0.5}
    assert run.notes == ("boolq was evaluated more than once; the last result counts",)


def test_a_release_on_this_machine_is_called_by_the_name_of_its_folder(tmp_path):
    assert read_run(Results("/srv/models/jais-1p3b").task("race", "acc", 0.5).write(tmp_path)).name == "jais-1p3b"


def test_models_that_are_called_alike_have_their_folders_in_their_names(tmp_path):
    runs = [read_run(Results("same").task("race", "acc", 0.5).write(tmp_path / name)) for name in ("a", "b")]
    assert [run.name for run in with_own_names(runs)] == [f"same ({tmp_path / name})" for name in ("a", "b")]
    with pytest.raises(ResultsError, match="given twice"):
        with_own_names([runs[0], runs[0]])


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(folder):
    with pytest.raises(ResultsError) as error:
        read_run(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_without_results_is_refused(tmp_path):
    assert "has no results_*.json" in refused(tmp_path)
    assert "is no folder" in refused(tmp_path / "missing")


def test_two_models_in_one_folder_are_refused_with_both_names(tmp_path):
    Results("first").task("race", "acc", 0.5).write(tmp_path / "first")
    Results("second").task("race", "acc", 0.5).write(tmp_path / "second")
    assert "results of two models" in refused(tmp_path)
    assert "first" in refused(tmp_path) and "second" in refused(tmp_path)


def test_one_model_in_two_precisions_is_two_models(tmp_path):
    Results(dtype="torch.float32").task("race", "acc", 0.5).write(tmp_path / "a")
    Results(dtype="torch.bfloat16").task("race", "acc", 0.5).write(tmp_path / "b")
    assert "my-model float32" in refused(tmp_path)


LIGHTEVAL = {"config_general": {}, "results": {"leaderboard|arc|0": {"acc": 0.5}}, "versions": {}}
EARLIER = {"results": {"race": {"acc": 0.5, "acc_stderr": 0.1}}, "versions": {"race": 1}, "config": {}}


@pytest.mark.parametrize(
    "content", [LIGHTEVAL, EARLIER, [], {}, "x"], ids=["lighteval", "0.3", "list", "empty", "text"]
)
def test_results_of_another_format_are_refused(tmp_path, content):
    (tmp_path / "results_1.json").write_text(json.dumps(content), encoding="utf-8")
    said = refused(tmp_path)
    assert "results_1.json" in said
    assert "lm_eval 0.4.13" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found["results"]["race"].update({"acc,none": "high"}), "is no number"),
        (lambda found: found["results"]["race"].update({"acc": 0.5}), "without its filter"),
        (lambda found: found["results"].update(race=3), "is no object"),
        (lambda found: found.update(group_subtasks={"race": 3}), "is no list of names"),
        (lambda found: found["n-samples"]["race"].update(effective=None), "is no number"),
        (lambda found: found.update(model_name=3), "is no text"),
        (lambda found: found.update(date="today"), "is no number"),
        (lambda found: found.update(date=1e300), "is no number"),
        (lambda found: found["n-samples"]["race"].update(original=-1), "is no number"),
        (lambda found: found["results"]["race"].update({"acc,none": 10**400}), "is no number"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_key(tmp_path, change, said):
    results = Results().task("race", "acc", 0.5)
    change(results.found)
    assert said in refused(results.write(tmp_path))


def test_text_that_is_no_json_is_refused_by_its_line(tmp_path):
    (tmp_path / "results_1.json").write_text('{"results": {},\n oops', encoding="utf-8")
    assert "results_1.json:2: not valid JSON" in refused(tmp_path)


def test_groups_that_contain_each_other_come_to_an_end(tmp_path):
    results = Results().task("race", "acc", 0.5)
    results.found["group_subtasks"] = {"race": ["a"], "a": ["race", "b"]}
    task = read_run(results.write(tmp_path)).tasks["race"]
    assert (task.parts, set(task.groups)) == (("b",), {"a", "race"})


# ---- lm_eval itself -------------------------------------------------------------------------------------------------

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "السؤال: {{{{question}}}}\\nالجواب:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 2.5}}
"""
GROUP = """
group: arabicmmlu
task: [leaf_a, leaf_b]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1}
"""


@pytest.mark.slow
def test_what_lm_eval_itself_writes_is_read_and_has_the_form_of_the_examples(tmp_path):
    pytest.importorskip("lm_eval")
    lines = [{"question": f"ما هو {n}؟", "choices": ["أ", "ب", "ج", "د"], "label": n % 4} for n in range(12)]
    data, tasks = tmp_path / "items.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tasks.mkdir()
    for name in ("leaf_a", "leaf_b"):
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=data), encoding="utf-8")
    (tasks / "group.yaml").write_text(GROUP, encoding="utf-8")
    code = (
        "import sys; from lm_eval import simple_evaluate; from lm_eval.tasks import TaskManager\n"
        "from lm_eval.loggers import EvaluationTracker\n"
        "tracker = EvaluationTracker(output_path=sys.argv[2])\n"
        "manager = TaskManager(include_defaults=False, include_path=sys.argv[1])\n"
        "found = simple_evaluate('dummy', tasks=['arabicmmlu'], task_manager=manager, log_samples=True, limit=5,\n"
        "                        evaluation_tracker=tracker)\n"
        "samples = found.pop('samples')\n"
        "tracker.save_results_aggregated(found, samples)\n"
        "for name in ('leaf_a', 'leaf_b'): tracker.save_results_samples(name, samples[name])\n"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tasks), str(tmp_path / "out")]
    subprocess.run(command, check=True, env={**os.environ, **offline}, cwd=tmp_path, capture_output=True)
    run = read_run(tmp_path / "out")
    group = run.tasks["arabicmmlu"]
    assert (group.parts, group.count, group.total) == (("leaf_a", "leaf_b"), 10, 24)
    assert (group.version, group.harness, group.shots, group.template) == ("1", "0.4.13", 0, None)
    leaves = [run.tasks[name] for name in group.parts]
    assert group.metrics["acc"].value == pytest.approx(sum(leaf.metrics["acc"].value for leaf in leaves) / 2)
    assert group.metrics["acc"].error is not None
    picked = pick_samples(group, "acc", 100)
    assert len(picked.right) == round(10 * group.metrics["acc"].value)
    assert len(picked.right) + len(picked.wrong) == 10
    for sample in (*picked.right, *picked.wrong):
        assert sample.prompt.startswith("السؤال: ما هو")
        assert [option.text for option in sample.options] == ["أ", "ب", "ج", "د"]
        assert [option.given for option in sample.options].count(True) == 1
    (written,) = (tmp_path / "out").rglob("results_*.json")
    example = Results().task("x", "acc", 0.5, samples=[choice(0, True)]).group("g", "acc", ["x"], 0.5, 0.1)
    theirs = json.loads(written.read_text(encoding="utf-8"))
    assert set(example.found) <= set(theirs)
    ours = example.found["results"]
    assert set(ours["x"]) == set(theirs["results"]["leaf_a"])
    assert set(ours["g"]) <= set(theirs["results"]["arabicmmlu"])
    (lines_of_a,) = written.parent.glob("samples_leaf_a_*.jsonl")
    line = json.loads(lines_of_a.read_text(encoding="utf-8").splitlines()[0])
    assert set(choice(0, True)) == set(line)
    assert set(choice(0, True)["arguments"]["gen_args_0"]) == set(line["arguments"]["gen_args_0"])
