"""The suites name tasks that lm_eval has, and docs/evaluation.md lists where the data of each come from.

Contract: every column of the published scores has its row; every task of the suites is lm_eval's or this project's, and
the data sets that they read are those of the table, each with the command that fetches it.
"""

import csv
from importlib.resources import files
from pathlib import Path

import pytest

from cerebras_jais.evaluate.suites import data_sets, tasks_of

FOLDERS = (
    *("mmlu", "race", "hellaswag", "piqa", "super_glue", "siqa", "arc", "openbookqa", "winogrande", "truthfulqa"),
    *("crows_pairs", "arabicmmlu", "arabic_leaderboard_complete", "okapi"),
)
DOCUMENT = Path(__file__).parents[3] / "docs" / "evaluation.md"


def rows(package, name):
    return list(csv.DictReader((files(package) / name).read_text(encoding="utf-8").splitlines()))


def test_every_published_column_has_its_row():
    published = {(row["language"], row["benchmark"]) for row in rows("cerebras_jais.catalog", "published_scores.csv")}
    ours = [row for row in rows("cerebras_jais.evaluate", "suites.csv") if row["column"]]
    assert {(row["language"], row["column"]) for row in ours} == {pair for pair in published if pair[1] != "Average"}
    assert {row["class"] for row in ours} == {"comparable", "close", "proxy", "none"}
    assert all((row["class"] == "none") == (not row["task"]) for row in ours)
    assert sum(row["class"] == "comparable" for row in ours) == 12


def test_the_document_lists_every_data_set_with_its_command():
    text = DOCUMENT.read_text(encoding="utf-8")
    for found in data_sets():
        assert f"| `{found.path}` | {', '.join(found.tasks)} | {found.origin} | {found.licence} |" in text
        assert f"\n    {found.fetch}\n" in text


@pytest.mark.slow
def test_the_tasks_are_known_and_read_the_data_sets_of_the_table():
    lm_eval = pytest.importorskip("lm_eval", minversion="0.4.13")
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    from cerebras_jais.evaluate.harness.run import TASKS

    theirs = Path(lm_eval.tasks.__file__).parent  # all its 14,000 files take ten seconds
    index = TaskManager(
        include_path=[str(TASKS), *(str(theirs / name) for name in FOLDERS)], include_defaults=False
    ).task_index

    def paths(name):
        entry = index[name]
        config = {} if entry.yaml_path is None else load_yaml(entry.yaml_path, resolve_func=False)
        members = sorted(entry.tags) if entry.yaml_path is None else config.get("task")
        if isinstance(members, list):
            for member in members:
                yield from paths(member if isinstance(member, str) else member["task"])
        else:
            yield (config.get("dataset_kwargs") or {}).get("path") or config["dataset_path"]

    of_task = {task: found.path for found in data_sets() for task in found.tasks}
    for task in {*tasks_of("card"), *tasks_of("arabic")}:
        assert set(paths(task)) == {of_task[task]}
    assert set(tasks_of("demo")) <= set(index)
