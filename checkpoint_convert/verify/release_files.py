"""Checks of the files in a release: against its manifest, and for other weights that a loader would load."""

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

# Keys of config.json that make transformers load other weights or change them.
_LOADING_KEYS = ("transformers_weights", "quantization_config")
# The card must be completed before publishing. No program reads it, a licence or a picture.
_FOR_READERS = frozenset({".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf"})


def check_files(
    release: Path, manifest: Manifest | None, weights: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Find files of a release that differ from its manifest, and weights that were not compared.

    Other weights are found without the manifest, because it is itself a file of the release. The code is checked in
    release_code.py, also without it.

    Args:
        release: the directory.
        manifest: its manifest, or None.
        weights: names of the weight files that were opened.

    Returns:
        (differences: name -> what differs, notes). Files that no program reads are notes.

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
            found[name] = f"differs from {MANIFEST}"
        elif name in manifest.shards and name not in weights:
            found[name] = f"listed as weights in {MANIFEST}, but is not one of the weight files"
    listed = manifest.files.keys() | set(manifest.shards)
    unlisted = [name for name in present if name not in listed and Path(name).suffix.lower() not in CODE_SUFFIXES]
    found |= dict.fromkeys(unlisted, f"not in {MANIFEST}")
    differences = {name: what for name, what in found.items() if not _is_for_readers(name)} | differences
    notes = [f"{release / name}: {what}; no program reads it" for name, what in found.items() if _is_for_readers(name)]
    return differences, tuple(notes)


def _other_weights(release: Path, present: Sequence[str], weights: Collection[str]) -> dict[str, str]:
    """Name of a file -> how it makes a loader use other weights than those that were compared."""
    found: dict[str, str] = {}
    for name in present:
        if Path(name).suffix.lower() in WEIGHT_SUFFIXES and name not in weights:
            found[name] = "weights that were not compared and that a loader may load"
    if ADAPTER_CONFIG in present:
        found[ADAPTER_CONFIG] = "makes transformers load an adapter on top of the weights"
    config = read_json(release / CONFIG)
    keys = [key for key in _LOADING_KEYS if config.get(key)]
    if keys:
        found[CONFIG] = f"with {' and '.join(keys)}, transformers loads other weights than those compared"
    return found


def _is_for_readers(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in _FOR_READERS or path.stem in ("LICENSE", "NOTICE") or path.name.startswith(".git")
