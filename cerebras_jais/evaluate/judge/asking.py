"""What a judge is asked about answers, with FastChat's prompts, and the record of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cerebras_jais.endpoint.asking import Question as Asked
from cerebras_jais.endpoint.asking import answer_in, ask_all, question
from cerebras_jais.endpoint.client import Endpoint, EndpointError
from cerebras_jais.endpoint.record import Record, keys_in, open_record
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.answers import Answered
from cerebras_jais.evaluate.judge.judgements import JUDGEMENTS, Judgement, Kind, Said, read_judgements, write_judgements
from cerebras_jais.evaluate.judge.questions import DATA
from cerebras_jais.files import shown_path

RECORD = "asked.jsonl"
OPTIONS: Mapping[str, Any] = {"temperature": 0, "max_tokens": 2048}
"""Of each request, as FastChat has them (fastchat/llm_judge/common.py)."""
_PROMPTS = {"pairwise": ("pair-v2", "pair-math-v1"), "single": ("single-v1", "single-math-v1")}
# Assumed, for the estimate: characters of a token in Latin and in other letters, tokens of a judgement.
_CHARACTERS_PER_TOKEN, _OTHER_CHARACTERS_PER_TOKEN, _JUDGEMENT_TOKENS = 4.0, 2.5, 250


@dataclass(frozen=True)
class Judging:
    """What is to be judged: the answers of one model, or of two to the same questions in the same order."""

    kind: Kind
    answers: tuple[Sequence[Answered], ...]
    models: tuple[str, ...]
    judge: str
    options: Mapping[str, Any]

    def asked(self) -> list[tuple[Asked, ...]]:
        """For each question what the judge is asked: once, or once for each order of the two answers."""
        return [self._asked(row) for row in zip(*self.answers, strict=True)]

    def prompt_of(self, answered: Answered) -> str:
        """The name of the prompt: the one with a reference where the question needs one and has it."""
        question = answered.question
        return _PROMPTS[self.kind][question.needs_reference and question.reference is not None]

    def without_reference(self) -> int:
        """Questions that are judged without the reference answer that they need."""
        return sum(
            answered.question.needs_reference and answered.question.reference is None for answered in self.answers[0]
        )

    def _asked(self, row: tuple[Answered, ...]) -> tuple[Asked, ...]:
        prompt = judge_prompts()[self.prompt_of(row[0])]
        texts = [answered.text for answered in row]
        orders = [texts] if self.kind == "single" else [texts, texts[::-1]]
        about = row[0].question
        found = []
        for order in orders:
            names = ("answer",) if self.kind == "single" else ("answer_a", "answer_b")
            user = prompt["prompt_template"].format(
                question=about.text, ref_answer_1=about.reference, **dict(zip(names, order, strict=True))
            )
            messages = [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": user}]
            found.append(question(self.judge, messages, self.options, f"question {about.id}"))
        return tuple(found)


@dataclass(frozen=True)
class Estimate:
    """What a judging would cost: its requests, those that are left, and their tokens, assumed by their letters."""

    requests: int
    left: int
    question_tokens: int
    answer_tokens: int

    def price(self, question: float, answer: float) -> float:
        """At prices of a million tokens."""
        return (self.question_tokens * question + self.answer_tokens * answer) / 1e6


@cache
def judge_prompts() -> dict[str, dict[str, str]]:
    """FastChat's prompts by name, with `system_prompt` and `prompt_template`."""
    lines = (DATA / "judge_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return {prompt["name"]: prompt for prompt in map(json.loads, lines)}


def estimate(judging: Judging, folder: Path) -> Estimate:
    """Count what is left to ask; nothing is asked or written."""
    known = keys_in(folder / RECORD)
    requests = {asked.key: asked for row in judging.asked() for asked in row}
    left = [asked for key, asked in requests.items() if bytes.fromhex(key) not in known]
    return Estimate(
        len(requests), len(left), sum(_tokens(asked.body.decode()) for asked in left), len(left) * _JUDGEMENT_TOKENS
    )


def _tokens(text: str) -> int:
    latin = sum(map(str.isascii, text))
    return round(latin / _CHARACTERS_PER_TOKEN + (len(text) - latin) / _OTHER_CHARACTERS_PER_TOKEN)


def judge(
    judging: Judging, endpoint: Endpoint, folder: Path, concurrency: int, progress: Callable[[int], None]
) -> list[Judgement]:
    """Ask what is left and write the folder's judgements, in the order of the questions.

    Args:
        folder: of the record of what was asked and the judgements; made where it is not there.
        progress: called with the number of requests answered so far.

    Raises EndpointError for an endpoint that cannot be used, UserError for a folder that holds something else.
    """
    _check_folder(folder, judging)
    folder.mkdir(parents=True, exist_ok=True)
    rows = judging.asked()
    with open_record(folder / RECORD) as record:
        ask_recorded(endpoint, [asked for row in rows for asked in row], record, folder / RECORD, concurrency, progress)
        found = [
            _judgement(judging, answers, [said_in(record[asked.key]) for asked in row])
            for answers, row in zip(zip(*judging.answers, strict=True), rows, strict=True)
        ]
    write_judgements(folder, found)
    return found


def ask_recorded(
    endpoint: Endpoint,
    questions: Sequence[Asked],
    record: Record,
    path: Path,
    concurrency: int,
    progress: Callable[[int], None],
) -> int:
    """Ask what the record does not have, and return how many that were.

    What the endpoint refuses is recorded, unless it refuses everything.
    """
    number = 0
    for number, _ in enumerate(ask_all(endpoint, questions, record, concurrency, keep_refusals=True), 1):
        progress(number)
    refusals = [record[asked.key].get("refused") for asked in questions]
    if all(refusals):
        raise EndpointError(
            f"{refusals[0]}, and every other; once it is mended remove {shown_path(path)}, and ask again"
        )
    return number


def said_in(entry: Mapping[str, Any]) -> Said:
    """What an entry of the record holds."""
    answer = answer_in(entry)
    return Said("", refused=str(entry["refused"])) if answer is None else Said(answer.text, answer.finish)


def _judgement(judging: Judging, answers: tuple[Answered, ...], said: Sequence[Said]) -> Judgement:
    first = answers[0]
    return Judgement(
        judging.kind,
        first.questions,
        judging.judge,
        judging.prompt_of(first),
        first.question.id,
        first.question.category,
        first.question.language,
        judging.models,
        tuple(answered.words for answered in answers),
        tuple(answered.language for answered in answers),
        tuple(answered.finish for answered in answers),
        tuple(said),
    )


def _check_folder(folder: Path, judging: Judging) -> None:
    if not (folder / JUDGEMENTS).exists():
        return
    old = read_judgements(folder)[0]
    new = judging.answers[0][0].questions
    known = (old.kind, old.judge, old.questions, sorted(old.models))
    if known != (judging.kind, judging.judge, new, sorted(judging.models)):
        raise UserError(
            f"{shown_path(folder)}: holds the judgements of {' and '.join(old.models)} on {old.questions} by "
            f"{old.judge}; choose another --output"
        )
