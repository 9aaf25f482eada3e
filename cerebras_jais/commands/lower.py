"""`cerebras-jais lower`: the program that a CS system would be given, without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cerebras_jais.commandline import Number
from cerebras_jais.ranges import COUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--phase", type=Number(COUNT), help="Of a list of phases, this one alone.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the programs: DIR/NAME/phase-N/STEP.cirh.mlir, and STEP.torch.mlir, the same in PyTorch's operations.",
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, with all names and the whole hash.")
@click.option("--table", "as_table", is_flag=True, help="A table in Markdown, a row for each phase.")
def lower(files: tuple[Path, ...], phase: int | None, output: Path | None, as_json: bool, as_table: bool) -> int:
    """Lower trainer YAML to the programs that a CS system would compile, and say what they are.

    \b
      cerebras-jais lower jais-family-590m
      cerebras-jais lower configs/tiny/stages.yaml --phase 1 --output programs

    FILE is a YAML file, the name of a built-in config, or a folder, which stands for every YAML file below it.

    Each phase goes through the Model Zoo's own trainer up to the compile request: no cluster is contacted, no weights
    are made, and where the data is not here an empty batch of its shapes stands in for it. The Cerebras software must
    be installed. Per program: its hash, operations, FLOPs of matrix products beside the estimate of --dry-run, weights
    and states, what the step changes and only reads, types, inputs, and violated constraints. The hash leaves out the
    numbers of constants, so another learning rate has the same hash and another context another. The exit status is 1
    where a phase cannot be lowered or violates a constraint.
    """
    import json

    from cerebras_jais.errors import DIFFERENT, GOOD
    from cerebras_jais.modelzoo.installed import require_modelzoo
    from cerebras_jais.modelzoo.lower.report import is_good, lines, shared, table

    require_modelzoo()
    every: list[dict[str, Any]] = []
    for found in _lowered(_expanded(files), output, phase):
        every.append(found)
        if "error" in found:
            click.echo(f"error: {found['error']}", err=True)
        elif not as_json and not as_table:
            click.echo("\n".join(lines(found)))
    whole = [found for found in every if "error" not in found]
    if as_json:
        click.echo(json.dumps(every, ensure_ascii=False))
    else:
        for line in table(whole) if as_table else shared(whole):
            click.echo(line)
    return GOOD if all(map(is_good, every)) else DIFFERENT


def _expanded(files: Sequence[Path]) -> Iterator[Path]:
    """The files, and in place of a folder the YAML files below it that are not of data runs."""
    for file in files:
        below = [path for path in sorted(file.rglob("*.yaml")) if not _is_data_run(path)] if file.is_dir() else []
        yield from below or [file]


def _is_data_run(file: Path) -> bool:
    """Whether a YAML is for `data build`."""
    with file.open("rb") as content:
        return any(line.startswith(b"sources:") for line in content)


def _lowered(files: Iterator[Path], output: Path | None, phase: int | None) -> Iterator[dict[str, Any]]:
    """The facts of every phase of every file; a file that cannot be read counts as one that cannot be lowered."""
    from cerebras_jais.catalog.yaml_files import open_config
    from cerebras_jais.errors import UserError
    from cerebras_jais.modelzoo.lower.phase import phases_to_lower
    from cerebras_jais.modelzoo.lower.report import lower_phases

    for name in files:
        try:
            file = open_config(name)
            folder = output and output / "-".join(file.path.with_suffix("").parts[-2:])
            yield from lower_phases(file, phases_to_lower(file, phase), folder)
        except UserError as error:
            yield {"file": str(name), "error": str(error)}
