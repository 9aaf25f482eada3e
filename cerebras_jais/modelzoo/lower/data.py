"""A stand-in for data that is not here: empty samples of the shapes that a loader would give.

Of a step's data only the shapes go into its program.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cerebras_jais.config.sections import DataLoader
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.data.packing import STREAM_FEATURES, VSL_FEATURES
from cerebras_jais.errors import Keys


def with_data(
    trainer: Mapping[str, Any], config: TrainerConfig, folder: Path
) -> tuple[dict[str, Any], tuple[Keys, ...]]:
    """A trainer whose data is on this machine.

    Args:
        trainer: the mapping under `trainer:`.
        config: the same, typed.
        folder: where stand-ins are made.

    Returns:
        The mapping, in which `GptHDF5MapDataProcessor` reads a stand-in wherever a folder of a loader is absent, and
        the paths of those loaders below `trainer`. No loader starts processes of its own.
    """
    there, replaced = copy.deepcopy(dict(trainer)), []
    for keys, loader in config.dataloaders():
        section: Any = there
        for key in keys:
            section = section[key]
        _make_absolute(section)
        if not loader.folders or not all(Path(name).is_dir() for name in loader.folders):
            data_dir = folder / "-".join(map(str, keys))
            write_stand_in(data_dir, loader, config.init.model.max_position_embeddings)
            section.clear()
            section |= {"data_processor": "GptHDF5MapDataProcessor", "data_dir": str(data_dir)}
            section |= {"batch_size": loader.batch_size, "use_vsl": loader.use_vsl}
            replaced.append(keys)
        section["num_workers"] = 0
    return there, tuple(replaced)


def write_stand_in(folder: Path, loader: DataLoader, length: int) -> None:
    """Make a folder with one file of one batch, int32 [batch, 3 or 5, length]; zeros that take no space on the disk."""
    import h5py

    features = VSL_FEATURES if loader.use_vsl else STREAM_FEATURES
    folder.mkdir(parents=True)
    with h5py.File(folder / "stand_in.h5", "w") as file:
        file.create_dataset("data", (loader.batch_size, len(features), length), "i4")


def _make_absolute(section: dict[str, Any]) -> None:
    """Have a loader's folders named from the root, since the process that lowers has another working directory."""
    for part in (section, *(section.get("mixture") or ())):
        named = part.get("data_dir")
        if named:
            part["data_dir"] = (
                [os.path.abspath(f) for f in named] if isinstance(named, list) else os.path.abspath(named)
            )
