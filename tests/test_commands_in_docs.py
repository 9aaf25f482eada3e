"""Every command in README.md, in docs/ and in `--help` works as it stands, in the order in which a reader meets them.

Contract: each code block is run in an empty folder, or a comment before it says why not; what a block shows as output
is what its commands print, but for numbers that training gives. Text that has to be fetched is stood in for by the
bundled sample, and training stops after a few steps (stranger.py).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import torch

from cerebras_jais.catalog.yaml_files import find_preset
from cerebras_jais.cli import cli
from cerebras_jais.data.chat.reading import sample_conversations_path
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from checkpoint_convert.cli import cli as converter
from tests.process import PATIENCE

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REASONS = (
    "the extra pipeline",
    "a file of settings",
    "a cluster",
    "downloads",
    "eight GPUs",
    "the Model Zoo",
    "llama.cpp",
    "the Cerebras software",
    "weights",
    "a server",
)
COMMAND = re.compile(r"(cerebras-jais|checkpoint-convert|torchrun) \S")
NOT_IN_HELP = {
    "--backend csx": "a cluster",
    "torchrun": "several GPUs",
    "serve ": "it runs until it is ended",
    "report ": "results of lm_eval",
    "zoo ": "the Model Zoo",
    "lower ": "the Model Zoo",
    "run-program ": "the Model Zoo",
    "vocab transfer ": "the weights of two large models",
    "vocab extend-and-transfer ": "the weights of two large models",
    "--base-url": "a server",
    "judge plot ": "what a server has judged",
    "chat-release": "a model tuned on conversations",
    "cerebras-jais evaluate ": "data sets that it would fetch",
}
if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
    NOT_IN_HELP["--weights int4"] = "torch 2.6"
NUMBER = re.compile(r"\d[\d,]*(\.\d+)?(e[+-]\d+)?")


@dataclass(frozen=True)
class Block:
    """A code block of a document."""

    line: int
    text: str
    kind: str
    """`run`, `not run` or `output of`."""
    about: str
    """The reason, or the command whose output it is."""


def blocks(markdown):
    """The code blocks, indented or fenced, each with the comment before it."""
    found, about, lines = [], ("run", ""), markdown.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        comment = re.fullmatch(r"\s*<!-- (not run|output of): (.+) -->", line)
        fenced = line.strip().startswith("```")
        if comment:
            about = (comment[1], comment[2])
        elif fenced or (line.startswith("    ") and not lines[number - 1].strip()):
            start = number = number + fenced
            while number < len(lines) and (
                not lines[number].strip().startswith("```")
                if fenced
                else lines[number].startswith("    ") or not lines[number].strip()
            ):
                number += 1
            text = textwrap.dedent("\n".join(lines[start:number])).strip("\n")
            found.append(Block(start + 1, text, *about))
            about = ("run", "")
            number += fenced
            continue
        elif line.strip():
            about = ("run", "")
        number += 1
    return found


def masked(text):
    """A text without its numbers and its spacing."""
    return " ".join(NUMBER.sub("#", text).split())


@pytest.fixture
def shell(tmp_path):
    """Runs lines in bash, each where the one before it ended, with the programs of stranger.py; what they print."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("cerebras-jais", "checkpoint-convert", "make"):
        script = f'#!/bin/bash\nexec "{sys.executable}" -m tests.stranger {name} "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    place = [tmp_path / "home"]
    place[0].mkdir()
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(filter(None, paths)),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }

    def run(text, *, may_fail=False):
        script = f"set -euo pipefail\n{text}\npwd > {tmp_path}/place\n"
        if text.startswith(("from ", "import ")):
            script = f"{sys.executable} - <<'END'\n{text}\nEND\npwd > {tmp_path}/place\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=place[0],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if may_fail else subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
        assert may_fail or done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        if done.returncode == 0:
            place[0] = Path((tmp_path / "place").read_text().strip())
        return done.stdout

    run.home = place[0]
    return run


def put_text_in(folder):
    """The bundled samples, as what the documents call their text: the files of XQuAD, and folders of one's own."""
    shutil.copy(sample_conversations_path(), folder / "conversations.jsonl")
    documents = list(read_documents(sample_corpus_path()))
    for language in ("ar", "en"):
        contexts = [{"context": document.text, "qas": []} for document in documents if document.language == language]
        content = {"version": "1.1", "data": [{"title": "sample", "paragraphs": contexts}]}
        (folder / f"xquad.{language}.json").write_text(json.dumps(content), encoding="utf-8")
    lines = [json.dumps({"text": document.text, "language": document.language}) for document in documents]
    for name in ("TEXT", "my_texts"):
        (folder / name).mkdir()
        (folder / name / "sample.jsonl").write_text("\n".join(lines), encoding="utf-8")


def session(text):
    """The commands of a block of `$ command` lines, each with the output that the block shows."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    for part in parts:
        lines = part.splitlines()
        end = next(i for i, line in enumerate(lines) if not line.endswith("\\")) + 1
        yield "\n".join(lines[:end]), "\n".join(lines[end:])


def check_output(shown, printed):
    """What a block shows is what was printed; of lines on logits, whose values training gives, all but the numbers."""
    if "logits:" in shown:
        assert masked(shown) == masked(printed)
        shown, printed = (re.sub(r"logits:.*", "", text, flags=re.DOTALL) for text in (shown, printed))
    assert " ".join(shown.split()) == " ".join(printed.split())


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_blocks_of_a_document_run_in_order(document, shell):
    pytest.importorskip("transformers")
    put_text_in(shell.home)
    printed = ""
    for block in blocks(document.read_text(encoding="utf-8")):
        where = f"{document.name}, line {block.line}"
        if block.kind == "not run":
            assert any(reason in block.about for reason in REASONS), f"{where}: no reason not to run it: {block.about}"
        elif block.kind == "output of":
            shown = block.text.splitlines()
            check = check_demo if block.about == "make demo" else check_table
            check(shown, printed.splitlines())
        elif block.text.startswith("$ "):
            for command, shown in session(block.text):
                printed = shell(command, may_fail=True)
                check_output(shown, printed)
        else:
            printed = shell(block.text)


def check_table(shown, printed):
    assert [masked(line) for line in shown] == [masked(line) for line in printed[-len(shown) :]]


def check_demo(shown, printed):
    """The demo's two tables: the rows, and the values that do not depend on how long it trains.

    Behind them it tunes a model and asks it a question in each language.
    """
    started = printed.index(shown[0])
    behind = next(number for number in range(started, len(printed)) if printed[number].startswith("$ "))
    made = printed[started:behind]
    assert sum(line.startswith("$ cerebras-jais chat ") for line in printed[behind:]) == 2

    def table(lines):
        rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in lines if line.strip()]
        return [row for row in rows if row[0] != "-" * 60]

    shown, made = table(shown), table(made)
    assert [row[0] for row in shown] == [row[0] for row in made]
    phase = find_preset("tiny/jais").trainers[0][1]
    for (label, *told), (_, *found) in zip(shown, made, strict=True):
        if label == "tokens trained on":
            assert told == [f"{phase.tokens:,}"]
        elif label == "steps":
            assert told == [str(phase.steps.value)]
        elif label == "identical after the round trip":
            assert told == found
        elif label == "checkpoint":
            assert masked(told[0]) == masked(found[0])
            assert float(told[0].split()[0]) == pytest.approx(float(found[0].split()[0]), rel=0.01)
        elif label in ("loss curve", "release"):
            assert told == found
        elif "sample" not in label:
            assert masked(" ".join(told)) == masked(" ".join(found))


# ---- help -----------------------------------------------------------------------------------------------------------


def help_pages(command, name):
    """Every page of a program's help, as (its verbs, its text)."""
    yield name, command.help or ""
    if isinstance(command, click.Group):
        for verb in command.list_commands(click.Context(command)):
            yield from help_pages(command.get_command(click.Context(command), verb), f"{name} {verb}")


def examples(text):
    """The indented commands of a page; lines that end in a backslash go on."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("  ") and COMMAND.match(line.strip()):
            while line.endswith("\\"):
                line = f"{line[:-1]} {next(lines).strip()}"
            yield line.strip()


def pages():
    """All pages, the whole runs first: what they leave is what the other pages speak of."""
    ours, theirs = list(help_pages(cli, "cerebras-jais")), list(help_pages(converter, "checkpoint-convert"))
    return [*ours[:1], *theirs, *ours[1:]]


@pytest.mark.slow
def test_the_examples_of_help_run_in_order(shell):
    pytest.importorskip("transformers")
    put_text_in(shell.home)
    done = 0
    for _, text in pages():
        for example in examples(text):
            if not any(sign in example for sign in NOT_IN_HELP):
                shell(example)
                done += 1
    assert done > 20


def test_no_command_of_help_is_overlooked():
    """A line that looks like a command is one of the examples, or names it in passing (in backquotes or brackets)."""
    for name, text in pages():
        found = " ".join(examples(text))
        for line in text.splitlines():
            if COMMAND.match(line.strip()):
                assert line.strip().removesuffix("\\").strip() in found, f"{name}: {line}"
