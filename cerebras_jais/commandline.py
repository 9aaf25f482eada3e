"""What both command lines share: verbs imported only when they run, one-line errors, shell completion."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from cerebras_jais.errors import UserError
from cerebras_jais.ranges import Range


class Number(click.ParamType):
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


class LazyGroup(click.Group):
    """A group of verbs given as "module:function", imported when one is run, so that `--help` stays quick.

    Args:
        verbs: for each verb, where its click command lies and its one-line summary for the list of verbs.
    """

    def __init__(self, *args, verbs: Mapping[str, tuple[str, str]] | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.verbs = dict(verbs or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.verbs, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return super().get_command(ctx, cmd_name)
        module, _, function = self.verbs[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), function)

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


def say_error(error: UserError) -> None:
    """Print a user's error as one line on standard error."""
    click.echo(f"error: {error}", err=True)


def run(group: click.Group, program: str, error_status: int = 1) -> None:
    """Run a command line; a UserError becomes one line on standard error and `error_status`, Ctrl-C status 130."""
    try:
        status = group.main(prog_name=program, standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except UserError as error:
        say_error(error)
        sys.exit(error_status)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
