"""A verdict is read strictly, and as FastChat reads it: judgements made of pieces whose meaning is known."""

import random

import pytest

from cerebras_jais.evaluate.judge.verdicts import fastchat_choice, fastchat_rating, read_choice, read_rating

PROSE = [
    "Assistant A is better.",
    "A tie [C]? No.",
    "جواب أفضل",
    "Point [1] holds.",
    "[[D]]",
    "[[a]]",
    "[A]",
    "[[ B ]]",
    "\n",
]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("[[A]]", "A"),
        ("Both are good.\n\n[[C]]", "C"),
        ("**[[B]]**", "B"),
        ("[[B]] and so [[B]]", "B"),
        ("Not [[A]], rather [[B]]", None),
        ("[A]", None),
        ("[[a]]", None),
        ("[[AB]]", None),
        ("[[tie]]", None),
        ("", None),
    ],
)
def test_a_comparison_has_the_one_verdict_that_it_names(text, choice):
    assert read_choice(text) == choice


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[5]]", 5),
        ("[[7.5]]", 7.5),
        ("[[10]]", 10),
        ("[[8]] ... [[8.0]]", 8),
        ("[[1]] to [[10]], so [[4]]", None),
        ("[[0]]", None),
        ("[[10.5]]", None),
        ("[[11]]", None),
        ("[[-3]]", None),
        ("[[8/10]]", None),
        ("[[٥]]", None),
        ("[[rating]]", None),
        ("[5]", None),
        (f"[[{'9' * 5000}]]", None),
    ],
)
def test_a_rating_is_the_one_number_from_1_to_10_in_double_brackets(text, rating):
    assert read_rating(text) == rating


def pieces(generator, verdicts):
    """A judgement of some prose with these verdicts in this order in it."""
    text = generator.choices(PROSE, k=generator.randint(0, 4))
    places = sorted(generator.randint(0, len(text)) for _ in verdicts)
    for place, verdict in reversed(list(zip(places, verdicts, strict=True))):
        text.insert(place, verdict)
    return " ".join(text)


def test_fastchats_parsing_of_500_comparisons_and_ours():
    generator = random.Random(3)
    for _ in range(500):
        letters = generator.choices("ABC", k=generator.choice([0, 1, 1, 1, 2, 3]))
        text = pieces(generator, [f"[[{letter}]]" for letter in letters])
        # FastChat asks for A before B before C, wherever they stand.
        assert fastchat_choice(text) == min(letters, default=None)
        assert read_choice(text) == (letters[0] if len(set(letters)) == 1 else None)


def test_fastchats_parsing_of_500_ratings_and_ours():
    generator = random.Random(4)
    prose_number = {"Point [1] holds.": 1.0}
    for _ in range(500):
        numbers = [generator.choice(["3", "7.5", "10", "0", "12", "8."]) for _ in range(generator.choice([0, 1, 1, 2]))]
        text = pieces(generator, [f"[[{number}]]" for number in numbers])
        # The first in double brackets; without one, the first in single ones, which a list's "[1]" is.
        expected = float(numbers[0]) if numbers else next((v for k, v in prose_number.items() if k in text), None)
        assert fastchat_rating(text) == expected
        ours = {float(number) for number in numbers if number != "8."}
        only = ours.pop() if len(ours) == 1 else None
        assert read_rating(text) == (only if only is not None and 1 <= only <= 10 else None)


@pytest.mark.parametrize(
    ("text", "rating"), [("[[07]]", None), ("[[00]]", 0), ("[[0.5]]", 0.5), ("[[٥]]", None), ("[3,4]", None)]
)
def test_numbers_that_end_fastchat_with_an_error_are_left_out(text, rating):
    assert fastchat_rating(text) == rating
