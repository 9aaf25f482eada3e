"""An evaluation: tasks are loaded, requests answered and recorded, results written as lm_eval writes them."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import handle_non_serializable, hash_string, sanitize_list

from cerebras_jais import __version__
from cerebras_jais.atomic import whole_folder
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.harness.lm import JaisLM
from cerebras_jais.evaluate.suites import data_sets
from cerebras_jais.files import shown_path
from checkpoint_convert.formats.release_directory import TOKENIZER
from checkpoint_convert.streaming.digest import digest_of, file_digest

TASKS = Path(__file__).parent / "tasks"
RECORD, RESULTS = "answered.jsonl", "results"
"""Names in the output: what was answered, and the folder of lm_eval's files."""
_SEED = 1234  # lm_eval's own, of the examples of few-shot prompts
_BOOTSTRAP = 100_000  # draws, lm_eval's own, of the standard errors that have no closed form


@dataclass(frozen=True)
class Plan:
    """Tasks with their data, as lm_eval loads them.

    Attributes:
        names: what was asked for: tasks, groups and tags.
        loaded: lm_eval's own form of them.
    """

    names: tuple[str, ...]
    loaded: dict[str, Any]


def load_tasks(names: Sequence[str], *, data_root: Path | None = None, reading: Path | None = None) -> Plan:
    """Load tasks and their data.

    Args:
        names: of tasks, groups and tags of lm_eval, and of this project's task files.
        data_root: folder with local clones of data sets under their names on the hub; what is not there comes from
            the hub or its cache.
        reading: file in SQuAD's format, of the task `reading`.

    Raises UserError for a name that is not known, and for a data set that is not there: it says how to fetch it.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    file = str(reading.resolve()) if reading is not None else None
    known = _known(file, include_defaults=False)
    if not set(names) <= set(known.all_tasks):
        known = _known(file, include_defaults=True)
    unknown = [name for name in names if name not in known.task_index]
    if unknown:
        raise UserError(f"task {unknown[0]!r} is not known; `lm_eval ls tasks` lists those that are")
    found: list[Task | Group] = []
    with _reading(data_root):
        for name in names:
            try:
                made = known.load([name])
            except (LookupError, TypeError, ValueError) as error:
                raise UserError(
                    f"task {name}: its data are not as the task wants them ({_first_line(error)})"
                ) from error
            found += made["groups"].values() if name in made["groups"] else made["tasks"].values()
    loaded = known.load(found)
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return Plan(tuple(names), loaded)


def run(lm: JaisLM, plan: Plan, output: Path, *, limit: int | None = None) -> dict[str, Any]:
    """Evaluate, write `output`/results anew, and return what is in its results file, samples aside.

    What the record of `lm` has is not asked again. The results are the same as those of a run that was not ended
    before, dates and durations apart.
    """
    began = time.time()
    random.seed(0)
    np.random.seed(_SEED)
    torch.manual_seed(_SEED)
    with mock.patch("lm_eval.api.task.tqdm", lambda items, **_: items):  # progress is shown by that of `lm`
        found = evaluate(
            lm,
            plan.loaded,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            apply_chat_template=lm.chat,
            fewshot_as_multiturn=lm.chat,
        )
    samples = found.pop("samples")
    template = lm.chat_template(lm.chat)
    results = {
        **found,
        "config": {
            "model": "cerebras-jais",
            "model_args": {"path": lm.engine.name},
            **lm.get_model_info(),
            "tasks": list(plan.names),
            "limit": limit,
            "bootstrap_iters": _BOOTSTRAP,
            "random_seed": 0,
            "numpy_seed": _SEED,
            "torch_seed": _SEED,
            "fewshot_seed": _SEED,
        },
        "date": began,
        "lm_eval_version": version("lm_eval"),
        "cerebras_jais_version": __version__,
        "torch_version": torch.__version__,
        "eot_token_id": lm.eot_token_id,
        "max_length": lm.max_length,
        "task_hashes": {name: _task_hash(entries) for name, entries in samples.items()},
        "model_source": "cerebras-jais",
        "model_name": lm.engine.name,
        "model_name_sanitized": lm.engine.name,
        "system_instruction": None,
        "chat_template": template or None,
        "chat_template_sha": hash_string(template) if template else None,
        "total_evaluation_time_seconds": str(time.time() - began),
    }
    _write(results, samples, output / RESULTS)
    return results


def model_digest(path: Path, *, tokenizer: Path | None = None, config: Path | None = None) -> str:
    """A digest of the content of a model: of a checkpoint, or of all files of a release by their names.

    Args:
        tokenizer: the folder that is given with it, if any, whose tokenizer counts; config: the trainer YAML.
    """
    given = [file for file in (tokenizer / TOKENIZER if tokenizer is not None else None, config) if file is not None]
    if not (path.is_dir() or given):
        return file_digest(path)
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    files += given
    return digest_of(json.dumps([[file.name, file_digest(file)] for file in files]).encode())


@cache
def _known(reading: str | None, *, include_defaults: bool) -> TaskManager:
    """The index of tasks: of this project's, or of all; lm_eval's has 14,000 files, which take ten seconds."""
    metadata = None if reading is None else {"reading": reading}
    return TaskManager(include_path=str(TASKS), include_defaults=include_defaults, metadata=metadata)


@contextlib.contextmanager
def _reading(data_root: Path | None) -> Iterator[None]:
    """Have lm_eval read data sets in a folder, and say how to fetch one that is missing."""
    theirs = ConfigurableTask.download

    def download(task: Any, *args: Any, **kwargs: Any) -> None:
        try:
            theirs(task, *args, **kwargs)
        except UserError:
            raise
        except Exception as error:  # datasets and the hub's client have a dozen ways to say so
            name = (task.config.dataset_kwargs or {}).get("path") or task.DATASET_PATH
            raise UserError(_missing(task.config.task, str(name), error)) from error

    with contextlib.ExitStack() as stack:
        if data_root is not None:
            if not data_root.is_dir():
                raise UserError(f"{shown_path(data_root)}: is no folder; give the one that has the data sets")
            stack.enter_context(contextlib.chdir(data_root))  # where datasets looks before it asks the hub
        stack.enter_context(mock.patch.object(ConfigurableTask, "download", download))
        yield


def _missing(task: str, name: str, error: Exception) -> str:
    known = next((data_set for data_set in data_sets() if data_set.path == name), None)
    command = known.fetch if known else f"hf download --repo-type dataset {name} --local-dir DIR/{name}"
    return (
        f"task {task}: its data set {name} cannot be read ({_first_line(error)}); fetch it with `{command}` and give "
        "--data-root DIR"
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def _task_hash(samples: Sequence[dict[str, Any]]) -> str:
    """lm_eval's own: of the hashes of all documents, prompts and answers of a task."""
    found: str = hash_string("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in samples))
    return found


def _write(results: dict[str, Any], samples: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Write the files that lm_eval writes, with its names; the folder appears whole, and replaces the one before."""
    date = datetime.now().isoformat().replace(":", "-")
    with whole_folder(folder, replaces=True) as hidden:
        for task, entries in samples.items():
            with open(hidden / f"samples_{task}_{date}.jsonl", "w", encoding="utf-8") as file:
                for entry in entries:
                    file.write(_line(entry) + "\n")
        text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
        (hidden / f"results_{date}.json").write_text(text, encoding="utf-8")


def _line(entry: dict[str, Any]) -> str:
    """A sample in the form of lm_eval's files."""
    arguments = {
        f"gen_args_{number}": {f"arg_{place}": value for place, value in enumerate(asked)}
        for number, asked in enumerate(entry["arguments"])
    }
    shown = {
        **entry,
        "arguments": arguments,
        "resps": sanitize_list(entry["resps"]),
        "filtered_resps": sanitize_list(entry["filtered_resps"]),
        "target": str(entry["target"]),
    }
    return json.dumps(shown, default=handle_non_serializable, ensure_ascii=False)
