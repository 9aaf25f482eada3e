"""A trainer YAML for a site that cannot install the plugin: the Model Zoo's own names, everything else as it was."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cerebras_jais.config.yaml_file import ConfigError, ConfigFile
from cerebras_jais.errors import Problem
from cerebras_jais.modelzoo_version import STOCK_NAME_OF
from cerebras_jais.params import section_at

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # those that YAML counts


def with_stock_names(file: ConfigFile) -> str:
    """The text of a YAML file with the plugin's model names replaced by the stock ones; comments stay.

    Raises ConfigError for a file that names a model of the plugin and uses what the stock one cannot do: freezing by
    pattern.
    """
    lines = _LINE_BREAK.split(file.text)
    for keys, trainer in file.trainers:
        at, model = (*keys, "init", "model"), section_at(trainer, "init", "model")
        if not isinstance(model, Mapping) or model.get("name") not in STOCK_NAME_OF:
            continue
        stock = STOCK_NAME_OF[model["name"]]
        if model.get("frozen_parameters"):
            remedy = "train this phase with the plugin (`cerebras-jais zoo fit`)"
            problem = f"the Model Zoo's own {stock!r} freezes nothing by name; {remedy}"
            raise ConfigError(file.message(Problem((*at, "frozen_parameters"), problem)))
        for key in ("name", "frozen_parameters"):
            if key in model and file.is_merged((*at, key)):
                problem = "is merged in by <<; write it out in this section"
                raise ConfigError(file.message(Problem((*at, key), problem)))
        number = file.lines[(*at, "name")] - 1
        lines[number] = re.sub(rf"\b{model['name']}\b", stock, lines[number], count=1)
        if "frozen_parameters" in model:
            empty = file.lines[(*at, "frozen_parameters")] - 1
            lines[empty] = lines[empty].split("frozen_parameters")[0].rstrip() + "\0"
    return "\n".join(line for line in lines if not line.endswith("\0"))
