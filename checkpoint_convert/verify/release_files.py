"""The files of a release beside the weights that were compared: its manifest, and what else a loader would take."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import (
    ADAPTER_CONFIG,
    CODE_SUFFIXES,
    CONFIG,
    MANIFEST,
    WEIGHT_SUFFIXES,
    names_in,
)
from checkpoint_convert.streaming.digest import file_digest
from checkpoint_convert.verify.manifest import Manifest

# Keys of config.json that make transformers load other weights, or change those that it loads.
_LOADING_KEYS = ("transformers_weights", "quantization_config")
# Whoever publishes a release is asked to complete the card; no program reads it, a licence or a picture.
_FOR_READERS = frozenset({".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf"})


def check_files(
    release: Path, manifest: Manifest | None, weights: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Whether a release holds what was compared and nothing else that a loader would take, and what its manifest says.

    A manifest is part of the release, so other weights than those compared are found without it. Code is left to
    release_code.py, which needs no manifest either.

    Args:
        release: the directory.
        manifest: its manifest; None for a release without one.
        weights: names of the weight files that were opened.

    Returns:
        (differences: name -> what differs, notes). Files that only people read are notes.

    Raises:
        ConversionError: a file cannot be read.
    """
    present = [name for name in names_in(release) if name != MANIFEST]
    differences = _other_weights(release, present, weights)
    if manifest is None or manifest.files is None:
        lacking = f"{release}: has no manifest" if manifest is None else f"{release / MANIFEST}: lists no files"
        return differences, (f"{lacking}; the tokenizer and the other files beside the weights are not checked",)
    found: dict[str, str] = {}
    for name in [*manifest.files, *manifest.shards]:
        path = release / name
        if name not in present:
            found[name] = f"missing, but {MANIFEST} lists it"
        elif not path.is_file():
            found[name] = "not a regular file"
        elif name in manifest.files and file_digest(path) != manifest.files[name]:
            found[name] = f"not what {MANIFEST} says"
        elif name in manifest.shards and name not in weights:
            found[name] = f"listed as weights in {MANIFEST}, and is not"
    listed = manifest.files.keys() | set(manifest.shards)
    unlisted = [name for name in present if name not in listed and Path(name).suffix.lower() not in CODE_SUFFIXES]
    found |= dict.fromkeys(unlisted, f"not in {MANIFEST}")
    differences = {name: what for name, what in found.items() if not _is_for_readers(name)} | differences
    notes = [f"{release / name}: {what}; only people read it" for name, what in found.items() if _is_for_readers(name)]
    return differences, tuple(notes)


def _other_weights(release: Path, present: Sequence[str], weights: Collection[str]) -> dict[str, str]:
    """Name of a file -> how it makes a loader take other weights than those that were compared."""
    found: dict[str, str] = {}
    for name in present:
        if Path(name).suffix.lower() in WEIGHT_SUFFIXES and name not in weights:
            found[name] = "weights that were not compared, and that a loader may take"
    if ADAPTER_CONFIG in present:
        found[ADAPTER_CONFIG] = "makes transformers load an adapter on top of the weights"
    config = read_json(release / CONFIG)
    keys = [key for key in _LOADING_KEYS if config.get(key)]
    if keys:
        found[CONFIG] = f"with {' and '.join(keys)}, transformers loads other weights than were compared"
    return found


def _is_for_readers(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in _FOR_READERS or path.stem in ("LICENSE", "NOTICE") or path.name.startswith(".git")
