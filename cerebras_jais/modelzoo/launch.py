"""`cerebras-jais fit --backend csx`, in a process of its own: pre-flight, then the Model Zoo's trainer.

Run as `python -m cerebras_jais.modelzoo.launch OPTIONS`, OPTIONS being `LaunchOptions` as JSON. It is the main module
of its process for the reason that `zoo.py` is.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cerebras_jais.catalog.yaml_files import open_config
from cerebras_jais.commandline import leave
from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.errors import DIFFERENT, GOOD, UserError
from cerebras_jais.launch.estimate import describe_launch
from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.start import plan_launch
from cerebras_jais.modelzoo.connection import explained
from cerebras_jais.modelzoo.installed import modelzoo_is_installed, require_modelzoo
from cerebras_jais.modelzoo.lower.report import is_good, lines, lower_phases, problems_of
from cerebras_jais.modelzoo.phases import on_cluster, run_fit
from cerebras_jais.modelzoo.preflight import Finding, NotReady, inspect_launch
from cerebras_jais.modelzoo.process import add_programs_to_path, become_zoo
from cerebras_jais.modelzoo.reading import read_unless_alone
from cerebras_jais.params import trainers_of

if modelzoo_is_installed():
    from cerebras_jais.modelzoo import plugin  # noqa: F401  # spawned processes import this module and so have it

_NOT_OF_CSZOO = {
    "max_steps": "trainer.init.loop.max_steps",
    "num_workers_per_csx": "trainer.init.backend.cluster_config.num_workers_per_csx",
}


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line says: the file, and what takes the place of the YAML's own values.

    `cluster` has keys of `backend.cluster_config`, `only` is None, "compile_only" or "validate_only".
    """

    file: str
    model_dir: str | None = None
    max_steps: int | None = None
    checkpoint: str | None = None
    cluster: Mapping[str, Any] = field(default_factory=dict)
    only: str | None = None
    dry_run: bool = False
    lower_only: bool = False


def launch(options: LaunchOptions) -> int:
    """Check a launch and start it, or with `dry_run` only say what it would be.

    Returns:
        The exit status: DIFFERENT where a dry run found something wrong.

    Raises:
        UserError: what the pre-flight check found, or a cluster that cannot be reached.
    """
    file = open_config(options.file)
    if read_unless_alone(file) is None:  # its errors name lines, which is lost once the command line is merged in
        if options.lower_only:
            raise UserError(f"{options.file}: --lower-only is for models of the family; compile with --compile-only")
        _leave_to_modelzoo(options)
        return GOOD
    params = with_cluster(file.data, options)
    configs = [parse_trainer(trainer, at=at) for at, trainer in trainers_of(params)]
    checkpoint = None if options.checkpoint is None else Path(options.checkpoint)
    planned = plan_launch(
        configs,
        model_dir=options.model_dir,
        max_steps=options.max_steps,
        checkpoint=checkpoint,
        checked=False,  # the pre-flight checks it, and names its lines
    )
    pairs = [(phase, raw) for phase, (_, raw) in zip(planned.phases, trainers_of(params), strict=True)]
    if options.lower_only:
        return _say_programs(file, pairs)
    if options.dry_run:
        for line in describe_launch(planned):
            print(line)
        try:
            inspect_launch(file, planned)
        except NotReady:  # all of it has been printed, and nothing was to start
            return DIFFERENT
        return GOOD
    inspect_launch(file, planned)
    _lower_first(file, pairs[planned.index :])
    with explained():
        run_fit(params, planned)
    return GOOD


def _say_programs(file: ConfigFile, phases: Sequence[tuple[Phase, Mapping[str, Any]]]) -> int:
    """Lower every phase and say what its programs are; the exit status, DIFFERENT where something is wrong."""
    status = GOOD
    for found in lower_phases(file, phases):
        if "error" in found:
            print(f"error: {found['error']}", file=sys.stderr)
        else:
            print(*lines(found), sep="\n", flush=True)
        status = status if is_good(found) else DIFFERENT
    return status


def _lower_first(file: ConfigFile, phases: Sequence[tuple[Phase, Mapping[str, Any]]]) -> None:
    """Lower each phase that is to run, before anything is asked of a cluster. Raises NotReady."""
    for found in lower_phases(file, phases):
        name = f"phase {found['phase']} of {found['phases']}" if found["phases"] > 1 else "run"
        wrong = next(problems_of(found), None)
        if wrong is not None:
            raise NotReady(f"nothing was started: {wrong}")
        programs = ", ".join(f"{program['step']} {program['hash'][:16]}" for program in found["programs"])
        print(Finding(f"{name} lowers to the programs {programs}"), flush=True)


def _leave_to_modelzoo(options: LaunchOptions) -> None:
    """Become `zoo fit` of the same file, with the options of the command line; a dry run does nothing more.

    Raises UserError for an option that cszoo does not have.
    """
    words = ["fit", options.file, "--target_device", "CSX"]
    words += [f"--{options.only}"] if options.only else []
    said = {"model_dir": options.model_dir, "checkpoint_path": options.checkpoint, "max_steps": options.max_steps}
    for key, value in {**said, **options.cluster}.items():
        if value is None:
            continue
        if key in _NOT_OF_CSZOO:
            raise UserError(f"{options.file}: cszoo has no option for {key}; give {_NOT_OF_CSZOO[key]} in the file")
        words += [f"--{key}", *map(str, value if isinstance(value, list | tuple) else [value])]
    if not options.dry_run:
        require_modelzoo()
        become_zoo(tuple(words))


def with_cluster(params: Mapping[str, Any], options: LaunchOptions) -> dict[str, Any]:
    """A trainer YAML on a CS system, with the options of the command line in every phase."""
    merged = copy.deepcopy(dict(params))
    for _, trainer in trainers_of(merged):
        trainer["init"] = on_cluster(trainer["init"], options.only)
        if options.cluster:
            backend = trainer["init"]["backend"]
            backend["cluster_config"] = {**(backend.get("cluster_config") or {}), **options.cluster}
    return merged


def main() -> None:
    """Entry point of the process; a script may start it again after status 1 or 3, not after 2 (docs/launching.md)."""
    add_programs_to_path()
    leave("cerebras-jais", lambda: launch(LaunchOptions(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
