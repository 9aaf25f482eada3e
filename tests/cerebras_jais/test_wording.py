"""Contract: a phrase names what is near or known, one thing is in the singular, and whole numbers read as runs."""

import pytest

from cerebras_jais.wording import counted, number_runs, suggestion

MANY = [f"key_{number}" for number in range(13)]


@pytest.mark.parametrize(
    ("key", "known", "phrase"),
    [
        ("hiddensize", ["hidden_size", "heads"], "did you mean 'hidden_size'?"),
        ("Heads", ["hidden_size", "heads"], "did you mean 'heads'?"),
        ("x", ["b", "a"], "known: a, b"),
        ("x", MANY, "nothing is near"),
        ("x", [], "nothing is near"),
    ],
)
def test_a_suggestion_is_the_misspelled_name_or_the_few_known_ones(key, known, phrase):
    assert suggestion(key, known, otherwise="nothing is near") == phrase


@pytest.mark.parametrize(("number", "phrase"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (21, "21 rows")])
def test_one_is_in_the_singular(number, phrase):
    assert counted(number, "row") == phrase


@pytest.mark.parametrize(
    ("numbers", "runs"),
    [([], []), ([3], ["3"]), ([5, 0, 2, 1], ["0-2", "5"]), ([1, 1, 2], ["1-2"]), ([0, 2, 4], ["0", "2", "4"])],
)
def test_numbers_that_follow_one_another_are_one_run(numbers, runs):
    assert number_runs(numbers) == runs
