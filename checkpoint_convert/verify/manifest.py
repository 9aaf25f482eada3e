"""The manifest of a model, which conversions write and checks read: a digest of each tensor, equal on both sides.

A release has it as `manifest.json`, a checkpoint as `<stem>.manifest.json` beside it. Tensors have their Cerebras names
without the leading `model.`, and digests are of the Cerebras layout (streaming/digest.py). The manifests of a
checkpoint and of its release therefore list the same names and digests. A tensor with two names is listed once, under
the first.

The manifest of a release also lists its files: `shards` has the names of the weight files, whose content the digests of
the tensors cover, and `files` has a digest of every other file except the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cerebras_jais import __version__
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import MANIFEST, names_in
from checkpoint_convert.mapping.plan import Plan
from checkpoint_convert.mapping.rules import ties
from checkpoint_convert.streaming.digest import SCHEME, file_digest


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest."""

    tensors: Mapping[str, str]
    """Cerebras name -> digest."""
    files: Mapping[str, str] | None
    """Name of a file of a release -> digest; None in the manifest of a checkpoint, and in older ones without files."""
    shards: tuple[str, ...]
    """Names of the weight files; empty where files is None."""


def manifest_path(model: Path) -> Path:
    """Path of the manifest of a release directory or of a .mdl file."""
    return model / MANIFEST if model.is_dir() else model.with_name(f"{model.stem}.manifest.json")


def manifest_of(plan: Plan, digests: Mapping[int, tuple[str, ...]]) -> dict[str, Any]:
    """The manifest of a converted model as JSON values, from its plan and the digests of the steps."""
    second = ties(plan.config, "cerebras")
    tensors: dict[str, Any] = {}
    for number, step in enumerate(plan.steps):
        if not step.writes:
            continue
        names = step.rule.cerebras
        own = digests[number][: len(names)]
        for name, shape, digest in zip(names, step.rule.cerebras_shapes, own, strict=True):
            if name not in second:
                tensors[name] = {"dtype": step.dtype, "shape": list(shape), "digest": digest}
    return {"made_by": f"cerebras_jais {__version__}", "digests": SCHEME, "tensors": tensors}


def list_files(release: Path, shards: Sequence[str]) -> dict[str, Any]:
    """The part of a release's manifest about its files: the names of its shards, and a digest of every other file."""
    others = [name for name in names_in(release) if name not in {MANIFEST, *shards}]
    return {"shards": list(shards), "files": {name: file_digest(release / name) for name in others}}


def read_manifest(path: Path) -> Manifest | None:
    """Read a manifest; None where the file does not exist.

    Raises:
        ConversionError: the file is damaged, or its digests have another scheme.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("digests") != SCHEME:
        raise ConversionError(
            f"{path}: its digests have the scheme {content.get('digests')!r}; only {SCHEME!r} is supported"
        )
    about = content.get("tensors")
    tensors = {
        name: _digest(path, name, entry.get("digest") if isinstance(entry, dict) else None)
        for name, entry in (about.items() if isinstance(about, dict) else ())
    }
    if not tensors:
        raise ConversionError(f"{path}: lists no tensor; the file is damaged")
    if "files" not in content:
        return Manifest(tensors, None, ())
    files, shards = content["files"], content.get("shards")
    if not isinstance(files, dict) or not isinstance(shards, list) or not all(isinstance(n, str) for n in shards):
        raise ConversionError(f"{path}: has an invalid list of files; the file is damaged")
    return Manifest(tensors, {name: _digest(path, name, digest) for name, digest in files.items()}, tuple(shards))


def _digest(path: Path, name: str, digest: Any) -> str:
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConversionError(f"{path}: has an invalid digest for {name!r}; the file is damaged")
    return digest
