"""Files of answers: JSON lines, one to a question, each with the question and the model beside the answer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import write_text
from cerebras_jais.data.clean.languages import detect_language
from cerebras_jais.data.documents import Line, count_words, lines_of, object_in
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.questions import Question, question_in, text_in
from cerebras_jais.files import shown_path

_EXAMPLE = '{"question_id": 1, "turns": ["..."], "questions": "vicuna-en", "model": "...", "answer": "..."}'


@dataclass(frozen=True)
class Answered:
    """The answer of a model to a question.

    Attributes:
        questions: name of the set.
        model: name of the model.
        finish: why the answer ended; "length" where it was cut, "refused" where an endpoint refused the question.
    """

    question: Question
    questions: str
    model: str
    text: str
    finish: str | None = None

    @property
    def words(self) -> int:
        """Words that hold a letter or digit."""
        return count_words(self.text)

    @property
    def language(self) -> str:
        """By its letters; the language of the question where it has none, as an answer in figures."""
        return detect_language(self.text) if any(map(str.isalpha, self.text)) else self.question.language


def about(question: Question, questions: str, model: str) -> dict[str, Any]:
    """The keys of a line of answers that do not come from the model."""
    reference = {} if question.reference is None else {"reference": [question.reference]}
    return {
        "questions": questions,
        "question_id": question.id,
        "category": question.category,
        "language": question.language,
        "turns": [question.text],
        **reference,
        "model": model,
    }


def write_answers(output: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of answers, whole or not at all; one that is there is replaced."""
    write_text(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_answers(file: Path) -> list[Answered]:
    """The answers of one model to one set of questions. Raises UserError, which names the line."""
    found: dict[int | str, Answered] = {}
    for entry, line in _objects(file, _EXAMPLE):
        question = question_in(entry, line.source)
        questions, model, text = (entry.get(name) for name in ("questions", "model", "answer"))
        if not (isinstance(questions, str) and isinstance(model, str) and isinstance(text, str)):
            raise UserError(f"{line.source}: is no answer as `cerebras-jais answers` writes it: {_EXAMPLE}")
        answered = Answered(question, questions, model, text, entry.get("finish_reason"))
        first = next(iter(found.values()), answered)
        if question.id in found:
            raise UserError(f"{line.source}: answers question {question.id!r} again; give one answer to each")
        if (first.model, first.questions) != (answered.model, answered.questions):
            raise UserError(f"{line.source}: is of another model or set of questions than the first line; divide them")
        found[question.id] = answered
    if not found:
        raise UserError(f"{shown_path(file)}: has no answers; `cerebras-jais answers` makes such files")
    return list(found.values())


def same_questions(a: Sequence[Answered], b: Sequence[Answered], names: tuple[Path, Path]) -> list[Answered]:
    """The answers of `b` in the order of `a`. Raises UserError where they answer different questions."""
    by_id = {answered.question.id: answered for answered in b}
    asked = {answered.question.id: answered.question.text for answered in a}
    differing = [key for key in (*asked, *by_id) if key not in asked or key not in by_id]
    differing += [key for key, text in asked.items() if key in by_id and by_id[key].question.text != text]
    if differing:
        raise UserError(
            f"{shown_path(names[0])} and {shown_path(names[1])}: answer different questions "
            f"({a[0].questions}, {b[0].questions}; question {differing[0]!r} is the first that differs); compare "
            "answers to the same set"
        )
    return [by_id[key] for key in asked]


def with_references(answers: Sequence[Answered], file: Path | None) -> list[Answered]:
    """The answers with the reference answers of a file in FastChat's format beside their questions."""
    found: dict[Any, str] = {}
    for entry, line in _objects(file, '{"question_id": 61, "choices": [{"turns": ["..."]}]}') if file else ():
        try:
            identity, turns = entry["question_id"], entry["choices"][0]["turns"]
            found[identity] = text_in(turns, "turns", line.source)
        except (LookupError, TypeError):
            raise UserError(f"{line.source}: is no reference answer of FastChat's format") from None
    return [
        replace(answered, question=replace(answered.question, reference=found[answered.question.id]))
        if answered.question.id in found
        else answered
        for answered in answers
    ]


def _objects(file: Path, example: str) -> Iterator[tuple[dict[str, Any], Line]]:
    for line in lines_of(file):
        entry = object_in(line, example)
        if entry is not None:
            yield entry, line
