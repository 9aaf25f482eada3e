"""Answers with a known quality, judges that go by it, and commands over both."""

import json
import re

from click.testing import CliRunner

from cerebras_jais.cli import cli
from cerebras_jais.endpoint.client import Endpoint
from cerebras_jais.evaluate.judge.answers import about, read_answers
from cerebras_jais.evaluate.judge.asking import OPTIONS, Judging, judge
from cerebras_jais.evaluate.judge.questions import read_questions
from tests.scripted_endpoint import asked_in, completion

_ANSWERS = re.compile(r"\[The Start of Assistant(?: [AB])?'s Answer\]\n(.*?)\n\[The End of Assistant", re.S)


def write_answers(file, model, texts, of_set="vicuna-en"):
    """A file of answers to the first questions of a set."""
    questions = read_questions(of_set)[: len(texts)]
    lines = [
        {**about(question, of_set, model), "answer": text, "finish_reason": "stop"}
        for question, text in zip(questions, texts, strict=True)
    ]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return file


def qualities(asked):
    """The number in each answer that a judge is shown, in order."""
    return [int(re.search(r"\d+", answer)[0]) for answer in _ANSWERS.findall(asked)]


def fair(body, attempt=0):
    """Prefers the answer of the greater number; rates by the number."""
    shown = qualities(asked_in(body))
    if len(shown) == 1:
        return completion(f"Fine. Rating: [[{shown[0]}]]")
    a, b = shown
    return completion(f"I compared both. [[{'A' if a > b else 'B' if b > a else 'C'}]]")


def first(body, attempt=0):
    """Prefers whatever stands first."""
    return completion("The first. [[A]]")


def judging(kind, *files, judge="m"):
    answers = tuple(map(read_answers, files))
    return Judging(kind, answers, tuple(each[0].model for each in answers), judge, OPTIONS)


def judged(url, folder, kind, *files, concurrency=4):
    """Have files judged without waits between tries."""
    found = judge(judging(kind, *files), Endpoint(url, backoff=0.001), folder, concurrency, lambda _: None)
    return list(found)


def run(*words):
    return CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
