"""The Model Zoo's packed HDF5 data: written atomically, read in the order of its map-style data processor."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.atomic import sync, whole_folder
from cerebras_jais.checkpoint import read_number
from cerebras_jais.data.ahead import one_ahead
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.order import SampleOrder, mixture_indices, subset_indices
from cerebras_jais.data.packing import STREAM_FEATURES, VSL_FEATURES, as_int32
from cerebras_jais.data.shards import HDF5Source
from cerebras_jais.files import shown_path
from cerebras_jais.ranges import STREAMED

SAMPLES_PER_FILE = 4096
_POSITIONS_PER_FILE = 2**22  # of 2 to 3 bytes each; a file is made in memory
_POSITIONS_AT_ONCE = 2**15  # of 12 or 20 bytes each: rows of so many are packed while they are in a processor's cache
_LEVEL = 1  # of gzip
# check_vocabulary reads at most this many tokens at once, and this many in all before it only samples.
_SCAN_TOKENS = 4 * 1024 * 1024
_SHUFFLED_AT_ONCE = 2**28  # samples, of 8 bytes each
_FULL_SCAN_TOKENS = 256 * 1024 * 1024


@dataclass(frozen=True)
class DataParameters:
    """What data_params.json holds beside the layout: the vocabulary and where the text came from."""

    vocab_size: int
    eos_id: int
    pad_id: int
    tokenizer: str | None = None
    output_dir: str | None = None  # None: where the data is written
    source: str | None = None
    documents: int = 0
    raw_bytes: int = 0
    raw_characters: int = 0
    discarded: int = 0  # documents that were read and left out
    mode: str = "pretraining"  # as the Model Zoo names it: "finetuning" for conversations
    mixture: Sequence[Mapping[str, Any]] = ()  # what was drawn of each source (`Mixture.record`)


def write_hdf5(
    directory: str | Path,
    rows: Iterable[np.ndarray],
    *,
    metadata: DataParameters,
    samples_per_file: int = SAMPLES_PER_FILE,
) -> int:
    """Write rows, int32 [3 or 5, max_sequence_length] each, as a Model Zoo data directory; return their number.

    Files `output_chunk_000000.h5`, ... hold dataset `data` [N, 3 or 5, max_sequence_length] int32, shuffle and gzip,
    one sample a chunk, with attribute `n_examples`; `data_params.json` holds features, processing and `post-process`
    statistics as the Model Zoo's preprocessing writes them. Streaming: the packed rows of two files are held, and a few
    rows being packed in a thread while the next are made; of long rows a file has fewer than `samples_per_file`.
    Everything is made in a directory beside and renamed at the end, so a failure leaves nothing. Raises DataError if
    `directory` exists and is not empty, for no rows, for a token id outside the vocabulary and for rows of
    different shapes.
    """
    directory = Path(directory)
    check_new_folder(directory)
    with whole_folder(directory) as hidden:
        statistics = _write_files(hidden, rows, metadata, samples_per_file)
        parameters = _data_params(directory, metadata, statistics)
        text = json.dumps(parameters, indent=4, sort_keys=True, ensure_ascii=False) + "\n"
        (hidden / "data_params.json").write_text(text, encoding="utf-8", errors="replace")
    return statistics["n_examples"]


def check_new_folder(directory: Path) -> None:
    """Raise DataError if a folder to be written exists and is not empty."""
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(
            f"{shown_path(directory)}: exists and is not an empty folder; remove it or choose another --output"
        )


class HDF5Samples:
    """Batches of packed data, in exactly the order of the Model Zoo's GptHDF5MapDataProcessor for the same keys.

    The keyword arguments are that class's config keys with its meanings and defaults (Model Zoo
    data/common/h5_map_dataset/dataset.py). Data is either samples [N, 3 or 5, max_sequence_length] or a corpus, one
    row of tokens, which needs `max_sequence_length`. Nothing but the headers is read until a batch is asked for.

    One difference by intent: a Model Zoo run that is resumed forgets `num_samples` and `pad_last` (its sampler is made
    again without them); here a resumed run continues as if it had not stopped.

    Raises DataError, naming the path, for missing directories, directories without *.h5 files, files that differ in
    dtype or shape, and features that do not fit `use_vsl`.
    """

    def __init__(
        self,
        data_dir: str | Path | Sequence[str | Path] | None = None,
        batch_size: int = 1,
        shuffle: bool = False,
        shuffle_seed: int = 0,
        drop_last: bool = True,
        use_vsl: bool = False,
        num_samples: int | None = None,
        max_sequence_length: int | None = None,
        data_subset: str | None = None,
        mixture: Sequence[Mapping[str, Any]] | None = None,
        sort_files: bool = True,
        pad_last: bool = False,
        use_worker_cache: bool = False,
    ):
        if (data_dir is None) == (mixture is None):
            raise DataError("data: exactly one of `data_dir` and `mixture` must be given")
        for key, value in (("batch_size", batch_size), ("num_samples", num_samples)):
            if value is not None and value < 1:
                raise DataError(f"data: {key} {value} must be at least 1")
        self.data_dir = _plain_paths(data_dir)
        self.mixture = None if mixture is None else [dict(part) for part in mixture]
        self.batch_size = batch_size
        self.use_vsl = use_vsl
        self.pad_last = pad_last
        self.max_sequence_length = max_sequence_length
        self.sort_files = sort_files
        self.use_worker_cache = use_worker_cache
        self._vocab_size: int | None = None

        parts: list[tuple[Any, str | None]] = [(self.data_dir, data_subset)]
        if self.mixture is not None:
            for part in self.mixture:
                if "data_dir" not in part or "weight" not in part:
                    raise DataError(f"mixture: each part needs `data_dir` and `weight`, got {sorted(part)}")
            parts = [(part["data_dir"], part.get("data_subset")) for part in self.mixture]
        self._sources = [HDF5Source(path, max_sequence_length, use_vsl, sort_files) for path, _ in parts]
        self._subsets = [
            None if subset is None else subset_indices(len(source), subset)
            for source, (_, subset) in zip(self._sources, parts, strict=True)
        ]
        lengths = [
            len(source) if subset is None else len(subset)
            for source, subset in zip(self._sources, self._subsets, strict=True)
        ]
        for length, (path, subset) in zip(lengths, parts, strict=True):
            if not length:
                raise DataError(f"{path}: no sample in it{f' within data_subset {subset}' if subset else ''}")
        self._check_sources_agree()
        self._mixture: tuple[np.ndarray, np.ndarray] | None = None
        if self.mixture is not None:
            weights = [part["weight"] for part in self.mixture]
            self._mixture = mixture_indices(lengths, weights, interleave=not shuffle, seed=shuffle_seed)
        self._length = lengths[0] if self._mixture is None else len(self._mixture[0])
        if shuffle and num_samples is not None and num_samples > max(_SHUFFLED_AT_ONCE, 10 * self._length):
            raise DataError(
                f"data: num_samples {num_samples} repeats the {self._length} samples of "
                f"{self.data_dir or 'the mixture'} and shuffles all of them at once in memory; give fewer, and train "
                "more epochs"
            )
        self.order = SampleOrder(self._length, batch_size, shuffle, shuffle_seed, drop_last, num_samples)

    def __len__(self) -> int:
        """The number of samples on disk (of one epoch of a mixture)."""
        return self._length

    @property
    def sequence_length(self) -> int:
        """Tokens per sample."""
        return self._sources[0].sequence_length

    @property
    def files(self) -> list[Path]:
        """The files that samples are read from, in their order, of all parts of a mixture."""
        return [file for source in self._sources for file in source.files]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the arrays in a batch."""
        return VSL_FEATURES if self.use_vsl else STREAM_FEATURES

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch; with drop_last the rest begins the next epoch."""
        return self.order.batches_per_epoch

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the samples at `indices` (int [n], 0..len - 1) as arrays int32 [n, sequence_length] by feature."""
        indices = np.asarray(indices, dtype=np.int64)
        if self._mixture is None:
            block = self._read_source(0, indices)
        else:
            sources, samples = (part[indices] for part in self._mixture)
            block = np.empty((len(indices), len(self.features), self.sequence_length), dtype=np.int32)
            for source in np.unique(sources):
                block[sources == source] = self._read_source(source, samples[sources == source])
        return {name: np.ascontiguousarray(block[:, i]) for i, name in enumerate(self.features)}

    def batch(self, index: int, *, rank: int = 0, world_size: int = 1, start_sample: int = 0) -> dict[str, np.ndarray]:
        """Return batch `index` of the run, or the rank's share of it, as int32 [B, sequence_length] by feature.

        Shares are equal where the batch can be divided; otherwise some ranks have a row less, or none.

        `start_sample` samples count as consumed before batch 0. Once `check_vocabulary` was called, every batch read
        is checked too.
        """
        indices = self.order.batch_indices(index, start_sample)
        wanted = self.batch_size if self.pad_last else len(indices)
        first, last = rank * wanted // world_size, (rank + 1) * wanted // world_size
        batch = self.read(indices[first:last])
        if self._vocab_size is not None:
            self._check_ids(batch, indices[first:last], self._vocab_size)
        missing = last - first - len(batch["input_ids"])
        if missing > 0:  # rows of padding: id 0 under mask 0
            batch = {name: np.pad(array, ((0, missing), (0, 0))) for name, array in batch.items()}
        return batch

    def batches(
        self, start_batch: int = 0, *, rank: int = 0, world_size: int = 1, start_sample: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield batches from `start_batch` on, epoch after epoch without end; starting late costs nothing."""
        index = start_batch
        while True:
            yield self.batch(index, rank=rank, world_size=world_size, start_sample=start_sample)
            index += 1

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise DataError, naming file and token id, if a token id is outside 0..vocab_size - 1.

        All data is read up to 256 M tokens; beyond that evenly spaced stretches of it, and every batch when it is
        read.
        """
        self._vocab_size = vocab_size
        for source in self._sources:
            for rows in _stretches(len(source), source.tokens_per_sample):
                _raise_for_ids(source, source.read(rows), rows, vocab_size)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings as the Model Zoo's HDF5Dataset.state_dict does; its strict check compares them by ==.

        Paths are compared as written in the config, so a resumed run must name them the same way.
        """
        return {
            "use_worker_cache": self.use_worker_cache,
            "max_sequence_length": self.max_sequence_length,
            "shuffle": self.order.shuffle,
            "shuffle_seed": self.order.shuffle_seed,
            "data_dir": self.data_dir,
            "mixture_params": self.mixture,
            "batch_size": self.batch_size,
            "drop_last": self.order.drop_last,
            "num_samples": self.order.num_samples,
            "sort_files": self.sort_files,
            "use_vsl": self.use_vsl,
            "pad_last": self.pad_last,
        }

    def dataloader_state(self, samples_streamed: int) -> dict[str, Any]:
        """Return the checkpoint's top-level `dataloader` entry: what RestartableDataLoader (version 1) saves.

        `samples_streamed` is the number of samples consumed since the very first step: batches times batch_size.
        """
        return {"samples_streamed": samples_streamed, "__version__": 1, "dataset": self.state_dict()}

    def start_sample_from(self, state: Any, checkpoint: str | Path = "checkpoint") -> int:
        """Check a checkpoint's `dataloader` entry against these settings; return the samples it has consumed.

        Pass the result to `batches(start_sample=...)`. As in the Model Zoo, batch_size and use_worker_cache may
        differ, all else must be equal. Raises DataError naming the file `checkpoint` and the keys that are not, and
        CheckpointError for a number of samples that cannot be.
        """
        known = isinstance(state, Mapping) and state.get("__version__") == 1 and "samples_streamed" in state
        if not known or not isinstance(state.get("dataset"), Mapping):
            raise DataError(
                f"{checkpoint}: its `dataloader` entry is not of version 1; leave it out of the states to load"
            )
        saved, own = dict(state["dataset"]), self.state_dict()
        ignored = {"batch_size", "use_worker_cache"}
        differing = [
            f"{key} (now {own.get(key)!r}, saved {saved.get(key)!r})"
            for key in sorted(saved.keys() | own.keys())
            if key not in ignored and (key not in saved or key not in own or not _same(saved[key], own[key]))
        ]
        if differing:
            raise DataError(
                f"{checkpoint}: made with other training data: {', '.join(differing)}; restore these keys, or leave "
                f"`dataloader` out of the states to load to begin the new data from its start"
            )
        return int(read_number(state["samples_streamed"], STREAMED, "dataloader.samples_streamed", checkpoint))

    def close(self) -> None:
        """Close the files; reading opens them again."""
        for source in self._sources:
            source.close()

    def _read_source(self, source: int, samples: np.ndarray) -> np.ndarray:
        subset = self._subsets[source]
        return self._sources[source].read(samples if subset is None else subset[samples])

    def _check_sources_agree(self) -> None:
        first = self._sources[0]
        for other in self._sources[1:]:
            if (other.by_sample, other.sequence_length) != (first.by_sample, first.sequence_length):
                raise DataError(
                    f"mixture: {other.files[0]} has samples of {other.sequence_length} tokens, {first.files[0]} of "
                    f"{first.sequence_length}, or one is a corpus; pack them all the same way"
                )

    def _check_ids(self, batch: Mapping[str, np.ndarray], indices: np.ndarray, vocab_size: int) -> None:
        for name in ("input_ids", "labels"):
            ids = batch[name]
            if len(ids) and (ids.max() >= vocab_size or ids.min() < 0):
                row = int(np.flatnonzero((ids >= vocab_size).any(1) | (ids < 0).any(1))[0])
                sample, source = int(indices[row]), 0
                if self._mixture is not None:
                    source, sample = int(self._mixture[0][sample]), int(self._mixture[1][sample])
                subset = self._subsets[source]
                stored = np.asarray([sample if subset is None else subset[sample]])
                _raise_for_ids(self._sources[source], self._sources[source].read(stored), stored, vocab_size)


def _write_files(
    partial: Path, rows: Iterable[np.ndarray], metadata: DataParameters, samples_per_file: int
) -> dict[str, int]:
    statistics = dict.fromkeys(
        ("n_examples", "num_tokens", "loss_valid_tokens", "num_masked_tokens", "num_pad_tokens", "n_features"), 0
    )
    left = iter(rows)
    if (first := next(left, None)) is None:
        raise DataError(f"{metadata.source or 'text'}: too little text to fill a single row; give more of it")
    left = chain([first], left)
    length = max(1, first.shape[-1])
    per_file = max(1, min(samples_per_file, _POSITIONS_PER_FILE // length))
    at_once = max(1, _POSITIONS_AT_ONCE // length)

    def files() -> Iterator[tuple[Path, list[bytes]]]:
        for number in count():
            of_file = islice(left, per_file)
            groups = iter(lambda: list(islice(of_file, at_once)), [])  # noqa: B023  # used up in this round
            packed = one_ahead(lambda group: _pack_rows(group, metadata, statistics), groups)
            if not (chunks := list(chain.from_iterable(packed))):
                return
            yield partial / f"output_chunk_{number:06d}.h5", chunks

    for _ in one_ahead(lambda made: _write_file(*made, first.shape), files()):
        pass
    return statistics


def _pack_rows(rows: list[np.ndarray], metadata: DataParameters, statistics: dict[str, int]) -> list[bytes]:
    """Check and count rows, and return the chunk of each: its bytes shuffled and deflated, as HDF5's filters do it."""
    if len({row.shape for row in rows}) != 1 or rows[0].ndim != 2 or rows[0].shape[0] not in (3, 5):
        raise DataError(
            f"rows to write: all must have one shape [3 or 5, length], got {sorted({r.shape for r in rows})}"
        )
    data = as_int32(np.stack(rows), metadata.source or "rows to write")
    if statistics["n_features"] not in (0, data.shape[1]) or statistics.get("length", data.shape[2]) != data.shape[2]:
        raise DataError("rows to write: features or length change on the way")
    ids, mask = data[:, 0], data[:, 1]
    for tokens in (ids, data[:, 2]):
        if tokens.min() < 0 or tokens.max() >= metadata.vocab_size:
            offender = int(tokens.max()) if tokens.max() >= metadata.vocab_size else int(tokens.min())
            raise DataError(
                f"{metadata.source or 'rows to write'}: token id {offender} is outside the vocabulary of "
                f"{metadata.vocab_size}; pack with the tokenizer that belongs to it"
            )
    # Padding is what comes after the last position that is trained or is not the padding id.
    used = (mask != 0) | (ids != metadata.pad_id)
    padding = np.where(used.any(1), np.argmax(used[:, ::-1], axis=1), ids.shape[1])
    trained = int(np.count_nonzero(mask))
    statistics["n_features"], statistics["length"] = data.shape[1:]
    statistics["n_examples"] += len(data)
    statistics["num_tokens"] += ids.size
    statistics["loss_valid_tokens"] += trained
    statistics["num_masked_tokens"] += mask.size - trained
    statistics["num_pad_tokens"] += int(padding.sum())

    numbers = data.reshape(len(data), -1)
    shuffled = np.empty((len(data), data.itemsize, numbers.shape[1]), np.uint8)
    for byte in range(data.itemsize):  # all first bytes of a row, then all second ones, the least significant first
        shuffled[:, byte] = numbers >> (8 * byte)
    return [zlib.compress(row.data, _LEVEL) for row in shuffled]


def _write_file(file: Path, chunks: list[bytes], shape: tuple[int, ...]) -> None:
    import h5py

    # Made in memory: HDF5 can abort the process on a full disk, and not every file system has the locks that it takes.
    with h5py.File(file, "w", driver="core", backing_store=False) as out:
        # Shuffled bytes of token ids pack tighter at level 1 than others do at level 4, in less than half the time.
        packing = {"shuffle": True, "compression": "gzip", "compression_opts": _LEVEL}
        data = out.create_dataset("data", (len(chunks), *shape), "<i4", chunks=(1, *shape), **packing)
        for number, chunk in enumerate(chunks):
            data.id.write_direct_chunk((number, 0, 0), chunk)
        out.attrs["n_examples"] = len(chunks)
        out.flush()
        file.write_bytes(out.id.get_file_image())
    sync(file)


def _data_params(directory: Path, metadata: DataParameters, statistics: Mapping[str, int]) -> dict[str, Any]:
    use_vsl = statistics["n_features"] == len(VSL_FEATURES)
    n = statistics["n_examples"]
    counts = {
        key: statistics[key]
        for key in ("n_examples", "num_tokens", "loss_valid_tokens", "num_masked_tokens", "num_pad_tokens")
    }
    return {
        "setup": {
            "data": {"source": metadata.source, "type": "local"},
            "mode": metadata.mode,
            "output_dir": metadata.output_dir or str(directory),
        },
        "processing": {
            "huggingface_tokenizer": metadata.tokenizer,
            "max_seq_length": statistics["length"],
            "vocab_size": metadata.vocab_size,
            "eos_id": metadata.eos_id,
            "pad_id": metadata.pad_id,
            "use_ftfy": False,
        },
        "dataset": {"use_vsl": use_vsl, **({"mixture": list(metadata.mixture)} if metadata.mixture else {})},
        "features": list(VSL_FEATURES if use_vsl else STREAM_FEATURES),
        "post-process": {
            **counts,
            "non_pad_tokens": counts["num_tokens"] - counts["num_pad_tokens"],
            "processed_files": metadata.documents + metadata.discarded,
            "successful_files": metadata.documents,
            "discarded_files": metadata.discarded,
            "raw_bytes_count": metadata.raw_bytes,
            "raw_chars_count": metadata.raw_characters,
            # No normalisation is done: the text goes in as it is.
            "normalized_bytes_count": metadata.raw_bytes,
            "normalized_chars_count": metadata.raw_characters,
            "average_bytes_per_sequence": -(-metadata.raw_bytes // n),
            "average_chars_per_sequence": -(-metadata.raw_characters // n),
        },
    }


def _plain_paths(data_dir: str | Path | Sequence[str | Path] | None) -> str | list[str] | None:
    if data_dir is None or isinstance(data_dir, str | Path):
        return None if data_dir is None else str(data_dir)
    return [str(path) for path in data_dir]


def _same(saved: Any, own: Any) -> bool:
    # A checkpoint may give lists back as tuples.
    if isinstance(saved, list | tuple) and isinstance(own, list | tuple):
        return len(saved) == len(own) and all(_same(a, b) for a, b in zip(saved, own, strict=True))
    return bool(saved == own)


def _stretches(length: int, tokens_per_sample: int) -> Iterator[np.ndarray]:
    """Yield runs of sample indices that cover the data, or evenly spaced parts of it when there is too much."""
    step = max(1, _SCAN_TOKENS // tokens_per_sample)
    starts = range(0, length, step)
    allowed = max(1, _FULL_SCAN_TOKENS // _SCAN_TOKENS)
    if len(starts) > allowed:
        starts = starts[:: -(-len(starts) // allowed)]
    for start in starts:
        yield np.arange(start, min(start + step, length), dtype=np.int64)


def _raise_for_ids(source: HDF5Source, block: np.ndarray, rows: np.ndarray, vocab_size: int) -> None:
    ids = block[:, [0, 2]]
    if ids.max() < vocab_size and ids.min() >= 0:
        return
    wrong = (ids >= vocab_size) | (ids < 0)
    row = int(np.flatnonzero(wrong.any(axis=(1, 2)))[0])
    offender = int(ids[row][wrong[row]][0])
    raise DataError(
        f"{source.file_of(int(rows[row]))}: token id {offender} is outside the model's vocabulary of {vocab_size}; "
        f"set model.vocab_size to that of the tokenizer the data was packed with, or pack it again"
    )
