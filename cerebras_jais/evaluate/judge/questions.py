"""Questions of one turn: the two sets of the package, and files in FastChat's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebras_jais.data.clean.languages import is_arabic_script
from cerebras_jais.data.documents import lines_of, object_in
from cerebras_jais.errors import UserError
from cerebras_jais.ranges import shown

DATA = Path(__file__).parent / "data"
BUNDLED = {"vicuna-en": "vicuna_en.jsonl", "vicuna-ar": "vicuna_ar.jsonl"}
NOTES = {
    "vicuna-ar": "vicuna-ar: questions of this project over Vicuna's nine categories, not the card's, which were never "
    "published; compare models with one another, not with the card"
}
REFERENCED = ("math", "reasoning", "coding")
"""Categories whose answers are judged beside a reference answer (FastChat, fastchat/llm_judge/common.py)."""
_EXAMPLE = '{"question_id": 1, "category": "writing", "turns": ["..."]}'
_LANGUAGES = ("ar", "en")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: unique in its set.
        category: of the set; decides whether a reference is used.
        language: "ar" or "en", in which it is asked and its answer expected.
        reference: a right answer, where the set has one.
    """

    id: int | str
    category: str
    language: str
    text: str
    reference: str | None = None

    @property
    def needs_reference(self) -> bool:
        """Whether the judge is to be given a reference answer."""
        return self.category in REFERENCED


def read_questions(name: str) -> list[Question]:
    """The questions of a set of the package, or of a file. Raises UserError, which names the line."""
    file = DATA / BUNDLED[name] if name in BUNDLED else Path(name)
    if name not in BUNDLED and not file.exists():
        raise UserError(f"{name}: no such file; give one of JSON lines, or one of {', '.join(BUNDLED)}")
    found: dict[int | str, Question] = {}
    for line in lines_of(file):
        entry = object_in(line, _EXAMPLE)
        if entry is None:
            continue
        question = question_in(entry, line.source)
        if question.id in found:
            raise UserError(f"{line.source}: question_id {question.id!r} is there twice; give each question its own")
        found[question.id] = question
    if not found:
        raise UserError(f"{file}: has no questions; give lines such as {_EXAMPLE}")
    return list(found.values())


def question_in(entry: Mapping[str, Any], where: str) -> Question:
    """The question of a line in FastChat's format; `language` and `reference` are optional.

    Without a language the letters of the question decide. Raises UserError for any other format.
    """
    identity, category, turns = entry.get("question_id"), entry.get("category", "generic"), entry.get("turns")
    if not isinstance(identity, int | str) or isinstance(identity, bool):
        raise UserError(f'{where}: "question_id" must be a number or a name; give lines such as {_EXAMPLE}')
    if not isinstance(category, str):
        raise UserError(f'{where}: "category" must be a name (got {shown(category)})')
    text = text_in(turns, "turns", where)
    language = entry.get("language") or ("ar" if is_arabic_script(text) else "en")
    if language not in _LANGUAGES:
        raise UserError(f'{where}: "language" must be "ar" or "en" (got {shown(language)})')
    reference = entry.get("reference")
    return Question(
        identity, category, language, text, None if reference is None else text_in(reference, "reference", where)
    )


def text_in(turns: Any, key: str, where: str) -> str:
    """The text of a list of one turn; raises UserError for anything else."""
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns) or not turns:
        raise UserError(f'{where}: "{key}" must be a list of one text; questions are lines such as {_EXAMPLE}')
    if len(turns) > 1:
        raise UserError(f'{where}: "{key}" has {len(turns)} turns; only questions of one turn are judged')
    if not turns[0].strip():
        raise UserError(f'{where}: "{key}" is empty; give it a text')
    return str(turns[0])
