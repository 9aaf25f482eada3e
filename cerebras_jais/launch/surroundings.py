"""Whether a trainer YAML fits what it will meet: its data, its tokenizer, the tensors it wants to freeze."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from cerebras_jais.config.modelzoo_only import not_done_here
from cerebras_jais.config.sections import DataLoader
from cerebras_jais.config.trainer import TrainerConfig, read_trainer_yaml
from cerebras_jais.config.yaml_file import ConfigFile, read_yaml, undotted
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.data.shards import recorded_vocabulary
from cerebras_jais.data.tokenizer import LARGEST
from cerebras_jais.errors import UserError
from cerebras_jais.files import parse_json, read_text
from cerebras_jais.launch.checks import notes_of
from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.plan import check_data, machine_memory, memory_problem, missing_sections, plan_training
from cerebras_jais.launch.start import plan_launch
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from cerebras_jais.optimizer.groups import groups_of
from cerebras_jais.optimizer.schedule import check_schedules


def preflight(path: str | Path, tokenizer: Path | None = None) -> tuple[list[str], list[str]]:
    """The problems of a YAML that the schema takes with its surroundings, and notes of what was not looked at.

    What `fit` would refuse is a problem here too, but what only a file that is not here, the start checkpoint or the
    memory of the machine can tell; a note names that.

    Args:
        path: the trainer YAML.
        tokenizer: a folder with tokenizer.json, whose vocabulary the model's must hold.

    Raises:
        ConfigError: the schema refuses the file.
    """
    configs, source = read_trainer_yaml(path), read_yaml(path)
    several = isinstance(source.data["trainer"], list)
    problems: list[str] = []
    notes = notes_of(configs)
    not_here: list[str] = []
    phases = _phases(configs, problems, notes)
    for index, config in enumerate(configs):
        at: tuple[str | int, ...] = ("trainer", index, "trainer") if several else ("trainer",)
        if config.fit is None and (config.validation or config.validation_all):
            notes.append("it has data to validate on alone; `fit` cannot train it")
        else:
            beyond = not_done_here(config) if config.init.backend_type in ("CPU", "GPU") else ()
            problems += [
                f"{source.location((*at, *k))}: {message}" for k, message in [*missing_sections(config), *beyond]
            ]
        of_model = list(_model_problems(config, source, at))
        problems += [*_tokenizer_problems(config, tokenizer, source, at), *of_model]
        if not of_model and config.init.backend_type != "CSX":
            memory = memory_problem(config.init.model, machine_memory())
            notes += [f"{memory} here"] if memory else []
        for keys, loader in _loaders(config):
            absent = [folder for folder in _folders(loader) if not Path(folder).is_dir()]
            if absent:
                not_here += [folder for folder in absent if folder not in not_here]
                continue
            problems += _recorded_problems(config, loader, source, at)
            try:
                with closing(HDF5Samples(**loader.reader_keys())) as samples:
                    check_data(samples, config.init.model, source.location((*at, *keys)), 1)
                    if phases and keys == ("fit", "train_dataloader"):
                        plan_training(phases[index].config, samples, phases[index].begins)
            except UserError as error:
                message = str(error)
                place = source.location((*at, *keys))
                problems.append(message if message.startswith((place, str(path))) else f"{place}: {message}")
    if not_here:
        more = f" and {len(not_here) - 1} more" if len(not_here) > 1 else ""
        notes.append(f"its data is not here and was not looked at: {not_here[0]}{more}")
    return problems, notes


def _phases(configs: Sequence[TrainerConfig], problems: list[str], notes: list[str]) -> Sequence[Phase]:
    """The phases of a launch, empty where they cannot be continued; what is wrong or not looked at is added."""
    try:
        launch = plan_launch(configs)
    except UserError as error:
        problems.append(str(error))
        return []
    start = launch.start
    if not start.is_here:
        notes.append(f"its start checkpoint is not here and was not looked at: {start.checkpoint}")
    elif launch.index == len(launch.phases):
        notes.append(f"nothing is left to train: {start.checkpoint} is at the end of the run")
    elif start.checkpoint is not None:
        notes.append(f"it begins {start}; the tensors of that file were not looked at")
    return launch.phases


def _loaders(config: TrainerConfig) -> Iterator[tuple[tuple[str | int, ...], DataLoader]]:
    """The sections of the data that this project reads, with their paths."""
    if config.fit is None:
        return
    several = len(config.fit.val_dataloader) > 1
    found: list[tuple[tuple[str | int, ...], DataLoader]] = [(("fit", "train_dataloader"), config.fit.train_dataloader)]
    for index, section in enumerate(config.fit.val_dataloader):
        found.append((("fit", "val_dataloader", index) if several else ("fit", "val_dataloader"), section))
    yield from ((keys, loader) for keys, loader in found if loader.is_read_here)


def _folders(loader: DataLoader) -> list[str]:
    named = [loader.data_dir] if loader.mixture is None else [part.data_dir for part in loader.mixture]
    return [folder for entry in named for folder in (entry if isinstance(entry, list) else [entry]) if folder]


def _tokenizer_problems(
    config: TrainerConfig, tokenizer: Path | None, source: ConfigFile, at: tuple[str | int, ...]
) -> Iterator[str]:
    if tokenizer is None:
        return
    size, entries = config.init.model.vocab_size, vocabulary_of(tokenizer)
    if entries > size:
        yield (
            f"{source.location((*at, 'init', 'model', 'vocab_size'))}: {size} is smaller than the {entries} entries of "
            f"{tokenizer}; give the model's own tokenizer, or at least {entries}"
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


def _recorded_problems(
    config: TrainerConfig, loader: DataLoader, source: ConfigFile, at: tuple[str | int, ...]
) -> Iterator[str]:
    size = config.init.model.vocab_size
    for folder in _folders(loader):
        entries = recorded_vocabulary(folder)
        if entries is not None and entries > size:
            yield (
                f"{source.location((*at, 'init', 'model', 'vocab_size'))}: {size} is smaller than the tokenizer of "
                f"{entries} entries that made {folder}; give at least {entries}, or data of the model's tokenizer"
            )


def _model_problems(config: TrainerConfig, source: ConfigFile, at: tuple[str | int, ...]) -> Iterator[str]:
    """Whether patterns of frozen and of tagged parameters find any, and each parameter has one schedule."""
    init = config.init
    with torch.device("meta"):
        model = LanguageModel(init.model)
    try:
        freeze_parameters(model, init.model.frozen_parameters)
        if init.optimizer is not None:
            check_schedules(init.schedulers, groups_of(model, init.model, init.optimizer))
    except UserError as error:
        where, _, message = str(error).partition(": ")
        yield f"{source.location((*at, 'init', *undotted(where)))}: {message}"
