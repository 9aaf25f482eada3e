"""Command lines run as the programs run them, and the verdict on each: what the fuzz programs of the border share.

A verdict is "good", "different" or "refused" by the exit status (0, 1, 2), or one of BAD: "crash" (an unforeseen error,
or a refusal that is more than one line), "hang" (more than 10 seconds of the processor), "memory" (more than 2 GB).
"""

import argparse
import contextlib
import faulthandler
import io
import os
import random
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import h5py  # noqa: F401  (what is loaded now does not count as memory of a command)
import torch
import yaml

from cerebras_jais import cli as trainer
from cerebras_jais.commandline import status_of
from cerebras_jais.train import progress
from checkpoint_convert import cli as converter
from checkpoint_convert import convert  # noqa: F401
from tests.attacks.mutations import LIMIT, WAITING, time_limit
from tests.cerebras_jais.train.examples import JAIS, trainer_section

BAD = ("crash", "hang", "memory")
VERDICTS = {0: "good", 1: "different", 2: "refused"}
PROGRAMS: dict[str, click.Group] = {"cerebras-jais": trainer.cli, "checkpoint-convert": converter.cli}
LENGTH = 32
Case = Callable[[random.Random, Path], Sequence[Sequence[str]]]


def prepare(folder: Path) -> None:
    """Make in a folder one good file of each kind: texts, tokenizer, data, run.yaml, x.mdl, release."""
    texts = folder / "texts"
    texts.mkdir()
    words = [f"كلمة رقم {number}: the word number {number}, 1e-{number} and \u0651.\n" for number in range(40)]
    (texts / "a.txt").write_text("".join(words), encoding="utf-8")
    lines = [
        f'{{"text": "line {number}: سطر \\u0645 {word.strip()}", "language": "en"}}\n'
        for number, word in enumerate(words)
    ]
    (texts / "b.jsonl").write_text("".join(lines), encoding="utf-8")
    (texts / "c.ar.json").write_text('{"data": [{"paragraphs": [{"context": "سياق", "qas": []}]}]}', encoding="utf-8")
    section = trainer_section(Path(), {**JAIS, "vocab_size": 300})
    section["init"] |= {"model_dir": "run", "loop": {"max_steps": 1}, "checkpoint": {"steps": 1}}
    section["init"]["schedulers"] = [{"ConstantLR": {"learning_rate": 0.01}}]
    section["fit"]["train_dataloader"]["data_dir"] = "data/train"
    section["fit"].pop("val_dataloader", None)
    text = yaml.safe_dump({"trainer": section}, sort_keys=False)
    (folder / "run.yaml").write_text(text, encoding="utf-8")
    with contextlib.chdir(folder):
        for command in (
            "cerebras-jais data tokenizer --vocab-size 300 --output tokenizer --text texts",
            f"cerebras-jais data pack --tokenizer tokenizer --max-sequence-length {LENGTH} --output data --text texts",
            "cerebras-jais fit run.yaml --backend cpu",
            "checkpoint-convert to-hf run/checkpoint_1.mdl --output release --tokenizer tokenizer",
        ):
            verdict, said = verdict_on(command.split())
            assert verdict == "good", said
        Path("run/checkpoint_1.mdl").rename("x.mdl")
        shutil.rmtree("run")


def verdict_on(command: Sequence[str]) -> tuple[str, str]:
    """Run one command line in this process; the verdict, and what was said."""
    out, err = io.StringIO(), io.StringIO()
    program, *arguments = command
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = status_of(program, lambda: _limited(program, arguments))
    said = err.getvalue()
    if "met an error" in said and "Hang" in said:
        return "hang", said
    if "not enough memory" in said:
        return "memory", said
    errors = [line for line in said.splitlines() if not line.startswith("note: ")]
    one_line = len(errors) <= 1 or errors[0].startswith("Usage: ") or "check" in arguments
    if status not in VERDICTS or (status == 2 and not (errors and one_line)) or "Traceback" in said:
        return "crash", said + _traceback(said)
    return VERDICTS[status], said + out.getvalue()[:1000]


def _limited(program: str, arguments: Sequence[str]) -> object:
    with time_limit():
        return PROGRAMS[program].main(list(arguments), prog_name=program, standalone_mode=False)


def _traceback(said: str) -> str:
    path = Path(said.split()[-1]) if said.split() else Path()
    return "\n" + path.read_text(encoding="utf-8") if path.suffix == ".txt" and path.is_file() else ""


def main(description: str, make_case: Case) -> None:
    """The command line of a fuzz program: `--count N --seed S`; exit status 1 on a bad verdict.

    Args:
        make_case: damages what it likes in a folder of good files and gives the command lines to run there.
    """
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=1000, help="cases")
    options.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases")
    options.add_argument("--first", type=int, default=0, help="number of the first case")
    given = options.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    progress.draw_curve = lambda *args, **options: None  # takes longer than all the rest
    verdicts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
        good, folder = Path(name, "good"), Path(name, "case")
        good.mkdir()
        tempfile.tempdir = name
        prepare(good)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + (2 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        os.execv = lambda *args: sys.exit(0)  # another program takes over: not this one's business
        for number in range(given.first, given.first + given.count):
            shutil.copytree(good, folder)
            draw = random.Random(f"{given.seed} {number}")
            with contextlib.chdir(folder):
                for command in make_case(draw, folder):
                    faulthandler.dump_traceback_later(2 * WAITING * LIMIT, exit=True)
                    verdict, said = verdict_on(command)
                    faulthandler.cancel_dump_traceback_later()
                    verdicts[verdict] += 1
                    if verdict in BAD or os.environ.get("SAY"):
                        print(
                            f"{verdict} {number}: {command!r:.2000}\n{said:.4000}".encode("utf-8", "replace").decode(),
                            flush=True,
                        )
            shutil.rmtree(folder)
    print(", ".join(f"{verdict} {verdicts[verdict]:,}" for verdict in (*VERDICTS.values(), *BAD)))
    sys.exit(any(verdicts[verdict] for verdict in BAD))
