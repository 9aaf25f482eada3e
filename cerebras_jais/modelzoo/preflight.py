"""Checks before a cluster job is submitted: the YAML, the software, the data, the cluster's address.

Each check gives one line: what was looked at, and what is wrong with it and how to mend that.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.errors import Problem, UserError
from cerebras_jais.launch.checks import check, notes_of
from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.plan import missing_sections
from cerebras_jais.launch.saved import NO_CHECKPOINT, nothing_left
from cerebras_jais.launch.start import Launch
from cerebras_jais.launch.surroundings import data_problems, section_problems
from cerebras_jais.modelzoo.connection import cluster_file
from cerebras_jais.modelzoo.installed import ModelZooMissing, modelzoo_is_installed, require_modelzoo
from cerebras_jais.modelzoo.process import CIRH_OPT, ProgramMissing, require_cirh_opt
from cerebras_jais.modelzoo.validate import modelzoo_problems
from cerebras_jais.modelzoo_version import RELEASE, is_of_this_release
from cerebras_jais.wording import counted


class NotReady(UserError):
    """A launch that would fail later than it needs to."""


@dataclass(frozen=True)
class Finding:
    """One check: what it looked at, and what is wrong (None: nothing)."""

    subject: str
    problem: str | None = None

    def __str__(self) -> str:
        return f"ok    {self.subject}" if self.problem is None else f"wrong {self.subject}: {self.problem}"


def inspect_launch(file: ConfigFile, launch: Launch, log: Callable[[str], None] = print) -> None:
    """Check a launch on a cluster and say what was looked at, line by line.

    Args:
        file: the trainer YAML.
        launch: its plan, with what the command line adds to it.
        log: takes the lines.

    Raises NotReady naming the first finding; all findings are printed first.
    """
    wrong = []
    for note in notes_of([phase.config for phase in launch.phases]):
        log(f"note  {note}")
    for finding in _findings(file, launch):
        log(str(finding))
        wrong += [finding] if finding.problem else []
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise NotReady(f"nothing was started: {wrong[0].subject}: {wrong[0].problem}{more}")


def _findings(file: ConfigFile, launch: Launch) -> Iterator[Finding]:
    # What the command line changes (the backend, the systems) is checked as it will run.
    phases = launch.phases
    problems = check(phases)
    for phase in phases:
        found = [*missing_sections(phase.config), *section_problems(phase.config)]
        problems += [problem.below(phase.config.at) for problem in found]
    yield from _of_file(file, problems, f"{file.path}, {counted(len(phases), 'phase')}")
    yield from _software()
    if modelzoo_is_installed():  # what was set aside is judged here
        yield from _of_file(file, modelzoo_problems(file), f"{file.path}, by the Model Zoo's own validation")
    for phase in phases:
        yield from _data(phase)
    yield _start(launch)
    yield from _places(phases)
    yield _cluster(phases[0].config)


def _of_file(file: ConfigFile, problems: Sequence[Problem], subject: str) -> Iterator[Finding]:
    """A finding for each problem of the YAML, or one that there is none."""
    yield from (Finding(file.location(problem.keys), problem.message) for problem in problems)
    if not problems:
        yield Finding(subject)


def _software() -> Iterator[Finding]:
    here = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    fits = (platform.system(), platform.machine(), sys.version_info[:2]) == ("Linux", "x86_64", (3, 11))
    yield Finding(here, None if fits else "the Cerebras software is for Python 3.11 on Linux x86-64; run it there")
    try:
        require_modelzoo()
    except ModelZooMissing as missing:
        yield Finding("Cerebras software", str(missing))
        return
    try:
        require_cirh_opt()
    except ProgramMissing as missing:
        yield Finding(CIRH_OPT, str(missing))
    version = metadata.version("cerebras_pytorch")
    wrong = None if is_of_this_release(version) else f"this plugin is for release {RELEASE}; install that"
    yield Finding(f"cerebras_pytorch {version} and the Model Zoo", wrong)


def _data(phase: Phase) -> Iterator[Finding]:
    for keys, loader in phase.config.dataloaders():
        if not loader.is_read_here:
            continue
        subject = f"{phase.name}, {keys[1]}: {', '.join(loader.folders)}"
        problems = list(data_problems(phase, keys, loader))
        yield from (Finding(subject, problem.message) for problem in problems)
        if not problems:
            yield Finding(subject)


def _start(launch: Launch) -> Finding:
    start = launch.start
    if not start.is_here:
        phase = launch.phases[min(launch.index, len(launch.phases) - 1)]
        return Finding(f"{phase.name} begins {start}", NO_CHECKPOINT)
    if launch.index == len(launch.phases):
        return Finding(nothing_left(start.checkpoint))
    return Finding(f"{launch.phases[launch.index].name} begins {start}")


def _places(phases: Sequence[Phase]) -> Iterator[Finding]:
    """Whether the data is below a mounted directory, where the config names those."""
    cluster = phases[0].config.init.backend.cluster_config
    if cluster is None or not cluster.mount_dirs:
        return
    named = [cluster.mount_dirs] if isinstance(cluster.mount_dirs, str) else cluster.mount_dirs
    mounts = [Path(mount if isinstance(mount, str) else mount["path"]).resolve() for mount in named]
    for mount in mounts:
        yield Finding(
            f"mount {mount}", None if mount.is_dir() else "no such directory; give one that the cluster mounts"
        )
    for phase in phases:
        if phase.config.fit is None:
            continue
        for directory in map(Path, phase.config.fit.train_dataloader.folders):
            if not any(directory.resolve().is_relative_to(mount) for mount in mounts):
                yield Finding(
                    f"{phase.name}, {directory}",
                    "is not below any mounted directory, so workers cannot read it; add --mount-dir",
                )


def _cluster(config: TrainerConfig) -> Finding:
    cluster = config.init.backend.cluster_config
    if cluster is not None and cluster.mgmt_address and cluster.credentials_path:
        return Finding(f"cluster at {cluster.mgmt_address}")
    file = cluster_file()
    if file.is_file():
        return Finding(f"cluster of {file}")
    return Finding(
        "cluster",
        f"{file} is absent, so this is no user node of a cluster; run this on one (its installer makes the file), or "
        "give mgmt_address, mgmt_namespace and credentials_path in trainer.init.backend.cluster_config",
    )
