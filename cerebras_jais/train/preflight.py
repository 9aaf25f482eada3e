"""Whether a trainer YAML fits what it will meet: its data, its tokenizer, the tensors it wants to freeze."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from cerebras_jais.data.hdf5 import HDF5Samples
from cerebras_jais.data.sources import recorded_vocabulary
from cerebras_jais.errors import UserError
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from cerebras_jais.recipes.schema import TrainerConfig, read_trainer_yaml
from cerebras_jais.recipes.sections import DataLoader
from cerebras_jais.recipes.yaml_source import YamlSource, read_yaml
from cerebras_jais.train.plan import check_data


def preflight(path: str | Path, tokenizer: Path | None = None) -> tuple[list[str], list[str]]:
    """The problems of a YAML that the schema takes with its surroundings, and the data folders that are not here.

    Args:
        path: the trainer YAML.
        tokenizer: a folder with tokenizer.json, whose vocabulary the model's must hold.

    Raises:
        RecipeError: the schema refuses the file.
    """
    configs, source = read_trainer_yaml(path), read_yaml(path)
    problems: list[str] = []
    not_here: list[str] = []
    several = isinstance(source.data["trainer"], list)
    for index, config in enumerate(configs):
        at: tuple[str | int, ...] = ("trainer", index, "trainer") if several else ("trainer",)
        problems += [*_tokenizer_problems(config, tokenizer, source, at), *_freezing_problems(config, source, at)]
        for keys, loader in _loaders(config):
            absent = [folder for folder in _folders(loader) if not Path(folder).is_dir()]
            if absent:
                not_here += [folder for folder in absent if folder not in not_here]
                continue
            problems += _recorded_problems(config, loader, source, at)
            try:
                check_data(HDF5Samples(**loader.reader_keys()), config.init.model, source.place((*at, *keys)), 1)
            except UserError as error:
                message = str(error)
                place = source.place((*at, *keys))
                problems.append(message if message.startswith(place) else f"{place}: {message}")
    return problems, not_here


def _loaders(config: TrainerConfig) -> Iterator[tuple[tuple[str | int, ...], DataLoader]]:
    if config.fit is None:
        return
    yield ("fit", "train_dataloader"), config.fit.train_dataloader
    for index, section in enumerate(config.fit.val_dataloader):
        yield (
            ("fit", "val_dataloader", index) if len(config.fit.val_dataloader) > 1 else ("fit", "val_dataloader"),
            section,
        )


def _folders(loader: DataLoader) -> list[str]:
    named = [loader.data_dir] if loader.mixture is None else [part.data_dir for part in loader.mixture]
    return [folder for entry in named for folder in (entry if isinstance(entry, list) else [entry]) if folder]


def _tokenizer_problems(
    config: TrainerConfig, tokenizer: Path | None, source: YamlSource, at: tuple[str | int, ...]
) -> Iterator[str]:
    if tokenizer is None:
        return
    size, entries = config.init.model.vocab_size, vocabulary_of(tokenizer)
    if entries > size:
        yield (
            f"{source.place((*at, 'init', 'model', 'vocab_size'))}: {size} is smaller than the {entries} entries of "
            f"{tokenizer}; give the model's own tokenizer, or at least {entries}"
        )


def vocabulary_of(tokenizer: Path) -> int:
    """One more than the largest id of a folder's tokenizer.json. Raises UserError where there is none to read."""
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content.get("added_tokens", ()))]
        return max(ids) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a tokenizer.json that can be read ({error}); give the tokenizer's folder"
        ) from error


def _recorded_problems(
    config: TrainerConfig, loader: DataLoader, source: YamlSource, at: tuple[str | int, ...]
) -> Iterator[str]:
    size = config.init.model.vocab_size
    for folder in _folders(loader):
        entries = recorded_vocabulary(folder)
        if entries is not None and entries > size:
            yield (
                f"{source.place((*at, 'init', 'model', 'vocab_size'))}: {size} is smaller than the tokenizer of "
                f"{entries} entries that made {folder}; give at least {entries}, or data of the model's tokenizer"
            )


def _freezing_problems(config: TrainerConfig, source: YamlSource, at: tuple[str | int, ...]) -> Iterator[str]:
    if not config.init.model.frozen_parameters:
        return
    with torch.device("meta"):
        model = LanguageModel(config.init.model)
    try:
        freeze_parameters(model, config.init.model.frozen_parameters)
    except UserError as error:
        message = str(error).removeprefix("model.frozen_parameters: ")
        yield f"{source.place((*at, 'init', 'model', 'frozen_parameters'))}: {message}"
