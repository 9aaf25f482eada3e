"""Whether a trainer YAML fits what it will meet: its data, its tokenizer, the tensors it wants to freeze."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from cerebras_jais.config.modelzoo_only import not_done_here
from cerebras_jais.config.sections import DataLoader
from cerebras_jais.config.trainer import TrainerConfig, model_problem
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.data.shards import recorded_vocabulary
from cerebras_jais.data.tokenizer import LARGEST
from cerebras_jais.errors import Keys, Problem, UserError
from cerebras_jais.files import parse_json, read_text
from cerebras_jais.launch.memory import arrangement_of, memory_problem
from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.plan import (
    PlanError,
    data_problem,
    missing_sections,
    plan_training,
)
from cerebras_jais.launch.saved import nothing_left
from cerebras_jais.launch.start import Launch
from cerebras_jais.machine import machine_memory
from cerebras_jais.model.config import ModelConfigError
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from cerebras_jais.optimizer.groups import OptimizerSectionError, groups_of
from cerebras_jais.optimizer.schedule import check_schedules


def check_surroundings(launch: Launch, tokenizer: Path | None = None) -> tuple[list[Problem], list[str]]:
    """The problems of a YAML with its surroundings, each at its key of the file, and notes of what was not checked.

    What `fit` would refuse is a problem here too, except what needs a file that is not here, the start checkpoint or
    the memory of the machine; a note names that.

    Args:
        launch: the plan of the YAML.
        tokenizer: a folder with tokenizer.json, whose vocabulary the model's must hold.

    Raises:
        UserError: the tokenizer cannot be read.
    """
    problems: list[Problem] = []
    notes = list(_start_notes(launch))
    absent: dict[str, None] = {}
    for phase in launch.phases:
        config, found = phase.config, list[Problem]()
        if config.fit is None and (config.validation or config.validation_all):
            notes.append("it has validation data only; `fit` cannot train it")
        else:
            found += missing_sections(config)
        found += [*_tokenizer_problems(config, tokenizer), *section_problems(config)]
        if not found and config.fit is not None and config.init.backend_type != "CSX":
            backend = (config.init.backend_type or "cpu").lower()
            run = arrangement_of(config, 1, "ddp", activation_checkpointing=False, backend=backend)
            memory = memory_problem(config.init.model, run, machine_memory())
            notes += [f"{memory} here"] if memory else []
        for keys, loader in config.dataloaders():
            if not loader.is_read_here:
                continue
            missing = [folder for folder in loader.folders if not Path(folder).is_dir()]
            absent |= dict.fromkeys(missing)
            if not missing:
                found += data_problems(phase, keys, loader)
        problems += [problem.below(config.at) for problem in found]
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        notes.append(f"data not found, so not checked: {next(iter(absent))}{more}")
    return problems, notes


def _start_notes(launch: Launch) -> Iterator[str]:
    """Notes about the start checkpoint."""
    start = launch.start
    if not start.is_here:
        yield f"start checkpoint not found, so not checked: {start.checkpoint}"
    elif launch.index == len(launch.phases):
        yield nothing_left(start.checkpoint)
    elif start.checkpoint is not None:
        yield f"starts {start}; its tensors were not checked"


def section_problems(config: TrainerConfig) -> Iterator[Problem]:
    """What is wrong with a trainer by itself that shows only where it is run: what is not done here, and its model."""
    if config.init.backend_type in ("CPU", "GPU"):
        yield from not_done_here(config.aside)
    yield from model_problems(config)


def data_problems(phase: Phase, keys: Keys, loader: DataLoader) -> Iterator[Problem]:
    """What is wrong with the data of the section at `keys`, and of training data with the length of the run on it."""
    config = phase.config
    yield from _recorded_problems(config, loader)
    try:
        with closing(HDF5Samples(**loader.reader_keys())) as samples:
            problem = data_problem(samples, config.init.model)
            if problem is None and keys == ("fit", "train_dataloader"):
                plan_training(config, samples, phase.begins)
    except PlanError as error:
        yield Problem(("init", "loop"), error.problem)
        return
    except UserError as error:
        problem = str(error)
    if problem is not None:
        yield Problem(keys, problem)


def _tokenizer_problems(config: TrainerConfig, tokenizer: Path | None) -> Iterator[Problem]:
    if tokenizer is None:
        return
    size, entries = config.init.model.vocab_size, vocabulary_of(tokenizer)
    if entries > size:
        yield Problem(
            ("init", "model", "vocab_size"),
            f"{size} is smaller than the {entries} entries of {tokenizer}; give the model's own tokenizer, or at least "
            f"{entries}",
        )


def vocabulary_of(tokenizer: Path) -> int:
    """One more than the largest id of a folder's tokenizer.json. Raises UserError where there is none to read."""
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        content = parse_json(read_text(file, LARGEST), str(file))
        ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content.get("added_tokens", ()))]
        return int(max(ids)) + 1
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{file}: not a tokenizer.json that can be read ({error}); give the tokenizer's folder"
        ) from error


def _recorded_problems(config: TrainerConfig, loader: DataLoader) -> Iterator[Problem]:
    size = config.init.model.vocab_size
    for folder in loader.folders:
        entries = recorded_vocabulary(folder)
        if entries is not None and entries > size:
            yield Problem(
                ("init", "model", "vocab_size"),
                f"{size} is smaller than the tokenizer of {entries} entries that made {folder}; give at least "
                f"{entries}, or data of the model's tokenizer",
            )


def model_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Whether patterns of frozen and of tagged parameters find any, and each parameter has one schedule."""
    init = config.init
    with torch.device("meta"):
        model = LanguageModel(init.model)
    try:
        freeze_parameters(model, init.model.frozen_parameters)
        if init.optimizer is not None:
            check_schedules(init.schedulers, groups_of(model, init.model, init.optimizer))
    except ModelConfigError as error:
        yield model_problem(error)
    except OptimizerSectionError as error:
        yield error.problem.below(("init",))
