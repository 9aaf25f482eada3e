"""The card's tables.

Contract: every published row and average is shown as the card has it; the averages are of all columns, and of no other
set; the cells that are likely copies are those of two pairs of rows, and no others.
"""

import itertools
from statistics import fmean

import pytest

from cerebras_jais.catalog.models import MODELS, find_model
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.report.card import average, card_rows, columns, copied_cells, published_model

HALF_A_TENTH = 0.05 + 1e-9  # what rounding to a tenth takes away
LANGUAGES = ("ar", "en")


def averages_fit(language, names):
    """Whether the card's averages of all models are the means of these columns, within rounding."""
    return all(abs(m.scores[language]["Average"] - average(m.scores[language], names)) <= HALF_A_TENTH for m in MODELS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_published_average_is_the_plain_mean_of_all_columns_and_of_no_others(language):
    names = [column.name for column in columns(language)]
    assert averages_fit(language, names)
    assert averages_fit(language, None)
    for left_out in (1, 2):
        for some in itertools.combinations(names, len(names) - left_out):
            assert not averages_fit(language, some)


@pytest.mark.parametrize(("language", "number"), [("ar", 14), ("en", 11)])
def test_the_rows_are_those_of_the_card(language, number):
    rows = list(card_rows(language))
    assert len(rows) == 20
    for model, mean, scores in rows:
        assert len(scores) == number
        assert {*scores, mean} == set(model.scores[language].values())
        assert abs(fmean(scores) - mean) <= HALF_A_TENTH
    assert [name for name in rows[0][0].scores[language] if name != "Average"] == [c.name for c in columns(language)]


def test_some_numbers_of_the_card_are_where_it_has_them():
    by_name = {model.name: (mean, scores) for model, mean, scores in card_rows("ar")}
    assert by_name["jais-family-13b"] == (
        46.1,
        [34.0, 30.3, 42.7, 58.3, 40.5, 45.5, 57.3, 68.1, 63.1, 41.6, 35.3, 31.4, 41.0, 56.1],
    )


def test_the_likely_copies_are_flagged_in_both_rows_and_nothing_else_is():
    small = ("jais-family-2p7b", "jais-family-1p3b")
    adapted = ("jais-adapted-70b-chat", "jais-adapted-7b-chat")
    found = copied_cells("ar")
    assert set(found) == {*small, *adapted}
    for one, other in (small, small[::-1]):
        shared = [column.name for column in columns("ar") if column.name not in ("ArabicMMLU", "EXAMS")]
        assert found[one] == dict.fromkeys(shared, other)
    for one, other in (adapted, adapted[::-1]):
        assert found[one] == {"agqa": other, "agrc": other}
    assert copied_cells("en") == {}


def test_a_flagged_cell_is_equal_in_the_two_rows():
    for name, cells in copied_cells("ar").items():
        for column, other in cells.items():
            assert find_model(name).scores["ar"][column] == find_model(other).scores["ar"][column]


def test_the_classes_of_the_columns_are_those_that_the_data_allow():
    kinds = {language: {c.name: c.kind for c in columns(language)} for language in LANGUAGES}
    assert set(kinds["en"].values()) == {"comparable"}
    assert [name for name, kind in kinds["ar"].items() if kind == "comparable"] == ["ArabicMMLU"]
    assert [name for name, kind in kinds["ar"].items() if kind == "close"] == ["EXAMS"]
    without = {"LitQA", "agqa", "agrc", "Situated QA", "CrowS-Pairs"}
    assert {name for name, kind in kinds["ar"].items() if kind == "none"} == without
    for column in (*columns("ar"), *columns("en")):
        assert (column.task is None) == (column.kind == "none")


def test_a_model_that_the_card_has_not_is_answered_with_the_20():
    with pytest.raises(UserError) as refused:
        published_model("jais-13b")
    assert all(model.name in str(refused.value) for model in MODELS)
    assert published_model("Jais-Family-13B") is find_model("jais-family-13b")
