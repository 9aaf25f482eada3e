"""The manifest of a model: one digest for each of its tensors, the same number on both sides.

A release has it as `manifest.json`, a checkpoint as `<stem>.manifest.json` beside it. Tensors have their Cerebras names
without the leading `model.`, and their digests are of the Cerebras layout (digest.py), so the two manifests of one
model are equal, whichever side they were made on. A tensor with two names stands there once, under the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cerebras_jais import __version__
from checkpoint_convert.digest import SCHEME
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.plan import Plan
from checkpoint_convert.rules import ties
from checkpoint_convert.safetensors_files import read_json

RELEASE_MANIFEST = "manifest.json"


def manifest_path(model: Path) -> Path:
    """Where the manifest of a release directory or of a .mdl file lies."""
    return model / RELEASE_MANIFEST if model.is_dir() else model.with_name(f"{model.stem}.manifest.json")


def manifest_of(plan: Plan, digests: Mapping[int, tuple[str, ...]]) -> dict[str, Any]:
    """The manifest, as JSON values, of what a plan converts, from the digests of its steps."""
    second = ties(plan.config, "cerebras")
    tensors: dict[str, Any] = {}
    for number, step in enumerate(plan.steps):
        if not step.writes:
            continue
        for name, shape, digest in zip(step.rule.cerebras, step.rule.cerebras_shapes, digests[number], strict=True):
            if name not in second:
                tensors[name] = {"dtype": step.dtype, "shape": list(shape), "digest": digest}
    return {"made_by": f"cerebras_jais {__version__}", "digests": SCHEME, "tensors": tensors}


def read_manifest(path: Path) -> dict[str, str] | None:
    """Cerebras name -> digest; None where there is no manifest.

    Raises:
        ConversionError: the file is damaged, or its digests are of another kind.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("digests") != SCHEME:
        raise ConversionError(
            f"{path}: its digests are of the kind {content.get('digests')!r}; only {SCHEME!r} is known"
        )
    tensors = content.get("tensors")
    found: dict[str, str] = {}
    for name, about in tensors.items() if isinstance(tensors, dict) else ():
        digest = about.get("digest") if isinstance(about, dict) else None
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConversionError(f"{path}: the digest of {name!r} is none; the file is damaged")
        found[name] = digest
    if not found:
        raise ConversionError(f"{path}: names no tensor; the file is damaged")
    return found
