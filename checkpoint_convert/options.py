"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cerebras_jais.ranges import shown

if TYPE_CHECKING:
    from cerebras_jais.config.yaml_file import ConfigFile

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 alone
    """A number of bytes: 5GB, 500MB, 2GiB or 1000000."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The size in bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
        size = float(found[1]) * _UNITS.get(found[2].upper(), math.nan) if found else math.nan
        if not 1 <= size < 2**63:
            self.fail(f"{shown(value)} is not a size; give one such as 5GB, 500MB or 2GiB", param, ctx)
        return int(size)


def _dtype(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """The name of the element type of a short name."""
    return _DTYPES[value] if value else None


def _open_config(_: click.Context, __: click.Parameter, value: Path | None) -> ConfigFile | None:
    """The YAML of a file or of a config of ours, read once."""
    if value is None:
        return None
    from cerebras_jais.catalog.yaml_files import open_config

    return open_config(value)


EXISTING = click.Path(exists=True, path_type=Path)
NEW = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=_open_config,
    help="Trainer YAML of the checkpoint, or the name of a config. Default: the config stored in the checkpoint.",
)
dtype_option = click.option(
    "--dtype",
    type=click.Choice(list(_DTYPES)),
    callback=_dtype,
    help="Element type of the weights. Default: the stored one.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything, print the plan and write nothing.")
allow_pickle_option = click.option(
    "--allow-pickle", is_flag=True, help="Also read weights in pickle files (.bin); no code in them is run."
)
