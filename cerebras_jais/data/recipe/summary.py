"""The store put in order, and the report of a run, made of what its tasks have written."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.recipe.duplicates import equal_documents, near_documents
from cerebras_jais.data.recipe.folder import RunFolder, read_json, write_array, write_json
from cerebras_jais.data.recipe.packing import phase_report
from cerebras_jais.data.recipe.settings import DataRun
from cerebras_jais.data.token_store import finish_store, open_store
from cerebras_jais.data.tokenizer import load_tokenizer
from cerebras_jais.wording import counted

EXACT, NEAR = "duplicate", "near-duplicate"
REPORT = "report.json"
_SUMMED = ("read", "kept", "bytes", "characters")
_COUNTED = ("dropped", "languages", "changes")
_SHOWN_TOKENS = 4096


@dataclass(frozen=True)
class FinishStores:
    """Closes the store of each source, and writes which of its documents are kept."""

    settings: DataRun
    folder: RunFolder
    shards: int

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Finish all stores."""
        folder, shards = self.folder, self.folder.shards()
        equal = equal_documents(folder, self.shards)
        removed: dict[str, dict[str, int]] = {}
        shown: list[dict[str, Any]] = []
        tokenizer = None
        for source in self.settings.sources:
            ranks = [number for number, shard in enumerate(shards) if shard.source == source]
            store = finish_store(folder.store(source), len(ranks))
            keep = np.ones(len(store), bool)
            counts: Counter[str] = Counter()
            first = 0
            for number in ranks:
                for reason, documents in ((EXACT, equal[number]), (NEAR, near_documents(folder, number))):
                    for document in documents[: max(0, self.settings.kept - counts[reason])] + first:
                        tokenizer = tokenizer or load_tokenizer(self.settings.tokenizer)
                        ids = store.slices(np.asarray([document]))[0][:_SHOWN_TOKENS]
                        text = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
                        shown.append({"reason": reason, "source": f"{source}, document {document}", "text": text})
                    counts[reason] += len(documents)
                    keep[documents + first] = False
                first += store.shards[number - ranks[0]].documents
            write_array(folder.kept(source), np.flatnonzero(keep))
            removed[source] = {reason: count for reason, count in counts.items() if count}
        write_json(folder.work / "duplicates.json", {"removed": removed, "shown": shown})


@dataclass(frozen=True)
class Report:
    """Writes `report.json` and `dropped`."""

    settings: DataRun
    folder: RunFolder
    shards: int

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        """Make the report of the run."""
        folder = self.folder
        duplicates = read_json(folder.work / "duplicates.json")
        self._write_dropped(duplicates["shown"])
        sources = {name: _totals(entries) for name, entries in self._by_source().items()}
        for name, found in sources.items():
            removed = duplicates["removed"][name]
            found["dropped"] = dict(sorted({**found["dropped"], **removed}.items()))
            found["kept"] -= sum(removed.values())
            found["tokens"] = _tokens(folder, name)
        phases = {name: phase_report(self.settings, folder, name) for name in self.settings.phases}
        write_json(folder.output / REPORT, {"sources": sources, "phases": phases})

    def _by_source(self) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.settings.sources}
        for entry in self.folder.counts(self.shards):
            found[entry["source"]].append(entry)
        return found

    def _write_dropped(self, duplicates: Sequence[dict[str, Any]]) -> None:
        kept: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in self._all_dropped(duplicates):
            if len(kept[entry["reason"]]) < self.settings.kept:
                kept[entry["reason"]].append(entry)
        with whole_folder(self.folder.output / "dropped", replaces=True) as hidden:
            for reason, entries in kept.items():
                lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
                (hidden / f"{reason}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")

    def _all_dropped(self, duplicates: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        yield from self.folder.dropped(self.shards)
        yield from duplicates


def _totals(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    totals: dict[str, Any] = {key: sum(entry[key] for entry in entries) for key in _SUMMED}
    for key in _COUNTED:
        counted: Counter[str] = Counter()
        for entry in entries:
            counted.update(entry[key])
        totals[key] = dict(sorted(counted.items()))
    return totals


def _tokens(folder: RunFolder, source: str) -> int:
    """Tokens of the documents that are kept, end of text included."""
    store = open_store(folder.store(source))
    return int(store.lengths[np.load(folder.kept(source))].sum())


def report_lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as text for a user."""
    for name, found in report["sources"].items():
        yield (
            f"{name}: {counted(found['read'], 'document')} read, {found['kept']} kept, "
            f"{counted(found['tokens'], 'token')}, "
            f"languages {', '.join(f'{language} {count}' for language, count in found['languages'].items()) or 'none'}"
        )
        for reason, count in sorted(found["dropped"].items(), key=lambda item: (-item[1], item[0])):
            yield f"  dropped: {count}, {reason}"
    for phase in report["phases"].values():
        for name, found in phase["folders"].items():
            yield (
                f"{name}: {counted(found['documents'], 'document')} in {counted(found['rows'], 'row')} of "
                f"{found['context']}, {found['fill']:.2%} full"
            )
            for part in found["mixture"]:
                band = f" from {part['least_tokens']} tokens" if "least_tokens" in part else ""
                yield (
                    f"  {part['source']}{band}: {part['achieved']:.2%} of the tokens ({part['asked']:.2%} asked), seen "
                    f"{part['tokens'] / part['tokens_there']:.2f} times"
                )
        for part in phase.get("mixture", ()):
            yield f"  in the trainer's mixture: data_dir {part['data_dir']}, weight {part['weight']}"
