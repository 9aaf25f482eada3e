"""What lm_eval writes of one model: results_*.json and samples_*.jsonl, in the format of its release 0.4.13."""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, parse_json, read_text, shown_path

HARNESS = "0.4.13"
"""The release of lm_eval whose format is read."""
MOST = 256 * MIB  # of one results file; one of mmlu's 57 tasks has 1 MiB
_KEYS = ("results", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "config", "lm_eval_version")
_NO_FILTER = "none"
_MANY = 2**53  # questions or parameters; a float64 has every whole number up to here
_LAST_SECOND = 253402300799  # of the year 9999, as a time of Unix


class ResultsError(UserError):
    """A folder or a file that is not what lm_eval writes, or that does not belong beside the others."""


@dataclass(frozen=True)
class Metric:
    """One number of a task as lm_eval has it, mostly a fraction, and its standard error where it has one."""

    value: float
    error: float | None
    filter: str


@dataclass(frozen=True)
class Task:
    """The result of a task, or of a group of tasks.

    Attributes:
        count: questions that were asked.
        total: questions that the data has; more than `count` where a limit was set.
        shots: examples before each question; None where the tasks of a group differ.
        digest: SHA-256 over its documents, prompts and answers, a group's over those of its tasks; None where lm_eval
            kept no samples.
        template: SHA-256 of the chat template around the prompts, or "applied"; None without one.
        parts: the tasks that a group consists of, leaves alone; empty for a task.
        groups: the groups within a group.
        delimiter: what stands between a prompt and the text of an option.
    """

    name: str
    version: str
    metrics: Mapping[str, Metric]
    higher_is_better: Mapping[str, bool]
    count: int
    total: int
    shots: int | None
    digest: str | None
    template: str | None
    parts: tuple[str, ...]
    groups: tuple[str, ...]
    delimiter: str
    harness: str
    date: float
    samples: tuple[Path, ...]


@dataclass(frozen=True)
class Run:
    """Everything that was measured of one model: tasks and groups by name.

    `parameters` and `precision` are None where lm_eval could not record them.
    """

    name: str
    folder: Path
    parameters: int | None
    precision: str | None
    tasks: Mapping[str, Task]
    notes: tuple[str, ...]

    @property
    def inner(self) -> set[str]:
        """The names of what is part of a group that was measured: tasks, and groups within."""
        return _inner(self.tasks.values())


def read_run(folder: Path) -> Run:
    """Read all results below a folder; where a task was evaluated twice, the later one counts.

    Raises:
        ResultsError: nothing there, results of two models, or results that are not lm_eval's.
    """
    if not folder.is_dir():
        raise ResultsError(f"{shown_path(folder)}: is no folder; give the one that lm_eval wrote its results to")
    paths = sorted(folder.rglob("results_*.json"))
    if not paths:
        raise ResultsError(
            f"{shown_path(folder)}: has no results_*.json, in no folder below it either; give the folder that "
            "`cerebras-jais evaluate --output` or `lm_eval --output_path` wrote"
        )
    files = sorted((_read_file(path) for path in paths), key=lambda file: file.date)
    for file in files[1:]:
        if file.identity != files[0].identity:
            raise ResultsError(
                f"{shown_path(folder)}: has results of two models, {files[0].path.relative_to(folder)} of "
                f"{files[0].identity} and {file.path.relative_to(folder)} of {file.identity}; give each a folder of "
                "its own"
            )
    every = [task for file in files for task in file.tasks]
    tasks = {task.name: task for task in every}
    inner = _inner(every)
    twice = [name for name, number in Counter(task.name for task in every).items() if number > 1 and name not in inner]
    notes = tuple(f"{name} was evaluated more than once; the last result counts" for name in twice)
    last = files[-1]
    name = Path(last.name).name if last.name.startswith(("/", ".")) else last.name  # a release on this machine
    return Run(name or last.name, folder, last.parameters, last.precision, tasks, notes)


def with_own_names(runs: Sequence[Run]) -> list[Run]:
    """The runs, those that are called alike with their folders in their names.

    Raises:
        ResultsError: the same folder twice.
    """
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ResultsError(f"{shown_path(runs[0].folder)}: a folder is given twice; give each once")
    names = Counter(run.name for run in runs)
    return [
        run if names[run.name] == 1 else replace(run, name=f"{run.name} ({shown_path(run.folder)})") for run in runs
    ]


def _inner(tasks: Iterable[Task]) -> set[str]:
    return {name for task in tasks for name in (*task.parts, *task.groups)}


@dataclass(frozen=True)
class _File:
    """One results file. `identity` is what a message calls its model: name, precision and revision."""

    path: Path
    date: float
    name: str
    parameters: int | None
    precision: str | None
    revision: str
    tasks: tuple[Task, ...]

    @property
    def identity(self) -> str:
        return " ".join(filter(None, (self.name, self.precision, self.revision)))


class _Checked:
    """A JSON object of lm_eval's, whose values are of the kind that is asked for; else ResultsError names the file."""

    def __init__(self, path: Path, value: Any, place: str = "") -> None:
        self.path, self.place = path, place
        if not isinstance(value, dict):
            raise self.error("is no object")
        self.value: dict[str, Any] = value

    def error(self, problem: str, key: str = "") -> ResultsError:
        place = "".join(f"[{part!r}]" for part in (self.place, key) if part)
        return ResultsError(
            f"{shown_path(self.path)}: {f'{place} ' if place else ''}{problem}; this is not what lm_eval {HARNESS} "
            "writes, evaluate with that release"
        )

    def object(self, key: str) -> _Checked:
        return _Checked(self.path, self.value.get(key, {}), key)

    def number(self, key: str, otherwise: float | None = None, most: float = math.inf) -> float:
        """A number; where `most` is given, it is not negative, and not more."""
        value = self.value.get(key, otherwise)
        if not _is_number(value) or not (most == math.inf or 0 <= value <= most):
            raise self.error("is no number", key)
        return float(value)

    def text(self, key: str) -> str | None:
        value = self.value.get(key)
        if value is None or isinstance(value, str):
            return value or None
        raise self.error("is no text", key)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.value.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error("is no list of names", key)
        return tuple(value)


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that float64 has; infinity and JSON's true are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _read_file(path: Path) -> _File:
    found = _Checked(path, parse_json(read_text(path, MOST, ResultsError), shown_path(path), ResultsError))
    missing = [key for key in _KEYS if key not in found.value]
    if missing:
        raise found.error(f"has no key {missing[0]!r}")
    neighbours = {neighbour.name for neighbour in path.parent.iterdir()}
    config = found.object("config")
    parameters = config.value.get("model_num_parameters")
    arguments = config.value.get("model_args")
    precision = config.value.get("model_dtype") or (arguments.get("dtype") if isinstance(arguments, dict) else None)
    return _File(
        path,
        found.number("date", most=_LAST_SECOND),
        _shown(found.text("model_name") or config.text("model") or "a model without a name"),
        int(parameters) if _is_number(parameters) and 1 <= parameters <= _MANY else None,
        _shown(str(precision).removeprefix("torch.")) if precision else None,
        _shown(config.text("model_sha") or config.text("model_hash") or "")[:12],
        tuple(_task(found, name, neighbours) for name in found.object("results").value),
    )


def _task(found: _Checked, name: str, neighbours: set[str]) -> Task:
    """The result of a task; `neighbours` are the names of the files beside the one that it is in."""
    parts, groups = _below(found.object("group_subtasks"), name)
    measured, higher = found.object("results").object(name), found.object("higher_is_better").object(name)
    sizes = [found.object("n-samples").object(part) for part in parts or (name,)]
    shots = found.object("n-shot").value.get(name)
    hashes = found.object("task_hashes")
    delimiter = found.object("configs").object(name).value.get("target_delimiter", " ")
    stamp = found.path.name.removeprefix("results_").removesuffix(".json")
    names = {f"samples_{part}_{stamp}.jsonl" for part in parts or (name,)}
    return Task(
        name=_shown(name),
        version=_shown(str(found.object("versions").value.get(name, "not stated"))),
        metrics=_metrics(measured),
        higher_is_better={key: value for key, value in higher.value.items() if isinstance(value, bool)},
        count=sum(int(size.number("effective", 0, _MANY)) for size in sizes),
        total=sum(int(size.number("original", 0, _MANY)) for size in sizes),
        shots=shots if isinstance(shots, int) else None,
        digest=_digest([hashes.text(part) for part in parts]) if parts else hashes.text(name),
        template=_template(found),
        parts=parts,
        groups=groups,
        delimiter=delimiter if isinstance(delimiter, str) else " ",
        harness=_shown(str(found.value["lm_eval_version"])),
        date=found.number("date", most=_LAST_SECOND),
        samples=tuple(found.path.parent / file for file in sorted(names & neighbours)),
    )


def _template(found: _Checked) -> str | None:
    """The digest of the chat template; a word where only its use is recorded."""
    applied = found.object("config").value.get("chat_template_applied") is True
    return found.text("chat_template_sha") or ("applied" if applied else None)


def _metrics(measured: _Checked) -> dict[str, Metric]:
    """The numbers of a task by their names. Of several filters the one called none counts, else the first."""
    metrics: dict[str, Metric] = {}
    for key in measured.value:
        name, comma, filtered = key.partition(",")
        if key in ("acc", "acc_norm", "exact_match"):
            raise measured.error("is a metric without its filter", key)
        if not comma or name.endswith("_stderr") or (name in metrics and filtered != _NO_FILTER):
            continue
        error = measured.value.get(f"{name}_stderr,{filtered}")
        # lm_eval writes "N/A" for the error of a single question and of an aggregation that has none.
        known = float(error) if _is_number(error) and error >= 0 else None
        metrics[name] = Metric(measured.number(key), known, filtered)
    return metrics


def _below(groups: _Checked, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The tasks and the groups below a group, each once."""
    tasks: dict[str, None] = {}
    within: dict[str, None] = {}
    waiting = list(groups.texts(name))
    while waiting:
        below = waiting.pop(0)
        inner = groups.texts(below)
        if not inner:
            tasks[below] = None
        elif below not in within:
            within[below] = None
            waiting.extend(inner)
    return tuple(tasks), tuple(within)


def _digest(digests: Iterable[str | None]) -> str | None:
    """One digest of those of a group's tasks, in any order; None where one is missing."""
    known = sorted(digest or "" for digest in digests)
    return hashlib.sha256("".join(known).encode()).hexdigest() if known and all(known) else None


def _shown(text: str) -> str:
    """A name in one line that a terminal shows as it is."""
    return text if text.isprintable() else repr(text)
