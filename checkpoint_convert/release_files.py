"""The files of a release beside its weights: listed in its manifest, and compared with that list."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoint_convert.digest import file_digest
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.manifest import RELEASE_MANIFEST, Manifest

CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyd", ".so", ".dll", ".dylib"})
# Weights and pickles: a loader may take them in the place of those that were compared.
_WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib"}
    | {".h5", ".msgpack", ".gguf", ".onnx", ".npy", ".npz", ".mdl"}
)
# What whoever publishes a release is asked to complete; no program reads it.
_EDITED = frozenset({"README.md", "LICENSE", "NOTICE"})


def names_in(release: Path) -> list[str]:
    """Names of the files in a release and below it, sorted, with `/` between the parts.

    A link to a directory is named and not followed. Hidden directories (.git, the cache of a download) are left out:
    transformers loads nothing from them.

    Raises:
        ConversionError: a directory cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise ConversionError(f"{error.filename}: cannot be read: {error.strerror}") from error

    names: list[str] = []
    for directory, folders, files in os.walk(release, onerror=refuse):
        here = Path(directory)
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        links = [folder for folder in folders if (here / folder).is_symlink()]
        names += [(here / name).relative_to(release).as_posix() for name in (*files, *links)]
    return sorted(names)


def list_files(release: Path, shards: Sequence[str]) -> dict[str, Any]:
    """What the manifest of a release says of its files: the names of its shards, and a digest of every other file."""
    others = [name for name in names_in(release) if name not in {RELEASE_MANIFEST, *shards}]
    return {"shards": list(shards), "files": {name: file_digest(release / name) for name in others}}


def check_files(release: Path, manifest: Manifest | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """Compare the files of a release with its manifest.

    Args:
        release: the directory.
        manifest: its manifest; None for a release without one.

    Returns:
        (differences: name -> what differs, notes). Files that are meant to be edited are notes, and so are additional
        files that a loader does not take for code or weights. Additional code is left to release_code.py, which needs
        no manifest.

    Raises:
        ConversionError: a file cannot be read.
    """
    if manifest is None or manifest.files is None:
        lacking = f"{release}: has no manifest" if manifest is None else f"{release / RELEASE_MANIFEST}: lists no files"
        return {}, (f"{lacking}; the tokenizer and the other files beside the weights are not checked",)
    found: dict[str, str] = {}
    present = set(names_in(release))
    for name in [*manifest.files, *manifest.shards]:
        path = release / name
        if name not in present:
            found[name] = f"missing, but {RELEASE_MANIFEST} lists it"
        elif not path.is_file():
            found[name] = "not a regular file"
        elif name in manifest.files and file_digest(path) != manifest.files[name]:
            found[name] = f"not what {RELEASE_MANIFEST} says"
    differences = {name: what for name, what in found.items() if name not in _EDITED}
    notes = [f"{release / name}: {what}; it is meant to be edited" for name, what in found.items() if name in _EDITED]
    for name in sorted(present - manifest.files.keys() - {*manifest.shards, RELEASE_MANIFEST}):
        suffix = Path(name).suffix.lower()
        if suffix in _WEIGHT_SUFFIXES:
            differences[name] = f"not in {RELEASE_MANIFEST}, and may be loaded as weights"
        elif suffix not in CODE_SUFFIXES:
            notes.append(f"{release / name}: not in {RELEASE_MANIFEST}")
    return differences, tuple(notes)
