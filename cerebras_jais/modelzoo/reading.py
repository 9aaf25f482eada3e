"""Which of the two judges a trainer YAML that the Model Zoo is to train: this project's schema, or the Model Zoo alone.

`fit --backend csx` and `zoo fit` both use this function, so they agree.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from cerebras_jais.catalog.reader import read_trainers
from cerebras_jais.config.trainer import ModelZooAloneError, TrainerConfig
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.modelzoo_version import PLUGIN_NAMES
from cerebras_jais.params import section_at


def read_unless_alone(file: ConfigFile) -> list[TrainerConfig] | None:
    """The typed phases of a YAML; None, with a note on standard error, where the Model Zoo alone can judge the file.

    The latter are models outside the family, object storage, and YAML of the old format. Under the names of the plugin
    they are refused, since its classes in the Model Zoo refuse them too.

    Raises ConfigError for what neither takes.
    """
    try:
        return read_trainers(file)
    except ModelZooAloneError as error:
        if any(_names_plugin(section_at(trainer, "init", "model")) for _, trainer in file.trainers):
            raise
        print(f"note: not checked here, the Model Zoo trains it by its own rules: {error}", file=sys.stderr)
        return None


def _names_plugin(model: object) -> bool:
    return isinstance(model, Mapping) and model.get("name", model.get("model_name")) in PLUGIN_NAMES
