"""Hostile values for every option: `python tests/attacks/command_lines.py --count N --seed S`; exit status 1 if bad.

The options and arguments are read from the commands themselves. Each case is a command line that would do its work,
with one to three values of another kind, or with options more, fewer or twice.
"""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

import click

from tests.attacks import border

# Command lines that do something; what they name is made by `border.prepare`.
GOOD = {
    "cerebras-jais": (
        *("models", "models jais-family-590m", "config list", "config show run.yaml", "config check run.yaml"),
        *("config diff run.yaml tiny/jais", "config write tiny/jais --output new.yaml", "completion bash", "zoo fit"),
        "data tokenizer --text texts --vocab-size 300 --output new",
        "data pack --text texts --tokenizer tokenizer --max-sequence-length 32 --output new",
        "fit run.yaml --dry-run",
        "fit run.yaml --backend cpu --max-steps 1 --model-dir new",
        "fit run.yaml --backend csx --num-csx 1",
        "generate x.mdl --tokenizer tokenizer --prompt x --max-new-tokens 2",
        "score x.mdl --tokenizer tokenizer --text texts/c.ar.json",
    ),
    "checkpoint-convert": (
        *("inspect x.mdl", "inspect release", "completion zsh", "verify x.mdl release", "diff release x.mdl"),
        *("to-hf x.mdl --output new", "to-cerebras release --output new.mdl", "to-hf x.mdl --output new --dry-run"),
    ),
}
# Options whose large values are good and ask for as much work.
WORK = ("--max-new-tokens", "--max-steps", "--logits", "--compile", "--sharding", "--trust-release-code")
VALUES = (
    *("", " ", "-", "--", "-1", "0", "1", "2", "1.5", "-0.0", "1e-5", "nan", "inf", "-inf", "1e999", "0x10", "1_0"),
    *("٣", "½", "true", "None", "[]", "{}", "%s", "{0}", "~", "$HOME", ".", "..", "/", "//", "*", "?", "\n", "a\nb"),
    *("\x1b[31m", "\x7f", "\u202e", "\ufeff", "\udcff", "\udcff.yaml", "ا" * 300, "x" * 300, "x" * 100_000),
    *("9" * 5000, "1" + "0" * 30, "-" + "9" * 400, str(2**31), str(2**62), str(2**63), str(2**64), "512001"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/stdin", "/proc/self/mem", "/proc/x", "/dev/null/x", "/nowhere/a/b"),
    *("pipe", "socket", "loop", "absent", "empty", "readonly", "sparse", "run.yaml", "run.yaml/x", "x.mdl", "release"),
    *("tokenizer", "tokenizer/tokenizer.json", "texts", "texts/a.txt", "data", "data/train", "release/config.json"),
    *("s3://a/b", "file:///x", "C:\\x", "5GB", "1B", "0GB", "1e400GB", "fp32", "a=b", "=", "p1", "jais", "tiny/jais"),
)


def options_of(command: click.Command) -> Iterator[click.Parameter]:
    yield from (parameter for parameter in command.params if parameter.name != "help")


def command_of(words: Sequence[str]) -> tuple[click.Command, int]:
    """The command that words name, and how many of them do."""
    program, *rest = words
    command: click.Command = border.PROGRAMS[program]
    count = 1
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), rest[count - 1])
        assert found is not None
        command, count = found, count + 1
    return command, count


def make_case(draw: random.Random, folder: Path) -> list[list[str]]:
    """One command line with hostile values, in a folder with hostile files."""
    os.mkfifo("pipe")
    os.symlink("loop", "loop")
    Path("empty").touch()
    Path("readonly").mkdir(mode=0o500)
    Path("sparse").touch()
    os.truncate("sparse", 1 << 40)
    program = draw.choice(list(GOOD))
    words = [program, *draw.choice(GOOD[program]).split()]
    command, count = command_of(words)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.randrange(8)
        options = [word for word in words[count:] if word.startswith("--")]
        if kind < 3:
            chosen = draw.choice([*options_of(command)] or [None])
            if isinstance(chosen, click.Option) and not set(chosen.opts) & set(WORK):
                words += [chosen.opts[-1]] if chosen.is_flag else [chosen.opts[-1], draw.choice(VALUES)]
            else:
                words.append(draw.choice(VALUES))
        elif kind < 6 and len(words) > count:
            at = draw.randrange(count, len(words))
            if words[at - 1] not in WORK and words[at] not in WORK and words[at] != "--dry-run":
                words[at] = draw.choice(VALUES)
        elif kind == 6 and options:
            option = draw.choice(options)
            if option not in ("--dry-run", *WORK):
                words.remove(option)
        else:
            words.insert(draw.randrange(1, len(words) + 1), draw.choice((*VALUES, "--help", "--no-such", "-h", "-x")))
    return [words]


if __name__ == "__main__":
    border.main(__doc__ or "", make_case)
