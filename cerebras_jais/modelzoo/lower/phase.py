"""Lowering the phases of a trainer YAML: each in a process of its own, whose time and memory are measured.

Nothing of the Cerebras software is imported, or changed, in the process of the caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cerebras_jais
from cerebras_jais.atomic import whole_folder
from cerebras_jais.catalog.reader import read_trainers
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.errors import Keys, Problem, UserError
from cerebras_jais.files import shown_path
from cerebras_jais.interrupts import scratch_folder, uninterrupted
from cerebras_jais.launch.phases import Phase, plan_phases
from cerebras_jais.launch.plan import missing_sections
from cerebras_jais.launch.start import Start
from cerebras_jais.modelzoo.installed import require_modelzoo
from cerebras_jais.modelzoo.lower.data import with_data
from cerebras_jais.modelzoo.lower.failure import NO_MEMORY, is_of_memory, problem_of
from cerebras_jais.modelzoo.phases import on_cluster, trainer_of
from cerebras_jais.wording import counted

CHILD = ("-m", "cerebras_jais.modelzoo.lower.child")
SECONDS = 1800  # the largest model of the family takes one minute on two cores
_LOG = "log.txt"
_PACKAGES = str(Path(cerebras_jais.__file__).resolve().parents[1])  # also where this is not installed
_TIMED_OUT = 1000  # in place of an exit status, of which the largest is 255
# Callbacks and loggers that send mail or metrics, or evaluate on data from the network; the programs are the same.
_LEFT_OUT = ("emailnotification", "slacknotification", "eleutherevalharness", "bigcodeevalharness", "wandblogger")


class LoweringError(UserError):
    """A phase that the Cerebras software cannot lower."""


@dataclass(frozen=True)
class LoweredProgram:
    """The program of one step: "train" or "evaluate". `cirh` and `torch` are the files of its text at both levels.

    The Cerebras software knows constraints of `checked` operations of the torch level, and of `unknown` others none;
    `violations` has those that violate theirs, each with the reason.
    """

    step: str
    batch_size: int
    cirh: Path
    torch: Path
    checked: int
    unknown: int
    violations: Mapping[str, str]


@dataclass(frozen=True)
class LoweredPhase:
    """A phase, its programs, and what lowering took: seconds, those of a processor, and bytes of the largest process.

    `stand_ins` has the paths below `trainer` of the loaders whose data is not on this machine.
    """

    phase: Phase
    programs: tuple[LoweredProgram, ...]
    stand_ins: tuple[Keys, ...]
    seconds: float
    processor_seconds: float
    memory: int


def phases_to_lower(file: ConfigFile, only: int | None = None) -> list[tuple[Phase, Mapping[str, Any]]]:
    """The phases of a trainer YAML, each with its mapping under `trainer:`.

    Args:
        file: the YAML.
        only: the number of the one phase that is wanted.

    Raises:
        ConfigError: what is wrong in the YAML.
        ModelZooMissing: the Cerebras software is not installed.
        UserError: there is no phase `only`.
    """
    require_modelzoo()
    phases = plan_phases(read_trainers(file), checked=False)
    if only is not None and not 1 <= only <= len(phases):
        raise UserError(f"{file.path}: has {counted(len(phases), 'phase')}; there is no phase {only}")
    pairs = zip(phases, (raw for _, raw in file.trainers), strict=True)
    return [(phase, raw) for phase, raw in pairs if only in (None, phase.number)]


def lower_phase(
    file: ConfigFile,
    phase: Phase,
    raw: Mapping[str, Any],
    folder: Path,
    *,
    child: Sequence[str] = CHILD,
    seconds: float = SECONDS,
) -> LoweredPhase:
    """Lower one phase.

    Args:
        file: the YAML that it is of.
        phase: as planned.
        raw: its mapping under `trainer:`.
        folder: where the programs go; made when they are there.
        child: the main module of the process, as words of Python's command line.
        seconds: after which the process is ended.

    Raises:
        LoweringError: it cannot be lowered.
        UserError: `folder` is there.
    """
    if folder.exists():
        raise UserError(f"{shown_path(folder)}: already exists; choose another folder, or remove it")
    for problem in missing_sections(phase.config):
        raise LoweringError(_line(file, phase, problem))
    with scratch_folder("cerebras-jais-lower-") as scratch:
        planned = trainer_of(phase, Start(None), {**raw, "init": on_cluster(raw["init"], "compile_only")})
        trainer, stand_ins = with_data(planned, phase.config, scratch)
        init = trainer["init"]
        init["model_dir"] = str(scratch / "model_dir")
        init["callbacks"] = [*_kept(init.get("callbacks"))]
        init["loggers"] = [*_kept(init.get("loggers")), {"TelemetryLogger": None}]
        (scratch / "request.json").write_text(json.dumps({"trainer": trainer}), encoding="utf-8")
        started = time.monotonic()
        status, usage = _run([sys.executable, *child, str(scratch)], scratch / _LOG, seconds)
        took = time.monotonic() - started
        answer = _answer(scratch, status, f"{file.path}, {phase.name}", seconds)
        if answer["failure"] is not None:
            raise LoweringError(_line(file, phase, problem_of(answer["failure"], raw, _log_of(scratch))))
        programs = []
        with whole_folder(folder) as made:
            for program in answer["programs"]:
                files = [f"{program['name']}.{level}.mlir" for level in ("cirh", "torch")]
                for name in files:
                    shutil.move(scratch / name, made / name)
                own = {name: program[name] for name in ("step", "batch_size", "checked", "unknown", "violations")}
                programs.append(LoweredProgram(**own, cirh=folder / files[0], torch=folder / files[1]))
    processor, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    return LoweredPhase(phase, tuple(programs), stand_ins, took, processor, memory)


def _line(file: ConfigFile, phase: Phase, problem: Problem) -> str:
    """The line of a problem: with its key and line of the file, or with the phase where no key decides it."""
    if problem.keys:
        return file.message(problem.below(phase.config.at))
    return f"{file.path}, {phase.name}: {problem.message}"


def _kept(entries: Sequence[Mapping[str, Any]] | None) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in entries or () if next(iter(entry)).lower() not in (*_LEFT_OUT, "telemetrylogger"))


def _run(command: Sequence[str], log: Path, seconds: float) -> tuple[int, resource.struct_rusage]:
    """Run a process; its exit status (negative: the signal that ended it), and what it and those it waited for used.

    After `seconds` it is ended, with the processes that it started, and the status is _TIMED_OUT.
    """
    process = timer = None
    expired = threading.Event()

    def expire(leader: int) -> None:
        expired.set()  # before the process ends, so that who waits for that finds it
        _end(leader)

    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([_PACKAGES, *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    try:
        with log.open("wb") as output, uninterrupted():  # a process that is started is known, and so is ended below
            process = subprocess.Popen(
                command,
                cwd=log.parent,  # the Cerebras software writes into its working directory
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        timer = threading.Timer(seconds, expire, [process.pid])
        timer.start()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own until wait4
    finally:
        with uninterrupted():
            if timer is not None:
                timer.cancel()
            if process is not None:
                _end(process.pid)  # itself if the caller is interrupted, and what it started
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
    return _TIMED_OUT if expired.is_set() else process.returncode, usage


def _end(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def _answer(folder: Path, status: int, at: str, seconds: float) -> dict[str, Any]:
    """What the process has written. Raises LoweringError, with how it ended, where it has written nothing."""
    try:
        answer: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoweringError(f"{at}: {_end_in_words(folder, status, seconds)}") from None
    except ValueError as error:
        raise LoweringError(f"{at}: its answer cannot be read ({error}); make room in {folder.parent}") from None
    return answer


def _end_in_words(folder: Path, status: int, seconds: float) -> str:
    if status == _TIMED_OUT:
        return f"lowering was not done after {seconds:g} seconds; a loop in the model may not end"
    log = _log_of(folder)
    if is_of_memory(log):
        return NO_MEMORY
    if status == -signal.SIGKILL:
        return f"the process that lowers was ended by the system, as it is where memory runs out: {NO_MEMORY}"
    last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "nothing")
    how = f"was ended by the signal {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"the process that lowers {how}; its last words: {last}"


def _log_of(folder: Path) -> str:
    return (folder / _LOG).read_text(encoding="utf-8", errors="replace")
