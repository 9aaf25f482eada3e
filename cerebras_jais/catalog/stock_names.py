"""A trainer YAML for a site that cannot install the plugin: the Model Zoo's own names, everything else as it was."""

from __future__ import annotations

import re
from pathlib import Path

from cerebras_jais.config.yaml_file import ConfigError, parse_yaml
from cerebras_jais.modelzoo_version import STOCK_NAME_OF

_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # those that YAML counts


def with_stock_names(text: str, path: Path) -> str:
    """The text of a YAML file with the plugin's model names replaced by the stock ones; comments stay.

    `path` is the file the text is from, for messages.

    Raises ConfigError for a file that names a model of the plugin and uses what the stock one cannot do: freezing by
    pattern.
    """
    source = parse_yaml(text, path)
    lines = _LINE_BREAK.split(text)
    for at, model in _models(source.data):
        if model.get("frozen_parameters"):
            stock = STOCK_NAME_OF[model["name"]]
            raise ConfigError(
                f"{source.location((*at, 'frozen_parameters'))}: the Model Zoo's own {stock!r} freezes nothing by "
                "name; train this phase with the plugin (`cerebras-jais zoo fit`)"
            )
        for key in ("name", "frozen_parameters"):
            if key in model and (*at, key) not in source.lines:
                raise ConfigError(f"{source.location((*at, key))}: is merged in by <<; write it out in this section")
        number = source.lines[(*at, "name")] - 1
        lines[number] = re.sub(rf"\b{model['name']}\b", STOCK_NAME_OF[model["name"]], lines[number], count=1)
        if "frozen_parameters" in model:
            empty = source.lines[(*at, "frozen_parameters")] - 1
            lines[empty] = lines[empty].split("frozen_parameters")[0].rstrip() + "\0"
    return "\n".join(line for line in lines if not line.endswith("\0"))


def _models(data: object) -> list[tuple[tuple[str | int, ...], dict]]:
    """The `model:` sections that have a name of the plugin, with their paths."""
    trainers = data.get("trainer") if isinstance(data, dict) else None
    several = isinstance(trainers, list)
    found = []
    for index, entry in enumerate(trainers if isinstance(trainers, list) else [data]):
        at: tuple[str | int, ...] = ("trainer", index, "trainer") if several else ("trainer",)
        model = entry
        for key in ("trainer", "init", "model"):
            model = model.get(key) if isinstance(model, dict) else None
        if isinstance(model, dict) and str(model.get("name")) in STOCK_NAME_OF:
            found.append(((*at, "init", "model"), model))
    return found
