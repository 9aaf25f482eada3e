"""From token stores to packed folders: which documents, in which order, and the rows in parts of their own.

A phase is planned by one task, packed by a number of them that the size of the inputs decides, and put together by one:
a part is a share of the planned order, so the same files come out whoever makes them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.dataset import DataParameters, write_hdf5
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.mixture import Band, Mixture, Source, folder_weights, mix
from cerebras_jais.data.packing import pack_stream, pack_vsl
from cerebras_jais.data.recipe.folder import RunFolder, read_json, write_array, write_json
from cerebras_jais.data.recipe.settings import DataRun, Phase
from cerebras_jais.data.recipe.workers import Stage
from cerebras_jais.data.token_store import Store, joined, open_store
from cerebras_jais.data.tokenizer import end_of_text_id, vocabulary_size
from cerebras_jais.files import shown_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PARAMETERS = "data_params.json"
_RECIPE = "recipe"  # the key of data_params.json with the digest of what was asked


@dataclass(frozen=True)
class _Phase:
    """A phase of a run, and the names of the folders that it makes: itself, or one for each source in it.

    Attributes:
        parts: into how many its packing is divided.
        eos_id: the id that ends a document, and fills rows up.
        vocabulary: the size of the tokenizer's vocabulary.
    """

    run: DataRun
    folder: RunFolder
    name: str
    parts: int = 1
    eos_id: int = 0
    vocabulary: int = 0

    @property
    def settings(self) -> Phase:
        return self.run.phases[self.name]

    @property
    def work(self) -> Path:
        return self.folder.phase(self.name)

    @property
    def sources(self) -> dict[str, float]:
        return self.run.weights(self.settings)

    def folders(self) -> dict[str, list[str]]:
        """The packed folders with the sources of each."""
        if self.settings.mixture == "rows":
            return {self.name: list(self.sources)}
        return {f"{self.name}/{source}": [source] for source in self.sources}

    def order(self, index: int) -> Path:
        return self.work / f"order-{index:03d}.npy"

    def part(self, index: int, part: int) -> Path:
        return self.work / f"part-{index:03d}-{part:06d}"

    def is_made(self) -> bool:
        """Whether its folders are there; DataError where other ones of that name are."""
        made = []
        for name in self.folders():
            target = self.folder.output / name
            if not target.exists():
                made.append(False)
                continue
            parameters = read_json(target / PARAMETERS) if (target / PARAMETERS).exists() else {}
            if parameters.get(_RECIPE) != self.folder.phases[self.name]:
                raise DataError(
                    f"{shown_path(target)}: was packed with other settings; give the phase another name, or remove it"
                )
            made.append(True)
        return all(made)


def packing_stages(run: DataRun, folder: RunFolder, name: str, parts: int, tokenizer: Tokenizer) -> list[Stage]:
    """The stages that make a phase; none where it is made. Raises DataError where its name is taken."""
    eos_id = end_of_text_id(tokenizer, run.tokenizer)
    phase = _Phase(run, folder, name, parts, eos_id, vocabulary_size(tokenizer))
    if phase.is_made():
        return []
    logs = folder.phase(name)
    return [
        Stage(f"plan-{name}", 1, (Plan(phase),), logs / "plan"),
        Stage(f"pack-{name}", parts * len(phase.folders()), (Pack(phase),), logs / "pack"),
        Stage(f"finish-{name}", 1, (Finish(phase),), logs / "finish"),
    ]


def _store(folder: RunFolder, sources: list[str]) -> Store:
    return joined([open_store(folder.store(source)) for source in sources])


@dataclass(frozen=True)
class Plan:
    """Writes the order of the documents of each packed folder, and what it is a mixture of."""

    phase: _Phase

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Plan the phase."""
        phase = self.phase
        record = {}
        for index, (name, mixture) in enumerate(_mixtures(phase)):
            for part in mixture.parts:
                if part.times > phase.settings.repeats + 1e-3:
                    raise DataError(
                        f"phase {phase.name}: {part.source} would be seen {part.times:.2f} times, more than `repeats` "
                        f"{phase.settings.repeats:g} allows; give fewer `tokens`, another weight, or more `repeats`"
                    )
            write_array(phase.order(index), mixture.order)
            record[name] = {"mixture": mixture.record(), "lines": list(mixture.lines())}
        write_json(phase.work / "plan.json", record)


def _mixtures(phase: _Phase) -> Iterator[tuple[str, Mixture]]:
    settings, folder = phase.settings, phase.folder
    bands = [Band(band.least, band.share) for band in settings.bands]
    weights = phase.sources
    for name, sources in phase.folders().items():
        given = [
            Source(source, open_store(folder.store(source)), weights[source], np.load(folder.kept(source)))
            for source in sources
        ]
        tokens = settings.tokens
        if tokens is not None and settings.mixture == "folders":
            tokens = max(1, round(tokens * weights[sources[0]] / sum(weights.values())))
        yield name, mix(given, tokens=tokens, bands=bands, seed=phase.run.seed)


@dataclass(frozen=True)
class Pack:
    """Packs one part of one folder."""

    phase: _Phase

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Pack part `rank` of all parts of all folders."""
        phase = self.phase
        index, part = divmod(rank, phase.parts)
        target = phase.part(index, part)
        shutil.rmtree(target, ignore_errors=True)
        order = np.load(phase.order(index), mmap_mode="r")
        bounds = [len(order) * number // phase.parts for number in (part, part + 1)]
        order = np.asarray(order[slice(*bounds)])
        if not len(order):
            return
        sources = list(phase.folders().values())[index]
        store = _store(phase.folder, sources)
        eos_id, length = phase.eos_id, phase.settings.context
        rows = (
            pack_stream(store, length, eos_id, order=order)
            if phase.settings.packing == "stream"
            else pack_vsl(store, length, eos_id, order=order, seed=phase.run.seed + part)
        )
        raw = _sizes(phase.folder, sources)[order].sum(axis=0, dtype=np.int64)
        metadata = DataParameters(
            vocab_size=phase.vocabulary,
            eos_id=eos_id,
            pad_id=eos_id,
            output_dir=".",
            source=phase.name,
            documents=len(order),
            raw_bytes=int(raw[0]),
            raw_characters=int(raw[1]),
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        write_hdf5(target, rows, metadata=metadata)


def _sizes(folder: RunFolder, sources: list[str]) -> np.ndarray:
    shards = folder.shards()
    found = [
        np.load(folder.sizes(rank))
        for source in sources
        for rank in range(len(shards))
        if shards[rank].source == source
    ]
    return np.concatenate(found)


@dataclass(frozen=True)
class Finish:
    """Puts the parts of each folder together; the folder appears whole."""

    phase: _Phase

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Make the folders of the phase."""
        phase = self.phase
        plan = read_json(phase.work / "plan.json")
        for index, name in enumerate(phase.folders()):
            target = phase.folder.output / name
            if target.exists():
                continue  # made before this task was ended by a kill
            parts = [part for number in range(phase.parts) if (part := phase.part(index, number)).exists()]
            if not parts:
                raise DataError(f"phase {phase.name}: no document is left to pack into {name}; see what was dropped")
            with whole_folder(target) as hidden:
                files = [file for part in parts for file in sorted(part.glob("*.h5"))]
                for number, file in enumerate(files):
                    _link(file, hidden / f"output_chunk_{number:06d}.h5")
                parameters = _merged([read_json(part / PARAMETERS) for part in parts])
                parameters |= {_RECIPE: phase.folder.phases[phase.name], "mixture": plan[name]["mixture"]}
                text = json.dumps(parameters, indent=4, sort_keys=True, ensure_ascii=False) + "\n"
                (hidden / PARAMETERS).write_text(text, encoding="utf-8")
        for index in range(len(phase.folders())):
            for number in range(phase.parts):
                shutil.rmtree(phase.part(index, number), ignore_errors=True)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(file, target)


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parameters of all parts as one: their counts summed, their averages made anew."""
    merged = dict(parts[0])
    counts = {key: sum(part["post-process"][key] for part in parts) for key in parts[0]["post-process"]}
    rows = counts["n_examples"]
    for unit, total in (("bytes", counts["raw_bytes_count"]), ("chars", counts["raw_chars_count"])):
        counts[f"average_{unit}_per_sequence"] = -(-total // rows)
    return merged | {"post-process": counts}


def phase_report(run: DataRun, folder: RunFolder, name: str) -> dict[str, Any]:
    """What a made phase holds: of each folder rows, fill and mixture, and the Model Zoo's `mixture` of the folders."""
    phase = _Phase(run, folder, name)
    found: dict[str, Any] = {}
    rows: dict[str, tuple[int, int]] = {}
    weights: dict[str, float] = {}
    for part, sources in phase.folders().items():
        parameters = read_json(folder.output / part / PARAMETERS)
        counts = parameters["post-process"]
        filled = counts["num_tokens"] - counts["num_pad_tokens"]
        rows[part], weights[part] = (counts["n_examples"], filled), phase.sources[sources[0]]
        found[part] = {
            "rows": counts["n_examples"],
            "context": phase.settings.context,
            "documents": counts["successful_files"],
            "fill": round(filled / counts["num_tokens"], 6),
            "mixture": parameters["mixture"],
        }
    if phase.settings.mixture == "folders":
        return {"folders": found, "mixture": folder_weights(rows, weights)}
    return {"folders": found}
