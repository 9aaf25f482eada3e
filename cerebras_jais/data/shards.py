"""One data directory (or several read as one) of Model Zoo HDF5 files, read by sample index."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cerebras_jais.checkpoint.hdf5.chunks import ChunkCache
from cerebras_jais.checkpoint.hdf5.dataset import DatasetHeader, headers_of, read_rows
from cerebras_jais.checkpoint.hdf5.isolate import Description, Descriptions
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.packing import STREAM_FEATURES, VSL_FEATURES, as_int32
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, check_regular, identity_of, parse_json, read_text
from cerebras_jais.ranges import VOCABULARY

# Beyond this many open files the one that was read longest ago is closed.
_OPEN_FILES = 64
# A chunk is unpacked whole, whatever is wanted of it, and a sample is read whole.
_LARGEST_UNIT = 256 * MIB
_PACK_AGAIN = "restore the file, or pack the data again"


def recorded_vocabulary(directory: str | Path) -> int | None:
    """The size of the vocabulary that data_params.json beside the data records; None where it records none."""
    try:
        file = Path(directory) / "data_params.json"
        recorded = parse_json(read_text(file, MIB), str(file))
        size = recorded["processing"]["vocab_size"]
    except (UserError, LookupError, TypeError):
        return None
    return int(size) if VOCABULARY.holds(size) else None


class HDF5Source:
    """The *.h5 files of one or more directories as one sequence of samples, files in sorted order.

    With `use_vsl` None samples are taken with the features that they have, and a file may stand for a directory.

    Samples are stored [N, 3 or 5, length] (`by_sample`), or cut at reading time out of a corpus: rank 1 tokens of all
    files joined, sample i being tokens i L to i L + L inclusive. Integers of any width are read as int32; one that does
    not fit raises DataError.

    A child process looks into the files (`checkpoint.hdf5.isolate`); their rows are read here, without HDF5. Data in
    other files (links, virtual datasets, external storage), chunks that were never written and damaged chunks raise
    DataError. Memory: 16 bytes for each chunk of the data, and 32 MiB of unpacked chunks.
    """

    def __init__(
        self,
        data_dirs: str | Path | Sequence[str | Path],
        max_sequence_length: int | None = None,
        use_vsl: bool | None = False,
        sort_files: bool = True,
    ):
        self._open: OrderedDict[int, int] = OrderedDict()  # number of a file -> its descriptor
        directories = [data_dirs] if isinstance(data_dirs, str | Path) else list(data_dirs)
        self.files = _find_files([Path(directory) for directory in directories], sort_files, use_vsl)
        self._headers, self._identities = _read_headers(self.files)
        shapes = [header.shape for header in self._headers]
        self.by_sample = len(shapes[0]) > 1
        self.n_features = len(STREAM_FEATURES)
        counts = np.cumsum([shape[0] for shape in shapes])
        if self.by_sample:
            _check_features(self.files[0], shapes[0], use_vsl)
            if max_sequence_length is not None:
                raise DataError(
                    f"{self.files[0]}: holds whole samples of {shapes[0][2]} tokens; leave max_sequence_length out "
                    f"of the data section (it is for corpus files only)"
                )
            self.n_features, self.sequence_length = shapes[0][1:]
            self._length = int(counts[-1])
        else:
            if max_sequence_length is None:
                raise DataError(
                    f"{self.files[0]}: holds a corpus (rank 1); set max_sequence_length in the data section"
                )
            if use_vsl:
                raise DataError(f"{self.files[0]}: holds a corpus (rank 1), which has no VSL features; drop use_vsl")
            self.sequence_length = max_sequence_length
            self._length = max(0, (int(counts[-1]) - 1) // max_sequence_length)
        # VSL data read without use_vsl was refused above, so every stored feature is wanted.
        self._ends = counts
        self._cache = ChunkCache()

    def __len__(self) -> int:
        return self._length

    @property
    def tokens_per_sample(self) -> int:
        """Integers read per sample."""
        return self.n_features * self.sequence_length

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the samples at `indices` (int64 [n]) as int32 [n, 3 or 5, length], labels already shifted."""
        if not self.by_sample:
            return self._read_corpus(indices)
        out = np.empty((len(indices), self.n_features, self.sequence_length), dtype=np.int32)
        files = np.searchsorted(self._ends, indices, side="right")
        # Neighbours on disk are read in one go.
        breaks = np.flatnonzero((np.diff(indices) != 1) | (np.diff(files) != 0)) + 1
        for start, stop in zip([0, *breaks.tolist()], [*breaks.tolist(), len(indices)], strict=True):
            if stop > start:
                file = int(files[start])
                first = int(indices[start]) - self._start_of(file)
                out[start:stop] = self._read_int32(file, first, first + stop - start)
        return out

    def file_of(self, index: int) -> Path:
        """Return the file that sample `index` begins in."""
        position = index if self.by_sample else index * self.sequence_length
        return self.files[int(np.searchsorted(self._ends, position, side="right"))]

    def close(self) -> None:
        """Close every open file."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    __del__ = close

    def _read_corpus(self, indices: np.ndarray) -> np.ndarray:
        length = self.sequence_length
        out = np.ones((len(indices), self.n_features, length), dtype=np.int32)
        for i, index in enumerate(indices.tolist()):
            tokens = self._read_tokens(index * length, index * length + length + 1)
            out[i, 0] = tokens[:-1]
            out[i, 2] = tokens[1:]
        return out

    def _read_tokens(self, start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            file = int(np.searchsorted(self._ends, start, side="right"))
            end = min(stop, int(self._ends[file]))
            offset = self._start_of(file)
            parts.append(self._read_int32(file, start - offset, end - offset))
            start = end
        return np.concatenate(parts)

    def _read_int32(self, file: int, start: int, stop: int) -> np.ndarray:
        header = self._headers[file]
        rows = np.empty((stop - start, *header.shape[1:]), header.dtype)
        try:
            read_rows(self._descriptor(file), header, rows, start, self._cache, file)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.files[file]}: rows {start} to {stop - 1} of `data` cannot be read: {error}; {_PACK_AGAIN}"
            ) from error
        return as_int32(rows, str(self.files[file]))

    def _start_of(self, file: int) -> int:
        return int(self._ends[file - 1]) if file else 0

    def _descriptor(self, file: int) -> int:
        if file in self._open:
            self._open.move_to_end(file)
            return self._open[file]
        if len(self._open) >= _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        descriptor = os.open(self.files[file], os.O_RDONLY | os.O_NONBLOCK)
        if identity_of(descriptor) != self._identities[file]:
            os.close(descriptor)
            raise DataError(f"{self.files[file]}: changed after its headers were read; rerun the command")
        self._open[file] = descriptor
        return descriptor


_MADE_BY = "`cerebras-jais data pack` makes one of text"
_PACKED_BY = (
    "`cerebras-jais data chat` makes it of conversations, the loss on responses alone; `cerebras-jais data pack --vsl` "
    "of text"
)


def _find_files(directories: Sequence[Path], sort_files: bool, use_vsl: bool | None) -> list[Path]:
    files: list[Path] = []
    remedy = _PACKED_BY if use_vsl else _MADE_BY
    for directory in directories:
        if use_vsl is None and directory.is_file():
            files.append(directory)
            continue
        if not directory.is_dir():
            raise DataError(f"{directory}: no such data directory; {remedy}")
        files.extend(directory.glob("*.h5"))
    if not files:
        raise DataError(f"{', '.join(map(str, directories))}: no *.h5 files in it; {remedy}")
    return sorted(files) if sort_files else files


def _read_headers(files: Sequence[Path]) -> tuple[list[DatasetHeader], list[tuple[int, int]]]:
    """The header of `data` of each file, and the identity of the file that has it."""
    headers: list[DatasetHeader] = []
    identities: list[tuple[int, int]] = []
    for file in files:
        check_regular(file, DataError)
        file.open("rb").close()  # else the child would call a file damaged that may not be read
    with Descriptions(files, ["data"]) as descriptions:
        for file, description in zip(files, _described(files, descriptions), strict=True):
            header = _header_of(file, description)
            first = headers[0] if headers else header
            if header.dtype != first.dtype or header.shape[1:] != first.shape[1:]:
                raise DataError(
                    f"{file}: `data` is {header.dtype} of shape {header.shape}, but {files[0]} has {first.dtype} of "
                    f"shape {first.shape}; files of one data set must agree, so remove the one that does not belong"
                )
            headers.append(header)
            identities.append(description.identity)
    return headers, identities


def _described(files: Sequence[Path], descriptions: Descriptions) -> Iterator[Description]:
    for file in files:
        try:
            yield descriptions.of(file)
        except ValueError as error:
            raise DataError(f"{file}: not a readable HDF5 file ({error}); {_PACK_AGAIN}") from error


def _header_of(file: Path, description: Description) -> DatasetHeader:
    header = headers_of(description)["data"]
    if isinstance(header, ValueError):
        if description.datasets["data"].get("problem") in ("missing", "empty"):
            raise DataError(f'{file}: no dataset "data"; not a Model Zoo data file')
        raise DataError(f"{file}: `data` {header}; {_PACK_AGAIN}")
    if header.dtype is None or header.dtype.kind not in "iu" or len(header.shape) not in (1, 3):
        raise DataError(
            f"{file}: `data` is {header.type_name} of shape {header.shape}; expected integers of shape "
            f"[samples, 3 or 5, length] or [tokens]"
        )
    units = [("samples", header.shape[1:]), ("chunks", header.table.chunks if header.table is not None else ())]
    for name, shape in units:
        if (size := math.prod(shape) * header.dtype.itemsize) > _LARGEST_UNIT:
            raise DataError(
                f"{file}: `data` has {name} of {size // MIB} MiB; write it in {name} of at most "
                f"{_LARGEST_UNIT // MIB} MiB"
            )
    return header


def _check_features(file: Path, shape: tuple[int, ...], use_vsl: bool | None) -> None:
    found = shape[1]
    if found not in (len(STREAM_FEATURES), len(VSL_FEATURES)):
        raise DataError(f"{file}: {found} features per sample; expected 3, or 5 for VSL data")
    if use_vsl and found != len(VSL_FEATURES):
        raise DataError(f"{file}: 3 features per sample, but use_vsl needs 5; pack with --vsl or drop use_vsl")
    if use_vsl is False and found != len(STREAM_FEATURES):
        raise DataError(f"{file}: 5 features per sample (VSL data); set use_vsl: True in the data section")
