"""The record of a run's data in its checkpoints, by which data that changed under the same path are detected.

It has names, sizes and times of the files, and a digest of at most 64 blocks of 4 KiB, whatever the size of the data.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cerebras_jais.data.dataset import HDF5Samples

_BLOCK, _BLOCKS = 4096, 64


def record_of(train: HDF5Samples, held_out: Sequence[HDF5Samples]) -> str:
    """The record of a run's data as JSON: one text, since a checkpoint has an entry for each value that it holds."""
    return json.dumps({"train": _record(train.files), "held_out": [_record(samples.files) for samples in held_out]})


def _record(files: Sequence[Path]) -> dict[str, Any]:
    states = [os.stat(file) for file in files]
    named = [[str(file), state.st_size, state.st_mtime_ns] for file, state in zip(files, states, strict=True)]
    return {"files": named, "sample": _sample(files, [state.st_size for state in states])}


def _sample(files: Sequence[Path], sizes: Sequence[int]) -> str:
    """A digest of blocks at equal distances over all bytes, the first (the header of a file) among them."""
    ends = list(itertools.accumulate(sizes))
    total = ends[-1] if ends else 0
    digest, number = hashlib.sha256(), 0
    for offset in sorted({total * part // _BLOCKS // _BLOCK * _BLOCK for part in range(_BLOCKS)}):
        while number < len(files) - 1 and offset >= ends[number]:
            number += 1
        with open(files[number], "rb") as file:
            file.seek(offset - (ends[number] - sizes[number]))
            digest.update(file.read(_BLOCK))
    return digest.hexdigest()


def changes(saved: Any, now: str) -> tuple[str | None, list[str]]:
    """What changed in the data since a record was made.

    Args:
        saved: the record in a checkpoint; anything else counts as no record.
        now: the record of the data today.

    Returns:
        A change of the training data that makes it another run, None without one; and what is only worth a line:
        files of the same sizes and samples with new times, which a copy has, and other held-out data.
    """
    before = _parsed(saved)
    if before is None:
        return None, []
    after = json.loads(now)
    problem, copied = _change(before["train"], after["train"])
    notes = [f"{copied} with the same size and the same sampled blocks, so they are taken for copies"] if copied else []
    if len(before["held_out"]) == len(after["held_out"]):
        for old, new in zip(before["held_out"], after["held_out"], strict=True):
            changed, _ = _change(old, new)
            if changed:
                notes.append(f"the held-out data changed: {changed}; evaluations before and after cannot be compared")
    return problem, notes


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str | None, str | None]:
    old, new = before["files"], after["files"]
    for (name, size, _), (_, is_size, _) in zip(old, new, strict=False):
        if size != is_size:
            return f"{name} has {is_size:,} bytes, not {size:,}", None
    if len(old) != len(new):
        return f"there are {len(new)} files, not {len(old)}", None
    later = [name for (name, _, time), (_, _, is_time) in zip(old, new, strict=True) if time != is_time]
    if before["sample"] != after["sample"]:
        return f"{(later or [old[0][0]])[0]} has other content", None
    more = f" and {len(later) - 1} more" if len(later) > 1 else ""
    return None, f"{later[0]}{more} have new times" if later else None


def _parsed(saved: Any) -> dict[str, Any] | None:
    """A record as read back, None where it is none: another trainer wrote the file, or an older release of this one."""
    try:
        record: dict[str, Any] = json.loads(saved)
        for part in (record["train"], *record["held_out"]):
            if not isinstance(part["sample"], str) or not all(
                isinstance(name, str) and isinstance(size, int) and isinstance(time, int)
                for name, size, time in part["files"]
            ):
                return None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return record
