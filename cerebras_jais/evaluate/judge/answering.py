"""A set of questions answered by a model on this machine or behind an endpoint: a record as they are made, then a file.

The record stands beside the file of answers. It keeps what was answered under other settings too, and what was
answered once is not asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cerebras_jais.chat.batch import Prompt, answer_all, key_of
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.endpoint.asking import question as asked_of
from cerebras_jais.endpoint.client import Endpoint
from cerebras_jais.endpoint.record import open_record
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.answers import about, write_answers
from cerebras_jais.evaluate.judge.asking import ask_recorded, said_in
from cerebras_jais.evaluate.judge.questions import Question
from cerebras_jais.evaluate.judge.writers import Writer
from cerebras_jais.files import shown_path

_FASTCHAT_TEMPERATURES = {
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "extraction": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
_FASTCHAT_TEMPERATURE = 0.7


def fastchat_temperature(question: Question) -> float:
    """The temperature of an answer in FastChat (fastchat/llm_judge/common.py, gen_model_answer.py)."""
    return _FASTCHAT_TEMPERATURES.get(question.category, _FASTCHAT_TEMPERATURE)


def record_of(output: Path) -> Path:
    """The record of what was answered, beside the file of answers."""
    return output.with_name(output.name + ".asked")


def check_output(output: Path) -> None:
    """Raise UserError where the file of answers is there and was not made by this, or its folder is not there."""
    if output.exists() and not record_of(output).exists():
        raise UserError(
            f"{shown_path(output)}: exists, and was not made by this; choose another --output, or remove it"
        )
    if not output.parent.is_dir():
        raise UserError(f"{shown_path(output)}: the folder {shown_path(output.parent)} does not exist; create it first")


def answer_here(
    writer: Writer,
    name: str,
    questions: Sequence[Question],
    of_set: str,
    sampling_of: Callable[[Question], Sampling],
    output: Path,
    progress: Callable[[Sequence[Prompt], int], Iterable[Prompt]],
) -> int:
    """Have a model on this machine answer questions, write the file of answers, and return how many were made.

    Args:
        name: of the model, in reports.
        of_set: name of the set of questions.
        sampling_of: how a question is answered.

    Raises UserError for a question that the model cannot read, or an output that something else made.
    """
    check_output(output)
    prompts = []
    for number, question in enumerate(questions, 1):
        try:
            prompts.append(Prompt(number, about(question, of_set, name), writer.prompt_ids(question)))
        except UserError as error:
            raise UserError(f"question {question.id}: {error}") from error
    samplings = [sampling_of(question) for question in questions]
    record = record_of(output)
    made = answer_all(writer, writer.identity, prompts, samplings, record, progress)
    with open_record(record) as answered:
        lines = [
            {**prompt.entry, **_made(answered[key_of(writer.identity, prompt, sampling)])}
            for prompt, sampling in zip(prompts, samplings, strict=True)
        ]
    write_answers(output, lines)
    return made


def _made(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name in ("answer", "finish_reason", "prompt_tokens", "completion_tokens")}


def answer_there(
    endpoint: Endpoint,
    model: str,
    name: str,
    questions: Sequence[Question],
    of_set: str,
    options_of: Callable[[Question], Mapping[str, Any]],
    output: Path,
    concurrency: int,
    progress: Callable[[int], None],
) -> tuple[int, int]:
    """The same by a model behind an endpoint; return, too, how many questions it refused, whose answers are empty.

    An answer belongs to what is sent, the name of the model included, and not to the endpoint.
    """
    check_output(output)
    asked = [
        asked_of(model, [{"role": "user", "content": each.text}], options_of(each), f"question {each.id}")
        for each in questions
    ]
    with open_record(record_of(output)) as record:
        made = ask_recorded(endpoint, asked, record, record_of(output), concurrency, progress)
        entries = [record[each.key] for each in asked]
    lines = []
    for question, entry in zip(questions, entries, strict=True):
        said = said_in(entry)
        answer = {
            "answer": said.text,
            "finish_reason": said.finish if said.refused is None else "refused",
            "prompt_tokens": entry.get("input_tokens"),
            "completion_tokens": entry.get("output_tokens"),
        }
        lines.append({**about(question, of_set, name), **answer})
    write_answers(output, lines)
    return made, sum("refused" in entry for entry in entries)
