"""`cerebras-jais fit`: train from a Model Zoo trainer YAML."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("yaml_file", metavar="FILE.yaml", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--backend",
    type=click.Choice(["cpu", "gpu"]),
    help="Where to train. Default: the YAML's backend_type, when that is CPU or GPU.",
)
@click.option("--model-dir", type=click.Path(file_okay=False, path_type=Path), help="Where the run goes.")
@click.option("--max-steps", type=click.IntRange(min=1), help="End at this step; a list of phases ends there too.")
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Begin from this .mdl instead of the last one in the model directory (the first phase of a list).",
)
@click.option("--activation-checkpointing", is_flag=True, help="Less memory: compute activations twice.")
@click.option("--compile", "compile_layers", is_flag=True, help="Run the layers through torch.compile.")
@click.option(
    "--sharding",
    type=click.Choice(["ddp", "fsdp"]),
    default="ddp",
    show_default=True,
    help="Several processes under torchrun: copies of the model, or one model divided among them.",
)
def fit(
    yaml_file: Path,
    backend: str | None,
    model_dir: Path | None,
    max_steps: int | None,
    checkpoint: Path | None,
    activation_checkpointing: bool,
    compile_layers: bool,
    sharding: str,
) -> None:
    """Train a model as a Model Zoo trainer YAML says, on a CPU or GPU.

    \b
      cerebras-jais fit configs/tiny/jais.yaml --backend cpu --model-dir runs/jais

    The YAML is the one that `cszoo fit` takes. A key it does not know is an error that names it; keys that only
    concern CS systems are listed and have no effect here. Phases of a list run one after another.

    \b
    Left in the model directory:
      checkpoint_STEP.mdl    a Cerebras checkpoint; the Model Zoo's trainer continues from it, and this from its
      losses.csv             step, loss, learning rate, tokens, seconds
      loss_curve.png         the same as a picture
      events/                TensorBoard

    A run started again continues from the last checkpoint there, with the losses of a run never stopped.

    \b
    Several GPUs or machines:
      torchrun --nproc-per-node 8 -m cerebras_jais.cli fit FILE.yaml --backend gpu --sharding fsdp
    """
    import os

    from cerebras_jais.errors import UserError
    from cerebras_jais.recipes.schema import read_trainer_yaml
    from cerebras_jais.train.loop import fit as run
    from cerebras_jais.train.plan import NothingLeft, ending_by

    phases = read_trainer_yaml(yaml_file)
    several, first = len(phases) > 1, os.environ.get("RANK", "0") == "0"  # under torchrun one process speaks for all
    for config in phases:
        named = (config.init.backend_type or "").lower()
        where = backend or named
        if where not in ("cpu", "gpu"):
            raise UserError(
                f"{yaml_file}: its backend is {named.upper() or 'not given'}; say --backend cpu or --backend gpu"
            )
        try:
            result = run(
                ending_by(config, max_steps) if several and max_steps is not None else config,
                backend=where,
                model_dir=model_dir,
                max_steps=None if several else max_steps,
                checkpoint=checkpoint,
                activation_checkpointing=activation_checkpointing,
                compile_layers=compile_layers,
                sharding=sharding,
            )
        except NothingLeft as finished:
            if first:
                click.echo(str(finished))  # a finished run or phase is no mistake; the next phase may have work left
            continue
        checkpoint = None  # the phases that follow go on from what this one left
        if not first:
            continue
        line = f"steps {result.steps}  loss {result.first_loss:.4f} -> {result.last_loss:.4f}"
        if result.eval_loss is not None:
            line += f"  held-out {result.eval_loss:.4f}"
        click.echo(f"{line}  {result.tokens_per_second:,.0f} tokens/s")
        if result.checkpoint_path is not None:
            click.echo(f"checkpoint {result.checkpoint_path}")
        click.echo(f"curve      {result.model_dir / 'loss_curve.png'}")
