"""Which of the two judges a trainer YAML that the Model Zoo is to train: this project's schema, or the Model Zoo alone.

`fit --backend csx` and `zoo fit` both ask here, so they agree.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cerebras_jais.config.trainer import ModelZooAloneError, TrainerConfig, read_trainer_yaml
from cerebras_jais.config.yaml_file import read_yaml
from cerebras_jais.modelzoo_version import PLUGIN_NAMES


def read_unless_alone(path: str | Path) -> list[TrainerConfig] | None:
    """The typed phases of a YAML; None, with a note on standard error, where the Model Zoo alone can judge the file.

    The latter are models outside the family, object storage, and YAML of the old format. Under the names of the plugin
    they are refused, since its classes in the Model Zoo refuse them too.

    Raises ConfigError for what neither takes.
    """
    try:
        return read_trainer_yaml(path)
    except ModelZooAloneError as error:
        if _names_plugin(read_yaml(path).data):
            raise
        print(f"note: trained by the Model Zoo's own rules alone: {error}", file=sys.stderr)
        return None


def _names_plugin(data: Any) -> bool:
    trainers = data.get("trainer") if isinstance(data, dict) else None
    for trainer in trainers if isinstance(trainers, list) else [data]:
        model = trainer
        for key in ("trainer", "init", "model"):
            model = model.get(key) if isinstance(model, dict) else None
        if isinstance(model, dict) and model.get("name", model.get("model_name")) in PLUGIN_NAMES:
            return True
    return False
