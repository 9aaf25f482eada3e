"""Verdicts.

Contract: the joint error is that of the formula; a verdict is given for a fair comparison alone, and tells chance from
a difference as often as it promises; averages are of the columns that can be compared, on both sides.
"""

import math
from dataclasses import replace

import numpy as np
import pytest

from cerebras_jais.catalog.models import MODELS, find_model
from cerebras_jais.evaluate.report.compare import HIGHER, LOWER, SAME, VERDICTS, compare, joint_error, verdict
from cerebras_jais.evaluate.report.results import ResultsError, read_run
from tests.cerebras_jais.evaluate.report.examples import ENGLISH_TASKS, Results, card_run, sha
from tests.marks import slow_except

MODEL = find_model("jais-family-13b")


def compared(results, folder, against=MODEL):
    return compare(read_run(results.write(folder)), against)


def by_column(comparison, language="en"):
    return {row.column.name: row for row in comparison.rows[language]}


@pytest.mark.parametrize(
    ("difference", "joint", "said"),
    [(1.95, 1.0, SAME), (-1.95, 1.0, SAME), (1.97, 1.0, HIGHER), (-1.97, 1.0, LOWER), (0.0, 0.0, SAME)],
)
def test_two_scores_are_told_apart_beyond_1_96_joint_errors(difference, joint, said):
    assert verdict(difference, joint) == said


def test_the_joint_error_adds_the_variances_of_both_and_of_rounding():
    ours = 100 * math.sqrt(0.3 * 0.7 / 999)
    theirs = 100 * math.sqrt(0.34 * 0.66 / 999)
    assert joint_error(ours, 34.0, 1000) == pytest.approx(math.sqrt(ours**2 + theirs**2 + 0.01 / 12))


@pytest.mark.parametrize(("accuracy", "questions"), [(0.29, 14575), (0.5, 500), (0.8, 1838)])
def test_two_equal_models_are_told_apart_in_1_of_20_cases(accuracy, questions):
    drawn = np.random.default_rng(7).binomial(questions, accuracy, (2, 20_000)) / questions
    apart = 0
    for ours, theirs in drawn.T:
        error = 100 * math.sqrt(ours * (1 - ours) / (questions - 1))
        published = round(100 * theirs, 1)
        apart += verdict(100 * ours - published, joint_error(error, published, questions)) != SAME
    assert apart / 20_000 == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("model", slow_except(MODELS[:2], MODELS), ids=lambda model: model.name)
def test_the_published_scores_themselves_cannot_be_told_apart_from_the_card(tmp_path, model):
    comparison = compared(card_run(model.scores), tmp_path, model)
    judged = [*by_column(comparison).values(), by_column(comparison, "ar")["ArabicMMLU"]]
    assert [row.judged.verdict for row in judged] == [SAME] * 12
    assert [row.judged.published for row in comparison.rows["ar"]] == list(model.scores["ar"].values())[1:]
    whole = comparison.averages["en"]
    assert whole.whole
    assert whole.judged.published == model.scores["en"]["Average"]
    assert whole.judged.ours == pytest.approx(model.scores["en"]["Average"], abs=0.05 + 1e-9)
    assert whole.judged.verdict == SAME
    part = comparison.averages["ar"]
    assert (part.names, part.whole, part.judged.published) == (("ArabicMMLU",), False, model.scores["ar"]["ArabicMMLU"])


def test_scores_far_from_the_card_are_higher_or_lower(tmp_path):
    for shift, said in ((9.0, HIGHER), (-9.0, LOWER)):
        comparison = compared(card_run(MODEL.scores, shift=shift), tmp_path / said)
        assert {row.judged.verdict for row in comparison.rows["en"]} == {said}
        assert comparison.averages["en"].judged.verdict == said


def test_a_column_of_another_class_has_a_difference_and_no_verdict(tmp_path):
    rows = by_column(compared(card_run(MODEL.scores), tmp_path), "ar")
    assert rows["EXAMS"].judged.verdict == "not judged: the same data in another form"
    assert rows["EXAMS"].judged.difference == pytest.approx(40.0 - 42.7)
    assert rows["Hellaswag"].judged.verdict == "not judged: another translation of the data"
    assert rows["LitQA"].judged.verdict == "not judged: the data is not published"
    assert rows["MMLU"].judged.verdict == "not measured"


@pytest.mark.parametrize(
    ("how", "template", "said"),
    [
        ({"count": 100, "total": 3270}, None, "100 of 3,270 questions"),
        ({"shots": 5}, None, "5 examples shown"),
        ({"shots": None}, None, "examples before the questions"),
        ({"error": "N/A"}, None, "no standard error"),
        ({}, sha("template"), "asked with a chat template"),
    ],
)
def test_conditions_that_the_card_has_not_are_not_judged(tmp_path, how, template, said):
    results = Results().task("boolq", "acc", 0.739, **how)
    results.found["chat_template_sha"] = template
    comparison = compared(results, tmp_path)
    assert by_column(comparison)["BoolQA"].judged.verdict == f"not judged: {said}"
    assert comparison.averages["en"] is None


def test_another_metric_than_the_column_s_is_not_taken_for_it(tmp_path):
    comparison = compared(Results().task("piqa", "acc", 0.7), tmp_path)
    assert by_column(comparison)["PIQA"].judged.verdict == "not measured"
    assert [(other.task.name, other.metric, other.value) for other in comparison.others] == [("piqa", "acc", 70.0)]


@pytest.mark.parametrize(("value", "error"), [(34.2, 0.4), (-0.1, 0.01), (0.5, 3.0)])
def test_a_score_of_a_column_that_is_no_share_is_refused(tmp_path, value, error):
    with pytest.raises(ResultsError, match=r"boolq has acc .* no share between 0 and 1"):
        compared(Results().task("boolq", "acc", value, error=error), tmp_path)


def test_a_number_that_is_likely_a_copy_is_named_and_not_judged(tmp_path, monkeypatch):
    small = find_model("jais-family-2p7b")
    rows = by_column(compared(card_run(small.scores), tmp_path, small), "ar")
    assert rows["Hellaswag"].copied == "jais-family-1p3b"
    assert rows["ArabicMMLU"].copied is None
    copies = {"jais-family-13b": {"BoolQA": "jais-family-6p7b"}}
    monkeypatch.setattr("cerebras_jais.evaluate.report.compare.copied_cells", lambda language: copies)
    comparison = compared(card_run(MODEL.scores), tmp_path)
    said = "not judged: the card has it for jais-family-6p7b too, a likely copy"
    assert by_column(comparison)["BoolQA"].judged.verdict == said
    assert "BoolQA" not in comparison.averages["en"].names


def test_the_average_is_over_the_same_columns_on_both_sides(tmp_path):
    results = Results().task("boolq", "acc", 0.8, 3270).task("race", "acc", 0.4, 1045)
    average = compared(results, tmp_path).averages["en"]
    assert average.names == ("RACE", "BoolQA")
    assert average.judged.ours == pytest.approx(60.0)
    assert average.judged.published == pytest.approx((73.9 + 39.0) / 2)
    errors = [math.sqrt(0.8 * 0.2 / 3269), math.sqrt(0.4 * 0.6 / 1044)]
    assert average.judged.error == pytest.approx(100 * math.hypot(*errors) / 2)


def test_without_a_published_model_scores_stand_alone(tmp_path):
    comparison = compared(card_run(MODEL.scores), tmp_path, None)
    for row in (*comparison.rows["ar"], *comparison.rows["en"]):
        assert row.judged.published is None
        assert row.judged.verdict not in VERDICTS
    assert len(comparison.averages["en"].names) == len(ENGLISH_TASKS)


def test_what_is_no_column_is_shown_apart_and_parts_of_groups_are_not(tmp_path):
    comparison = compared(card_run(MODEL.scores), tmp_path)
    assert [other.task.name for other in comparison.others] == ["demo_ar"]


def test_a_run_without_a_size_is_compared_all_the_same(tmp_path):
    run = replace(read_run(card_run(MODEL.scores).write(tmp_path)), parameters=None, precision=None)
    assert compare(run, MODEL).averages["en"] is not None
