"""What both command lines share: verbs imported only when they run, one-line errors, shell completion."""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from cerebras_jais.errors import GOOD, HUNG_UP, INTERRUPTED, REFUSED, STATUSES, TERMINATED, UNFORESEEN, UserError
from cerebras_jais.files import STANDARD_INPUT, shown_path
from cerebras_jais.interrupts import interrupted_by, unwind_on_signals
from cerebras_jais.ranges import Range

_NO_MEMORY = re.compile("not enough memory|can't allocate memory|out of memory")  # as torch says it
OURS = ("cerebras_jais", "checkpoint_convert")
EXTRAS = {
    "tokenizers": "data",
    "transformers": "eval",
    "cerebras": "cerebras",
    "cerebras_pytorch": "cerebras",
    **dict.fromkeys(("datatrove", "orjson", "pyarrow", "xxhash", "zstandard", "fsspec"), "pipeline"),
    "ray": "ray",
    "gguf": "gguf",
    **dict.fromkeys(("lm_eval", "datasets"), "harness"),
}
_MAKE_ROOM = "make room, or choose another place"
_PERMISSION = "allow it, or choose another place"
REMEDIES = {
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of its path is a file; choose another place",
    errno.EISDIR: "give the name of a file",
    errno.EEXIST: "choose another name",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads back to itself; give the file it stands for",
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "allow larger files (ulimit -f), or choose another place",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENOMEM: "end other programs, or take less",
    errno.EIO: "the disk failed to read or write; try again, or use a copy on another disk",
}


class Number(click.ParamType):  # type: ignore[type-arg]  # click 8.3 cannot subscript it
    """A number of a range as the value of an option."""

    def __init__(self, bounds: Range) -> None:
        self.bounds = bounds
        self.name = "integer" if bounds.whole else "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        """The number; fails with the range in words."""
        try:
            number = value if isinstance(value, int | float) else (int if self.bounds.whole else float)(value)
        except ValueError:
            number = value
        problem = self.bounds.problem(number)
        if problem is not None:
            self.fail(problem, param, ctx)
        return number


def standard_input_once(ctx: click.Context, param: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """The paths of an option, a callback of it; raises UserError for standard input twice, which has one content."""
    if paths.count(Path(STANDARD_INPUT)) > 1:
        raise UserError(
            f"{param.opts[0]} {STANDARD_INPUT}: standard input is given twice, and can be read once; give it once"
        )
    return paths


class LazyGroup(click.Group):
    """A group of verbs given as "module:function", imported when one is run, so that `--help` stays quick.

    Args:
        verbs: for each verb, where its click command lies and its one-line summary for the list of verbs.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = dict(verbs or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.verbs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return super().get_command(ctx, cmd_name)
        module, _, function = self.verbs[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(verb, summary) for verb, (_, summary) in self.verbs.items()]
        rows += [(verb, command.get_short_help_str(80)) for verb, command in self.commands.items()]
        with formatter.section("Verbs"):
            formatter.write_dl(rows)


def completion_command(program: str) -> click.Command:
    """The verb `completion SHELL` of a program: prints the script that makes the shell complete it."""

    @click.command(name="completion")
    @click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        from click.shell_completion import get_completion_class

        kind = get_completion_class(shell)
        assert kind is not None
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        click.echo(kind(ctx.find_root().command, {}, program, variable).source())

    completion.help = (
        f'Print the completion script of a shell.\n\nFor bash: eval "$({program} completion bash)" in ~/.bashrc'
    )
    return completion


def statuses() -> str:
    """The exit statuses, in a paragraph for the help of a program."""
    return f"Exit status: {'; '.join(f'{status} {meaning}' for status, meaning in STATUSES.items())}."


def run(group: click.Group, program: str) -> NoReturn:
    """Run a command line and leave with its exit status, whatever happens."""
    leave(program, lambda: group.main(prog_name=program, standalone_mode=False))


def leave(program: str, work: Callable[[], Any]) -> NoReturn:
    """Do the work of a process and end it; the border where every exception becomes one line and an exit status.

    SIGINT, SIGTERM and SIGHUP unwind the work (`unwind_on_signals`).
    """
    unwind_on_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that is no text, and a terminal without Arabic, can be shown
            stream.reconfigure(errors="backslashreplace")
    status = status_of(program, work)
    try:
        sys.stdout.flush()
    except OSError as error:  # else Python tries again as it ends, and says so in three lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if status == GOOD and not isinstance(error, BrokenPipeError):
            status = _said(program, error)
    sys.exit(status)


def status_of(program: str, work: Callable[[], Any]) -> int:
    """Do the work and return the exit status; what went wrong is one line on standard error."""
    try:
        status = work()
    except SystemExit as error:
        if error.code in (HUNG_UP, TERMINATED):
            say(STATUSES[error.code])
        return error.code if isinstance(error.code, int) else GOOD
    except click.ClickException as error:
        error.show()
        return REFUSED
    except (click.Abort, KeyboardInterrupt):
        say(STATUSES[INTERRUPTED])
        return INTERRUPTED
    except BaseException as error:  # a panic of a library in Rust is no Exception
        return _said(program, error)
    return status if isinstance(status, int) else GOOD


def _said(program: str, error: BaseException) -> int:
    """Say what an exception means in one line; the exit status."""
    came = interrupted_by()
    if came is not None and _line(error)[0] is None:  # a library in C that calls Python may put its own error there
        say(STATUSES[came])
        return came
    line, status = line_of(program, error)
    say(f"error: {line}")
    return status


def line_of(program: str, error: BaseException) -> tuple[str, int]:
    """What an exception means, in one line, and the exit status; an unforeseen one's traceback is kept in a file."""
    line, status = _line(error)
    if line is None:
        kept = _keep(program, error)
        line = f"{program} met an error that it does not foresee: {_first_line(error)}; please report it with {kept}"
        status = UNFORESEEN
    return line, status


def say(line: str) -> None:
    """Print a line on standard error, unless that is gone: a terminal that has closed refuses it."""
    with suppress(OSError):
        click.echo(line, err=True)


def _line(error: BaseException) -> tuple[str | None, int]:
    """The line of an exception that a user can do something about, and its status; no line for any other."""
    if isinstance(error, UserError):
        return " ".join(str(error).splitlines()), error.status
    if isinstance(error, OSError):
        return _system_error(error), REFUSED
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "not enough memory; end other programs, or take less: fewer or shorter texts, a smaller model", REFUSED
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] not in OURS:
        package = error.name.partition(".")[0]
        extra = EXTRAS.get(package)
        which = f"cerebras_jais[{extra}]" if extra else package
        return f"the package {package} is not installed; install it with: pip install '{which}'", REFUSED
    if isinstance(error, RecursionError):
        return "the input is nested too deeply to be read; make it flatter", REFUSED
    return None, UNFORESEEN


def _system_error(error: OSError) -> str:
    """What the system refused, of which file, and what to do."""
    where = "" if error.filename is None else f"{shown_path(str(error.filename))}: "
    if error.errno is None:
        return where + _first_line(error)
    reason, remedy = os.strerror(error.errno), REMEDIES.get(error.errno)
    return f"{where}{reason[:1].lower()}{reason[1:]}{f'; {remedy}' if remedy else ''}"


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _keep(program: str, error: BaseException) -> str:
    """Write the traceback of an exception to a new file; its name, or the traceback where no file can be made."""
    text = "".join(traceback.format_exception(error))
    try:
        descriptor, path = tempfile.mkstemp(prefix=f"{program}-error-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"this:\n{text}"
    return path
