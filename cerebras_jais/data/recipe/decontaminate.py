"""Documents that share a run of words with an evaluation set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.data.documents import DataError
from cerebras_jais.data.recipe.inputs import find_inputs
from cerebras_jais.data.recipe.settings import Decontaminate, Source
from cerebras_jais.data.recipe.sources import Unreadable, read_shard
from cerebras_jais.data.recipe.words import run_hashes, simplified
from cerebras_jais.files import MIB, parse_json, read_text

_LARGEST = 256 * MIB


@dataclass(frozen=True)
class Evaluation:
    """The runs of words of evaluation sets: their hashes, uint64, sorted; and how many texts have how many."""

    hashes: np.ndarray
    words: int
    texts: int
    too_short: int
    """Texts with fewer words than a run, which are not looked for."""

    def is_in(self, simple: str) -> bool:
        """Whether a simplified text has a run of an evaluation set."""
        if not len(self.hashes):
            return False
        runs = run_hashes(simple, self.words)
        found = np.searchsorted(self.hashes, runs)
        found[found == len(self.hashes)] = 0
        return bool((self.hashes[found] == runs).any())


def read_evaluation(settings: Decontaminate) -> Evaluation:
    """The runs of all texts of the files; of a SQuAD file the questions too. Raises DataError as a source does."""
    hashes: list[np.ndarray] = [np.empty(0, np.uint64)]
    texts = too_short = 0
    for text in _texts(settings):
        runs = run_hashes(simplified(text), settings.words)
        texts, too_short = texts + 1, too_short + (not len(runs))
        hashes.append(runs)
    return Evaluation(np.unique(np.concatenate(hashes)), settings.words, texts, too_short)


def _texts(settings: Decontaminate) -> Iterator[str]:
    for field in settings.fields:
        source = Source(path=settings.path, format=settings.format, text=field)
        for shard in find_inputs({"evaluation": source}, 2**62).shards:
            for batch in read_shard(shard, source, _refuse):
                yield from batch.texts
            for part in shard.parts:
                if part.kind == "squad" and field == settings.fields[0]:
                    yield from _questions(Path(part.file))


def _questions(file: Path) -> Iterator[str]:
    tree: Any = parse_json(read_text(file, _LARGEST, DataError), str(file), DataError)
    for article in tree["data"]:
        for paragraph in article["paragraphs"]:
            yield from (
                str(qa["question"]) for qa in paragraph.get("qas", []) if isinstance(qa, dict) and "question" in qa
            )


def _refuse(place: str, what: Unreadable) -> None:
    raise DataError(f"{place}: {what.message}")
