"""What a judge said: the file of it, and what it means, strictly read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cerebras_jais.atomic import write_text
from cerebras_jais.data.documents import lines_of, object_in
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.verdicts import Choice, read_choice, read_rating
from cerebras_jais.files import shown_path

Kind = Literal["pairwise", "single"]
Outcome = Literal["win", "loss", "tie", "inconsistent", "unreadable"]
"""Of the first model, over both orders: the verdict where they agree."""
JUDGEMENTS = "judgements.jsonl"
_MODELS: Mapping[str, int] = {"pairwise": 2, "single": 1}
WINNERS: tuple[Mapping[Choice, Outcome], ...] = (
    {"A": "win", "B": "loss", "C": "tie"},
    {"A": "loss", "B": "win", "C": "tie"},
)
"""What a verdict means to the first model, with its answer in the first place and in the second."""


@dataclass(frozen=True)
class Said:
    """What the judge said; `refused` is the endpoint's reason where it did not answer."""

    text: str
    finish: str | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Judgement:
    """What a judge said of the answers to one question.

    Attributes:
        kind: of two models or of one.
        questions: name of the set.
        prompt: FastChat's name of the judge's prompt.
        models: one, or two to compare.
        words: of each model's answer; `languages` and `finishes` are of the same.
        said: one, or two: with the first model's answer in the first place, and with the second's.
    """

    kind: Kind
    questions: str
    judge: str
    prompt: str
    question_id: int | str
    category: str
    language: str
    models: tuple[str, ...]
    words: tuple[int, ...]
    languages: tuple[str, ...]
    finishes: tuple[str | None, ...]
    said: tuple[Said, ...]


def choice_of(said: Said) -> Choice | None:
    """The verdict of one order; None where it is not readable."""
    return read_choice(said.text) if why_unreadable("pairwise", said) is None else None


def rating_of(said: Said) -> float | None:
    """The rating of an answer; None where it is not readable."""
    return read_rating(said.text) if why_unreadable("single", said) is None else None


def why_unreadable(kind: Kind, said: Said) -> str | None:
    """Why there is no verdict; None where there is one."""
    if said.refused is not None:
        return "refused by the endpoint"
    if said.finish == "length":
        return "cut at the most tokens"
    found = read_choice(said.text) if kind == "pairwise" else read_rating(said.text)
    return "no single verdict" if found is None else None


def outcome_of(judgement: Judgement) -> Outcome:
    """The outcome of a comparison in both orders."""
    choices = [choice_of(said) for said in judgement.said]
    verdicts = {None if choice is None else WINNERS[order][choice] for order, choice in enumerate(choices)}
    if None in verdicts:
        return "unreadable"
    first, *others = verdicts
    return "inconsistent" if others or first is None else first


def write_judgements(folder: Path, judgements: Sequence[Judgement]) -> None:
    """Write a folder's judgements, one to a line, each with its `verdict`: the outcome, or the rating."""
    lines = []
    for judgement in judgements:
        verdict = outcome_of(judgement) if judgement.kind == "pairwise" else rating_of(judgement.said[0])
        lines.append(json.dumps({**asdict(judgement), "verdict": verdict}, ensure_ascii=False) + "\n")
    write_text(folder / JUDGEMENTS, "".join(lines))


def read_judgements(folder: Path) -> list[Judgement]:
    """The judgements of a folder. Raises UserError where there are none, or they are damaged."""
    file = folder / JUDGEMENTS
    if not file.exists():
        raise UserError(f"{shown_path(folder)}: has no {JUDGEMENTS}; give a folder that `cerebras-jais judge` wrote")
    found = []
    for line in lines_of(file):
        entry = object_in(line, '{"kind": "single", ...}')
        if entry is None:
            continue
        try:
            said = tuple(Said(**said) for said in entry.pop("said"))
            lists = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
            del entry["verdict"]  # it follows from what was said
            judgement = Judgement(**{**entry, **lists, "said": said})
            if not _fits_together(judgement):
                raise TypeError
            found.append(judgement)
        except (LookupError, TypeError) as damage:
            raise UserError(f"{line.source}: is no judgement; judge again, which asks nothing twice") from damage
    if not found:
        raise UserError(f"{shown_path(file)}: is empty; judge again, which asks nothing twice")
    return found


def _fits_together(judgement: Judgement) -> bool:
    each = _MODELS.get(judgement.kind)
    lists = (judgement.models, judgement.words, judgement.languages, judgement.finishes, judgement.said)
    texts = (judgement.questions, judgement.judge, judgement.prompt, judgement.category, judgement.language)
    return (
        all(isinstance(values, tuple) and len(values) == each for values in lists)
        and all(isinstance(words, int) for words in judgement.words)
        and all(isinstance(text, str) for text in (*texts, *judgement.models, *(said.text for said in judgement.said)))
    )
