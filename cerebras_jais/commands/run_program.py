"""`cerebras-jais run-program`: the first steps of a lowered program on a CPU."""

from __future__ import annotations

from pathlib import Path

import click

from cerebras_jais.commandline import Number
from cerebras_jais.ranges import COUNT

MOST = 2**29  # bytes; the largest program of the family has 32 MB


@click.command("run-program")
@click.argument("program", metavar="PROGRAM", type=click.Path(path_type=Path))
@click.option("--config", required=True, metavar="FILE", help="The trainer YAML that it was lowered from, or its name.")
@click.option("--phase", type=Number(COUNT), default=1, show_default=True, help="Of a list of phases, which.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Where it begins; else weights drawn by the seed.")
@click.option("--steps", type=Number(COUNT), default=10, show_default=True, help="How many.")
def run_program(program: Path, config: str, phase: int, checkpoint: Path | None, steps: int) -> None:
    """Run the first steps of a training program on a CPU, in float32 and in its own 16-bit types.

    \b
      cerebras-jais lower tiny/jais --output programs
      cerebras-jais run-program programs/tiny-jais/phase-1/train.cirh.mlir --config tiny/jais

    PROGRAM is a train.cirh.mlir that `cerebras-jais lower --output` kept; the Cerebras software is not needed to run
    it. The data is that of the YAML, from its beginning. Per step: the loss in float32 and in the program's own types,
    their difference, the loss scale, and how many steps loss scaling has left out. docs/lowering.md says what the
    types are.
    """
    from cerebras_jais.catalog.reader import read_trainer_yaml
    from cerebras_jais.cirh.compare import compare_types, table
    from cerebras_jais.cirh.program import ProgramError, read_program
    from cerebras_jais.errors import UserError
    from cerebras_jais.files import read_text, shown_path
    from cerebras_jais.wording import counted

    configs = read_trainer_yaml(config)
    if phase > len(configs):
        phases = counted(len(configs), "phase")
        raise UserError(f"{shown_path(config)}: has {phases}; there is no phase {phase}")
    text = read_text(program, MOST)
    try:
        for line in table(compare_types(read_program(text), configs[phase - 1], steps, checkpoint)):
            click.echo(line)
    except ProgramError as error:
        raise ProgramError(f"{shown_path(program)}: {error}") from error
