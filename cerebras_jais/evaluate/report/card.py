"""The evaluation tables of the family's model card: their columns, numbers and averages, and what may be a slip of it.

The numbers are the catalog's (`Model.scores`): zero-shot, in percent, made "with LM-harness" of a release, with prompts
and in a precision that the card does not name. Which task of lm_eval a column may be compared with is in suites.csv of
`evaluate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from statistics import fmean

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.catalog.types import Model
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.suites import read_rows

SOURCE = "the model card of the Jais family: zero-shot, LM-harness, its release and prompts not stated"
LANGUAGES = {"ar": "Arabic", "en": "English"}
AVERAGE = "Average"
CLASSES = {
    "comparable": "the same data and harness",
    "close": "the same data in another form",
    "proxy": "another translation of the data",
    "none": "the data is not published",
}
"""How far a column of the card can be compared with a task of lm_eval; only the first is given a verdict."""
_RUN = 2  # columns next to each other that two rows share before they are taken for a copy


@dataclass(frozen=True)
class Column:
    """A column of the card's table, and the task of lm_eval nearest to it.

    Attributes:
        language: ar or en.
        kind: one of CLASSES.
        task: None where the column has none, as `metric` and `shots`.
    """

    name: str
    language: str
    kind: str
    task: str | None
    metric: str | None
    shots: int | None
    note: str


def published_model(name: str) -> Model:
    """The model of the card of a name, in any case. Raises UserError that lists them all."""
    for model in MODELS:
        if model.name == name.lower():
            return model
    raise UserError(f"--against {name}: not a model of the card; choose one of {', '.join(m.name for m in MODELS)}")


@cache
def columns(language: str) -> tuple[Column, ...]:
    """The columns of the card's table of a language, in its order, without the average."""
    return tuple(
        Column(
            row["column"],
            language,
            row["class"],
            row["task"] or None,
            row["metric"] or None,
            int(row["num_fewshot"]) if row["num_fewshot"] else None,
            row["note"],
        )
        for row in read_rows("suites.csv")
        if row["column"] and row["language"] == language
    )


def average(scores: Mapping[str, float], names: Iterable[str] | None = None) -> float:
    """The mean of a row's columns as the card has it: each counts once, bias columns too. The card rounds to a tenth.

    Args:
        scores: of one model and language, by column; its own average is not read.
        names: the columns to take; all by default, as in the card.
    """
    taken = [name for name in scores if name != AVERAGE] if names is None else list(names)
    return fmean(scores[name] for name in taken)


@cache
def copied_cells(language: str) -> dict[str, dict[str, str]]:
    """Cells of the card that are likely copies: by model and column, the model whose row has the same numbers.

    Two models of different sizes whose rows agree to the digit in neighbouring columns were hardly both measured. Which
    of the two rows is the copied one cannot be known, so both are named, with all the columns in which they agree.
    """
    found: dict[str, dict[str, str]] = {}
    names = [column.name for column in columns(language)]
    sizes = {model.name: model.parameters for model in MODELS}
    for one, other in permutations(MODELS, 2):
        if sizes[one.name] == sizes[other.name]:
            continue
        equal = [one.scores[language][name] == other.scores[language][name] for name in names]
        if _longest_run(equal) >= _RUN:
            shared = {name: other.name for name, same in zip(names, equal, strict=True) if same}
            found.setdefault(one.name, {}).update(shared)
    return found


def card_rows(language: str) -> Iterator[tuple[Model, float, Sequence[float]]]:
    """Every model with its published average and columns, in the order of `columns`."""
    for model in MODELS:
        scores = model.scores[language]
        yield model, scores[AVERAGE], [scores[column.name] for column in columns(language)]


def _longest_run(flags: Iterable[bool]) -> int:
    longest = length = 0
    for flag in flags:
        length = length + 1 if flag else 0
        longest = max(longest, length)
    return longest
