"""Questions that a model answered right and wrong, as lm_eval kept them."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cerebras_jais.evaluate.report.results import HARNESS, ResultsError, Task
from cerebras_jais.files import MIB, open_regular, parse_json, shown_path

_LONGEST_LINE = 16 * MIB
_LONGEST_PROMPT, _LONGEST_OPTION = 1200, 300  # characters that are shown
# What a metric divides the log-likelihood of an option by.
_LENGTHS: dict[str, Callable[[str], int]] = {
    "acc_norm": len,
    "acc_bytes": lambda text: len(text.encode()),
}


@dataclass(frozen=True)
class Option:
    """A possible answer: its text, whether it is a right one, and whether the model gave it."""

    text: str
    right: bool
    given: bool


@dataclass(frozen=True)
class Sample:
    """One question: the prompt, empty where each option has its own, and the options, a written answer among them."""

    prompt: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Samples:
    """Some questions of a task, answered right and wrong."""

    right: tuple[Sample, ...]
    wrong: tuple[Sample, ...]


def pick_samples(task: Task, metric: str, number: int) -> Samples:
    """Up to `number` questions that were answered right, and as many answered wrong.

    They are chosen by the digests of the documents: the same for every model, in no order that the data has. Only whole
    marks count, so a task that gives parts of a mark, and one in which less is better, has no samples.

    Raises:
        ResultsError: a line that is not what lm_eval writes.
    """
    chosen: dict[bool, list[tuple[str, str, dict[str, Any]]]] = {True: [], False: []}
    if task.higher_is_better.get(metric, True) and metric in task.metrics:
        for place, line in _lines(task):
            mark = line.get(metric)
            if line.get("filter") == task.metrics[metric].filter and mark in (0, 1):
                entry = (str(line.get("doc_hash")), place, line)
                chosen[bool(mark)] = heapq.nsmallest(number, [*chosen[bool(mark)], entry], key=lambda item: item[:2])
    right, wrong = (
        tuple(_sample(place, line, task.delimiter, metric, marked) for _, place, line in chosen[marked])
        for marked in (True, False)
    )
    return Samples(right, wrong)


def _lines(task: Task) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each sample of a task, or of a group's tasks, and where it stands."""
    for path in task.samples:
        shown = shown_path(path)
        with open_regular(path, ResultsError) as file:
            for number, content in enumerate(iter(partial(file.readline, _LONGEST_LINE + 1), b""), 1):
                if len(content) > _LONGEST_LINE:
                    raise ResultsError(f"{shown}:{number}: is longer than {_LONGEST_LINE // MIB} MiB; remove the line")
                try:
                    text = content.decode("utf-8")
                except UnicodeDecodeError as damage:
                    raise ResultsError(f"{shown}:{number}: not UTF-8; evaluate again") from damage
                line = parse_json(text, shown, ResultsError, line=number)
                if not isinstance(line, dict):
                    raise _not_a_sample(f"{shown}:{number}")
                yield f"{shown}:{number}", line


def _sample(place: str, line: dict[str, Any], delimiter: str, metric: str, marked: bool) -> Sample:
    """A line as it is shown. Raises ResultsError for one that has another form."""
    try:
        requests = [(str(each["arg_0"]), each.get("arg_1")) for each in line["arguments"].values()]
        answers, target = line["filtered_resps"], str(line["target"])
        if all(isinstance(text, str) for _, text in requests):
            return _chosen(requests, [float(answer[0]) for answer in answers], target, delimiter, metric, marked)
        written = answers[0] if isinstance(answers[0], str) else str(answers[0][0])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as missing:
        raise _not_a_sample(place) from missing
    options = [Option(_cut(written.strip(), _LONGEST_OPTION), marked, True)]
    if not marked:
        options.append(Option(_cut(target, _LONGEST_OPTION), True, False))
    return Sample(_cut(requests[0][0], _LONGEST_PROMPT), tuple(options))


def _chosen(
    requests: Sequence[tuple[str, Any]],
    likelihoods: Sequence[float],
    target: str,
    delimiter: str,
    metric: str,
    marked: bool,
) -> Sample:
    """A question with options, of which the likeliest is the answer. Where prompts differ, options begin with them."""
    prompts = {prompt for prompt, _ in requests}
    texts = [text.removeprefix(delimiter) for _, text in requests]
    lengths = map(_LENGTHS[metric], texts) if metric in _LENGTHS else [1] * len(texts)
    scores = [score / max(length, 1) for score, length in zip(likelihoods, lengths, strict=True)]
    given = scores.index(max(scores))
    right = _right_options(target, texts, given, marked)
    shared = prompts.pop() if len(prompts) == 1 else None
    if shared is None:
        texts = [prompt + delimiter + text for (prompt, _), text in zip(requests, texts, strict=True)]
    options = (
        Option(_cut(text.strip(), _LONGEST_OPTION), number in right, number == given)
        for number, text in enumerate(texts)
    )
    return Sample(_cut(shared or "", _LONGEST_PROMPT), tuple(options))


def _right_options(target: str, texts: Sequence[str], given: int, marked: bool) -> set[int]:
    """The options that are right; a target is written as a number, a list of numbers or a text, no file says which.

    The first reading that fits the mark is taken; where none does, what the mark itself says.
    """
    numbers = {int(number) for number in re.findall(r"\d+", target)} if re.fullmatch(r"[\d\s,\[\]]+", target) else set()
    for right in (numbers, {number for number, text in enumerate(texts) if text.strip() == target.strip()}):
        if right and right < set(range(len(texts))) and (given in right) == marked:
            return right
    if marked:
        return {given}
    return {1 - given} if len(texts) == 2 else set()


def _cut(text: str, most: int) -> str:
    """A text that is long, without its middle: the question stands at the end of a prompt."""
    return text if len(text) <= most else f"{text[: most // 3]} … {text[-(most - most // 3) :]}"


def _not_a_sample(place: str) -> ResultsError:
    return ResultsError(f"{place}: not a sample as lm_eval {HARNESS} writes it; evaluate with that release")
