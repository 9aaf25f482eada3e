"""The words of a judge as a verdict: strictly, and as FastChat reads them.

Strictly, a text has a verdict if it names exactly one, as often as it likes. FastChat's rules (its file
fastchat/llm_judge/common.py) are: a comparison is A if "[[A]]" stands anywhere, else B, else C; a rating is the first
number in double brackets, else the first in single ones, whatever its size.
"""

from __future__ import annotations

import re
from typing import Literal

from cerebras_jais.ranges import Range

Choice = Literal["A", "B", "C"]
"""The first answer of the prompt, the second, or neither."""
RATINGS = Range(1, 10)
_CHOICE = re.compile(r"\[\[([ABC])\]\]")
_RATING = re.compile(r"\[\[([0-9]{1,4}(?:\.[0-9]{1,4})?)\]\]")
# In FastChat's patterns a number may end with its point, and digits are those of any script, of which it reads ours.
_FASTCHAT_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


def read_choice(text: str) -> Choice | None:
    """The one verdict of a comparison; None where it has none, or several that differ."""
    found = set(_CHOICE.findall(text))
    return found.pop() if len(found) == 1 else None


def read_rating(text: str) -> float | None:
    """The one rating of an answer, from 1 to 10; None where there is none, or several that differ."""
    found = {float(number) for number in _RATING.findall(text)}
    rating = found.pop() if len(found) == 1 else None
    return rating if rating is not None and RATINGS.holds(rating) else None


def fastchat_choice(text: str) -> Choice | None:
    """The verdict of a comparison by FastChat's rule; None is its "error"."""
    choices: tuple[Choice, ...] = ("A", "B", "C")
    return next((choice for choice in choices if f"[[{choice}]]" in text), None)


def fastchat_rating(text: str) -> float | None:
    """The rating by FastChat's rule; None is its -1, and where it ends with an error: a number such as 07."""
    for pattern in _FASTCHAT_RATINGS:
        if (match := pattern.search(text)) is not None:
            number = match[1]
            whole = number.partition(".")
            literal = number.isascii() and (whole[1] or number == "0" * len(number) or not number.startswith("0"))
            return float(number) if literal else None
    return None
