"""The Model Zoo's own validation of a trainer YAML, with the plugin's models known to it.

Source: Model Zoo trainer/validate_configs.py, which `cszoo config validate` runs.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from cerebras_jais.config.trainer import keys_of
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.errors import Keys, Problem
from cerebras_jais.interrupts import scratch_folder


def modelzoo_problems(file: ConfigFile) -> list[Problem]:
    """What the Model Zoo refuses about a YAML, each at its key of the file; empty where it takes it.

    The Model Zoo demands that data directories exist. Where they do not (the data is on the cluster), an empty one
    replaces each, so that everything else is checked.

    Raises:
        ModelZooMissing: it is not installed.
    """
    import pydantic

    from cerebras_jais.modelzoo import plugin

    plugin.register()
    params = copy.deepcopy(file.data)
    with scratch_folder("cerebras-jais-empty-") as empty, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for loader in _loaders(params):
            loader["data_dir"] = _present(loader["data_dir"], str(empty))
        from cerebras.modelzoo.trainer.validate import extract_model_names

        logging.disable(logging.WARNING)
        try:
            trainers = _trainers_of(extract_model_names(params))
            trainers.validate_python(params, context={"metadata_params": copy.deepcopy(params)})
        except pydantic.ValidationError as error:
            return [
                Problem(_keys_in(file, problem["loc"]), f"the Model Zoo says: {problem['msg']}")
                for problem in error.errors(include_url=False)
            ]
        except Exception as error:  # its validation runs constructors, which raise what they like
            return [Problem((), f"the Model Zoo says: {' '.join(str(error).split())}")]
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


def _keys_in(file: ConfigFile, location: tuple[str | int, ...]) -> Keys:
    """The path in the file of one of its error locations, which begin with the number of the trainer."""
    at, trainer = file.trainers[int(location[0])]
    return (*at, *keys_of(location[1:], trainer))
