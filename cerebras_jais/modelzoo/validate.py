"""The Model Zoo's own validation of a trainer YAML, with the plugin's models known to it.

Source: Model Zoo trainer/validate_configs.py, which `cszoo config validate` runs.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.modelzoo.installed import modelzoo_is_installed

__all__ = ["modelzoo_is_installed", "modelzoo_problems"]


def modelzoo_problems(path: str | Path) -> list[str]:
    """What the Model Zoo refuses about a YAML, one line each with file, line and key; empty where it takes it.

    The Model Zoo demands that data directories exist. Where they do not (the data lies on the cluster), an empty one
    stands in for each, so that everything else is looked at.

    Raises:
        ModelZooMissing: it is not installed.
        ConfigError: the file is no YAML.
    """
    import pydantic

    from cerebras_jais.modelzoo import plugin

    plugin.register()
    source = read_yaml(path)
    params = copy.deepcopy(source.data)
    with tempfile.TemporaryDirectory() as empty, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for loader in _loaders(params):
            loader["data_dir"] = _present(loader["data_dir"], empty)
        from cerebras.modelzoo.trainer.validate import extract_model_names

        logging.disable(logging.WARNING)
        try:
            trainers = _trainers_of(extract_model_names(params))
            trainers.validate_python(params, context={"metadata_params": copy.deepcopy(params)})
        except pydantic.ValidationError as error:
            return [
                f"{source.location(_keys_in(source.data, problem['loc']))}: the Model Zoo says: {problem['msg']}"
                for problem in error.errors(include_url=False)
            ]
        except Exception as error:  # its validation runs constructors, which raise what they like
            return [f"{path}: the Model Zoo says: {' '.join(str(error).split())}"]
        finally:
            logging.disable(logging.NOTSET)
    return []


@cache
def _trainers_of(model_names: tuple[str, ...]) -> Any:
    """The Model Zoo's type of a list of trainers of these models; making one takes it seconds, so each is kept."""
    from cerebras.modelzoo.trainer.validate import construct_multi_phase_trainer_config

    return construct_multi_phase_trainer_config(model_names)


def _loaders(params: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with a data_dir, at any depth."""
    if isinstance(params, dict):
        if "data_dir" in params:
            yield params
        for value in params.values():
            yield from _loaders(value)
    elif isinstance(params, list):
        for value in params:
            yield from _loaders(value)


def _present(data_dir: Any, empty: str) -> Any:
    if isinstance(data_dir, list):
        return [_present(item, empty) for item in data_dir]
    return data_dir if not isinstance(data_dir, str) or Path(data_dir).exists() else empty


def _keys_in(data: Any, location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The path in the file of pydantic's error location, which numbers the trainers and has names of types in it."""
    value: Any = data["trainer"] if isinstance(data, dict) else None
    keys: list[str | int] = ["trainer"]
    parts = list(location)
    if parts and isinstance(parts[0], int):
        number = parts.pop(0)
        if isinstance(value, list):
            keys += [number, "trainer"]
            value = value[int(number)]["trainer"]
    for index, part in enumerate(parts):
        if isinstance(value, dict) and len(value) == 1 and str(part) == str(next(iter(value))).lower():
            part = next(iter(value))  # {Lora: {...}}, whose name the location has in small letters
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            keys.append(part)
            value = value[part]
        elif index == len(parts) - 1 and isinstance(part, str):
            keys.append(part)
    return tuple(keys)
