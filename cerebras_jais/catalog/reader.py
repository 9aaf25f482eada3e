"""A trainer YAML, typed and held to the rules of the family: what every command that trains or checks one reads."""

from __future__ import annotations

from pathlib import Path

from cerebras_jais.catalog.family import check_family
from cerebras_jais.catalog.yaml_files import open_config
from cerebras_jais.config.trainer import TrainerConfig, model_problem, parse_trainers
from cerebras_jais.config.yaml_file import ConfigError, ConfigFile
from cerebras_jais.model.config import ModelConfigError


def read_trainers(file: ConfigFile) -> list[TrainerConfig]:
    """The typed trainers of a YAML, whose models keep to the rules of the family if they are named after it.

    Raises ConfigError: one line with file, line number, the path of the key, and what to do.
    """
    configs = parse_trainers(file)
    for config in configs:
        try:
            check_family(config.init.model)
        except ModelConfigError as error:
            raise ConfigError(config.message(model_problem(error))) from None
    return configs


def read_trainer_yaml(name: str | Path) -> list[TrainerConfig]:
    """The typed trainers of `open_config(name)`."""
    return read_trainers(open_config(name))
