"""`cerebras-jais fit`: train from a Model Zoo trainer YAML, here or on CS systems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cerebras_jais.commandline import Number
from cerebras_jais.ranges import COUNT, GIGABYTES
from cerebras_jais.train.failures import first_process_speaks

if TYPE_CHECKING:
    from cerebras_jais.launch.phases import Phase
    from cerebras_jais.launch.start import Launch, Start
    from cerebras_jais.train.setup import FitOptions

# The option of the command line and the key of `backend.cluster_config` that it sets.
_CLUSTER_KEYS = {
    "num_csx": "num_csx",
    "workers_per_csx": "num_workers_per_csx",
    "mount_dirs": "mount_dirs",
    "python_paths": "python_paths",
    "job_labels": "job_labels",
    "job_priority": "job_priority",
}


@click.command()
@click.argument("yaml_file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--backend",
    type=click.Choice(["cpu", "gpu", "csx"]),
    help="Where to train. Default: the YAML's backend_type, when that is CPU or GPU; csx must be given explicitly.",
)
@click.option("--model-dir", type=click.Path(file_okay=False, path_type=Path), help="Where the run goes.")
@click.option("--max-steps", type=Number(COUNT), help="End at this step; a list of phases ends there too.")
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Begin from this .mdl instead of the last one in the model directory; of a list, in the phase of its step.",
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
@click.option(
    "--dry-run", is_flag=True, help="Say what would run, phase by phase, and start nothing; csx: status 1 if wrong."
)
@click.option(
    "--processes", type=Number(COUNT), help="With --dry-run: the memory of each of so many processes, on GPUs or CPUs."
)
@click.option(
    "--memory-per-process",
    type=Number(GIGABYTES),
    metavar="GB",
    help="With --processes: what each has, of 10^9 bytes; refused if it takes more.",
)
@click.option("--lower-only", is_flag=True, help="csx: say what program each phase is (`lower`), and start nothing.")
@click.option("--num-csx", type=Number(COUNT), help="csx: CS systems to train on.")
@click.option("--workers-per-csx", type=Number(COUNT), help="csx: processes that feed each system.")
@click.option("--mount-dir", "mount_dirs", multiple=True, help="csx: directory that workers see; may be repeated.")
@click.option("--python-path", "python_paths", multiple=True, help="csx: on the PYTHONPATH of workers; repeatable.")
@click.option(
    "--job-label", "job_labels", multiple=True, metavar="KEY=VALUE", help="csx: label of the job; repeatable."
)
@click.option("--job-priority", type=click.Choice(["p1", "p2", "p3"]), help="csx: p1 is the highest.")
@click.option("--compile-only", "only", flag_value="compile_only", help="csx: compile and train nothing.")
@click.option("--validate-only", "only", flag_value="validate_only", help="csx: check that it compiles, no more.")
@first_process_speaks()
def fit(
    yaml_file: Path,
    backend: str | None,
    model_dir: Path | None,
    max_steps: int | None,
    checkpoint: Path | None,
    activation_checkpointing: bool,
    compile_layers: bool,
    sharding: str,
    dry_run: bool,
    processes: int | None,
    memory_per_process: float | None,
    lower_only: bool,
    only: str | None,
    **cluster: Any,
) -> None:
    """Train a model as a Model Zoo trainer YAML says: on a CPU or GPU here, or on CS systems by the Model Zoo.

    \b
      cerebras-jais fit tiny/jais --backend cpu --model-dir runs/jais
      cerebras-jais fit jais-family-590m --backend csx --num-csx 16

    FILE is a YAML file, or the name of a built-in config (`cerebras-jais config list`).

    The config, the data and the software are checked before a cluster job starts. On a CPU or GPU a list whose phases
    cannot follow one another is refused; `config check` also compares schedules with the length of the run.

    The YAML is the one that `cszoo fit` takes. A key it does not know is an error that names it; keys that only
    concern CS systems are listed and have no effect here. Phases of a list run one after another.

    \b
    Left in the model directory:
      checkpoint_STEP.mdl    a Cerebras checkpoint; the Model Zoo's trainer continues from it, and this from its
      losses.csv             step, loss, learning rate, tokens, seconds
      loss_curve.png         the same as a picture
      events/                TensorBoard

    A run started again continues from the last checkpoint there and leaves the files of a run never stopped; its
    num_epochs and num_steps count from where it began. So does a list of phases: those that are finished are skipped,
    and into the next go weights, optimizer and step, but not the data and schedule positions. Ctrl-C, SIGTERM and
    SIGHUP save the step reached; a second one ends the run at once.

    \b
    Several GPUs or machines:
      torchrun --nproc-per-node 8 -m cerebras_jais.cli fit FILE.yaml --backend gpu --sharding fsdp
    and before that, whether it fits:
      cerebras-jais fit jais-family-13b --sharding fsdp --dry-run --processes 64
    """
    from cerebras_jais.catalog.reader import read_trainer_yaml
    from cerebras_jais.config.modelzoo_only import not_done_here
    from cerebras_jais.errors import UserError
    from cerebras_jais.launch.start import plan_launch
    from cerebras_jais.machine import place_of_process
    from cerebras_jais.train.threads import settle_threads

    said = {_CLUSTER_KEYS[name]: value for name, value in cluster.items() if value}
    if (processes is not None and not dry_run) or (memory_per_process is not None and processes is None):
        needed = "--dry-run; torchrun says how many run" if processes is not None else "--dry-run --processes"
        given = "--processes" if processes is not None else "--memory-per-process"
        raise UserError(f"{given} is for {needed}")
    if backend == "csx":
        if processes is not None:
            raise UserError("--processes is for --backend cpu and gpu; --num-csx says how many CS systems")
        if activation_checkpointing or compile_layers or sharding != "ddp":
            raise UserError(
                "--activation-checkpointing, --compile and --sharding are for --backend cpu and gpu; on CS "
                "systems the compiler decides; remove them"
            )
        _become_launch(
            file=str(yaml_file),
            model_dir=model_dir and str(model_dir),
            max_steps=max_steps,
            checkpoint=checkpoint and str(checkpoint),
            cluster=said,
            only=only,
            dry_run=dry_run,
            lower_only=lower_only,
        )
    if said or only or lower_only:
        option = "--" + ("lower_only" if lower_only else only or next(iter(said))).replace("_", "-")
        raise UserError(f"{option} is an option of a cluster; add --backend csx, or remove it")
    configs = read_trainer_yaml(yaml_file)
    for config in configs:
        named = (config.init.backend_type or "").lower()
        if not dry_run and (backend or named) not in ("cpu", "gpu"):
            raise UserError(
                f"{yaml_file}: its backend is {named.upper() or 'not given'}; say --backend csx, --backend cpu or "
                "--backend gpu"
            )
        if (backend or named) in ("cpu", "gpu"):
            for problem in not_done_here(config.aside):
                raise UserError(config.message(problem))
    launch = plan_launch(configs, model_dir=model_dir, max_steps=max_steps, checkpoint=checkpoint)
    if dry_run:
        from cerebras_jais.launch.estimate import describe_launch
        from cerebras_jais.launch.memory import GB, describe_memory
        from cerebras_jais.launch.plan import check_memory, planned_arrangement

        def memory(phase: Phase) -> Iterator[str]:
            if processes is None:
                return
            named = (phase.config.init.backend_type or "").lower()
            run = planned_arrangement(
                phase.config,
                processes,
                sharding,
                activation_checkpointing=activation_checkpointing,
                backend=backend or ("cpu" if named == "cpu" else "gpu"),
            )
            yield from describe_memory(phase.config.init.model, run)
            if memory_per_process is not None:
                check_memory(phase.config, run, int(memory_per_process * GB))

        for line in describe_launch(launch, memory):
            click.echo(line)
        return
    threads = settle_threads()
    speaks = place_of_process().is_first  # under torchrun one process prints for all
    if threads is not None and speaks:
        click.echo(threads, err=True)
    log = click.echo if speaks else (lambda line: None)
    from cerebras_jais.train.setup import FitOptions

    options = FitOptions(backend or "", activation_checkpointing, compile_layers, sharding)
    _run_phases(launch, options, log, given=checkpoint is not None)


def _become_launch(**options: Any) -> NoReturn:
    """Replace this process by the one that launches on a cluster, which alone imports the plugin."""
    import json
    import os
    import sys

    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "cerebras_jais.modelzoo.launch", json.dumps(options)])


def _run_phases(launch: Launch, options: FitOptions, log: Callable[[str], Any], *, given: bool) -> None:
    """Run what is left of a launch on the reference path, one phase after another.

    Args:
        launch: as planned.
        options: how to run it; without a backend, where each phase says.
        log: takes lines for people.
        given: whether the command line gives the checkpoint to begin from.
    """
    from dataclasses import replace

    from cerebras_jais.launch.plan import NothingLeft
    from cerebras_jais.launch.start import just_finished, remaining_phases
    from cerebras_jais.train.loop import fit

    def run(phase: Phase, start: Start) -> None:
        backend = options.backend or (phase.config.init.backend_type or "").lower()
        result = fit(phase, start, replace(options, backend=backend))
        line = f"steps {result.steps}"
        if result.losses:
            line += f"  loss {result.first_loss:.4f} -> {result.last_loss:.4f}"
        if result.eval_loss is not None:
            line += f"  held-out {result.eval_loss:.4f}"
        log(f"{line}  {result.tokens_per_second:,.0f} tokens/s" if result.losses else line)
        if result.checkpoint_path is not None:
            log(f"checkpoint {result.checkpoint_path}")
        log(f"curve      {result.model_dir / 'loss_curve.png'}")

    try:
        finished = None if given else just_finished(launch)
        if finished is not None:
            with suppress(NothingLeft):
                run(*finished)
        for phase, start in remaining_phases(launch, log):
            run(phase, start)
    except NothingLeft as nothing:
        log(str(nothing))
