"""The folder of a run: where each stage finds and leaves its files, and what two starts on one folder must agree in.

OUTPUT/store/SOURCE     the token store, and `kept.npy`, the documents of it that are no duplicates
OUTPUT/PHASE            packed data, once it is whole
OUTPUT/dropped          some documents of each reason
OUTPUT/report.json      what was read, dropped, kept and packed
OUTPUT/run              work in progress, logs, and what is done; may be removed at the end
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.atomic import abandoned, locked, replacing
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.recipe.inputs import Inputs, Shard, shard_from
from cerebras_jais.data.recipe.settings import DataRun
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, parse_json, read_bytes, read_text, shown_path

_LARGEST = 2**31  # bytes of inputs.json
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_IN_THE_STORE = ("sources", "steps", "on_error", "kept", "shard_mib")


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run, and digests of what its store and its packed data are made of."""

    output: Path
    store_digest: str
    phases: Mapping[str, str]

    @property
    def work(self) -> Path:
        """Everything that is not for the user."""
        return self.output / "run"

    @property
    def stages(self) -> Path:
        """Which tasks are done of the stages up to the store, and of the report, as datatrove keeps it."""
        return self.work / "stages"

    def phase(self, name: str) -> Path:
        """The same of the stages that pack a phase, which begin anew where another mixture or context is asked for."""
        return self.work / f"phase-{name}-{self.phases[name][:12]}"

    @property
    def signatures(self) -> Path:
        """The files of MinHash's first stage."""
        return self.work / "signatures"

    def store(self, source: str) -> Path:
        """The token store of a source."""
        return self.output / "store" / source

    def kept(self, source: str) -> Path:
        """The documents of a store that are packed, int64, in their order."""
        return self.store(source) / "kept.npy"

    def hashes(self, rank: int) -> Path:
        """Hashes of the texts of a shard, as `duplicates.sorted_hashes` makes them."""
        return self.work / "hashes" / f"{rank:06d}.npy"

    def exact(self, bucket: int) -> Path:
        """Exact duplicates, int64 [n, 2] of shard and document."""
        return self.work / "exact" / f"{bucket:03d}.npy"

    def sizes(self, rank: int) -> Path:
        """Bytes and characters of the documents of a shard, uint32 [documents, 2]."""
        return self.work / "sizes" / f"{rank:06d}.npy"

    def remove_abandoned(self) -> None:
        """Remove the files that were being written when an earlier process was killed; none may be at work now."""
        for folder in {file.parent for file in self.output.rglob(".*.tmp")}:
            for file in abandoned(folder, ".*"):
                file.unlink()

    # ---- shards -----------------------------------------------------------------------------------------------------

    def shards(self) -> list[Shard]:
        """All shards, in the order of the sources."""
        return list(_shards_in(self.work / "inputs.json"))

    def shard(self, rank: int) -> tuple[Shard, int]:
        """A shard, and its number among those of its source."""
        shards = _shards_in(self.work / "inputs.json")
        first = next(index for index, shard in enumerate(shards) if shard.source == shards[rank].source)
        return shards[rank], rank - first

    def inputs_digest(self, rank: int) -> str:
        """What a shard is read from."""
        return digest_of(asdict(self.shard(rank)[0]))

    # ---- what tasks say ---------------------------------------------------------------------------------------------

    def write_counts(self, rank: int, counts: Mapping[str, Any]) -> None:
        """Record what became of the documents of a shard."""
        write_json(self.work / "counts" / f"{rank:06d}.json", counts)

    def counts(self, ranks: int) -> Iterator[dict[str, Any]]:
        """What `write_counts` has recorded, shard by shard."""
        for rank in range(ranks):
            yield read_json(self.work / "counts" / f"{rank:06d}.json")

    def write_dropped(self, rank: int, lines: Sequence[str]) -> None:
        """Keep some dropped documents of a shard, as JSON lines."""
        file = self.work / "dropped" / f"{rank:06d}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, overwrite=True) as partial:
            partial.write_text("".join(lines), encoding="utf-8", newline="\n")

    def dropped(self, ranks: int) -> Iterator[dict[str, Any]]:
        """Those documents, shard by shard."""
        for rank in range(ranks):
            with (self.work / "dropped" / f"{rank:06d}.jsonl").open(encoding="utf-8") as lines:
                yield from map(json.loads, lines)


def folder_of(run: DataRun) -> RunFolder:
    """The folder of a run, whether or not it is there. Raises DataError where its tokenizer cannot be read."""
    tokenizer = Path(run.tokenizer)
    files = [tokenizer / name for name in _TOKENIZER_FILES] if tokenizer.is_dir() else [tokenizer]
    found = [hashlib.sha256(read_bytes(file, 64 * MIB, DataError)).hexdigest() for file in files if file.exists()]
    settings = run.model_dump(mode="json")
    for source in settings["sources"].values():
        del source["weight"]
    store = digest_of({"tokenizer": found, **{key: settings[key] for key in _IN_THE_STORE}})
    phases = {
        name: digest_of({"store": store, "weights": run.weights(phase), "seed": run.seed, "phase": phase.model_dump()})
        for name, phase in run.phases.items()
    }
    return RunFolder(Path(run.output), store, phases)


@contextmanager
def running(folder: RunFolder, inputs: Inputs) -> Iterator[None]:
    """Hold the folder of a run for a block; it is made, or found to be of the same inputs and settings.

    Raises DataError where another process runs in it, where it was made with other settings or inputs, and where the
    output is something else.
    """
    output, work = folder.output, folder.work
    if not work.is_dir() and os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{shown_path(output)}: exists and is no folder of a run; remove it or choose another output")
    work.mkdir(parents=True, exist_ok=True)
    holder = work / "holder.json"
    with locked(work, UserError(f"{shown_path(output)}: {_held_by(holder)}; wait for it, or choose another output")):
        write_json(holder, {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")})
        try:
            _agree(work / "store.digest", folder.store_digest, output, "sources, steps or tokenizer")
            _agree(work / "inputs.json", inputs.to_json(), output, "files of the sources")
            yield
        finally:
            holder.unlink(missing_ok=True)


def _held_by(holder: Path) -> str:
    try:
        found = read_json(holder)
        return f"process {found['pid']} runs in it since {found['since']}"
    except (OSError, UserError, KeyError, TypeError):
        return "another process runs in it"


def _agree(file: Path, content: str, output: Path, what: str) -> None:
    if file.exists():
        if file.read_text(encoding="utf-8") != content:
            raise DataError(
                f"{shown_path(output)}: was begun with other {what}; choose another output, or remove this one"
            )
        return
    with replacing(file) as partial:
        partial.write_text(content, encoding="utf-8", newline="\n")


@lru_cache(maxsize=1)
def _shards_in(file: Path) -> tuple[Shard, ...]:
    return tuple(shard_from(entry) for entry in read_json(file)["shards"])


def digest_of(content: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_json(file: Path) -> Any:
    """The value in a JSON file of a run."""
    return parse_json(read_text(file, _LARGEST, DataError), str(file), DataError)


def write_json(file: Path, content: Any) -> None:
    """Write a value as a JSON file, which appears when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, overwrite=True) as partial:
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_array(file: Path, array: np.ndarray) -> None:
    """Write an array as a .npy file, which appears when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file, overwrite=True) as partial, partial.open("wb") as out:
        np.save(out, array)
