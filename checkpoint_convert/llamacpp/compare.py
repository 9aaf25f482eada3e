"""A GGUF file compared with the checkpoint or the release that it was made of, band by band.

float32 and float16 must be exactly what `to-gguf` would write. In blocks of 8 or 4 bits each number must be as near to
the source's as rounding to the block's steps leaves it, so that files of other programs can pass, too. The bounds are
derived: a block of 32 numbers of which the largest is m has the step d = m/127 (q8_0) or m/8 (q4_0), stored in float16
(relative error 2^-11, absolute 2^-25 below its normal numbers).

- q8_0: half a step, and at most 127 times the error of the stored step.
- q4_0: half a step, or a whole one at the end opposite to m, where the step 8 is missing; and 8 times that error.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.config.yaml_file import ConfigFile
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.gguf import GgufFile, Value, decode, read_gguf, shown_value, value_bytes
from checkpoint_convert.llamacpp.convert import plan_for_gguf
from checkpoint_convert.llamacpp.model import TYPES, Encoding, encodings, hyperparameters, values_of
from checkpoint_convert.llamacpp.vocabulary import vocabulary_metadata
from checkpoint_convert.mapping.plan import Step
from checkpoint_convert.open_model import Model, opening
from checkpoint_convert.release import read_tokenizer
from checkpoint_convert.streaming.run import BAND_BYTES, DEFAULT_WORKERS, Progress, bands
from checkpoint_convert.verify.compare import Comparison

_STEPS = {"Q8_0": 127.0, "Q4_0": 8.0}
_OFF_BY = {"Q8_0": 0.5, "Q4_0": 1.0}  # of a step
_BLOCK = 32
_SCALING = ".rope.scaling."
_BAND_BYTES = BAND_BYTES // 2  # several arrays of its size are compared


def compare_gguf(
    gguf: Path | str,
    source: Path | str,
    *,
    config: Path | ConfigFile | Mapping[str, Any] | None = None,
    allow_pickle: bool = False,
    progress: Progress = lambda done, total: None,
    descriptions: Descriptions | None = None,
) -> Comparison:
    """Compare a GGUF file with its source.

    Args:
        gguf: the file.
        source: a .mdl file or a release directory.
        config: of a .mdl file, as for `convert_to_hf`.
        allow_pickle: whether weights in pickle files may be read.
        progress: called as bytes of the source are read.
        descriptions: a child that was started with the .mdl file; None starts one where it is needed.

    Returns:
        Differences by the names of the GGUF file; `config` has the keys of its metadata.

    Raises:
        UserError: either cannot be read, or llama.cpp cannot compute what the source computes.
    """
    file = read_gguf(Path(gguf))
    with opening(Path(source), config=config, allow_pickle=allow_pickle, descriptions=descriptions) as model:
        plan = plan_for_gguf(model)
        differences = dict.fromkeys(
            (name for name in file.tensors if name not in {header.name for header in plan.headers}),
            "no part of such a model",
        )
        pairs: list[_Pair] = []
        for step in plan.steps:
            for header in step.headers if step.writes else ():
                text, pair = _paired(file, step, model)
                if text is not None:
                    differences[header.name] = text
                elif pair is not None:
                    pairs.append(pair)
        total = sum(pair.step.read_bytes for pair in pairs)
        with ThreadPoolExecutor(DEFAULT_WORKERS) as pool:
            found = pool.map(lambda pair: _difference(pair, lambda count: progress(count, total)), pairs)
            differences |= {pair.name: text for pair, text in zip(pairs, found, strict=True) if text is not None}
        keys, notes = _metadata_differences(file, model)
        names = {header.name for header in plan.headers} | differences.keys()
        return Comparison(len(names), differences, _rounded(pairs), keys, {}, {}, {}, tuple(notes))


@dataclass(frozen=True)
class _Pair:
    """A tensor of the file and the step that makes it of the source."""

    name: str
    step: Step
    encoding: Encoding
    file: GgufFile


def _paired(file: GgufFile, step: Step, model: Model) -> tuple[str | None, _Pair | None]:
    (header,) = step.headers
    tensor = file.tensors.get(header.name)
    if tensor is None:
        return f"missing in {file.path}", None
    if tensor.shape != header.shape:
        return f"{list(tensor.shape)} where {model.path} has {list(header.shape)}", None
    for type_ in TYPES:
        encoding = encodings(model.config, type_)(header)
        if encoding.tensor.kind == tensor.kind:
            return None, _Pair(header.name, step, encoding, file)
    return f"{tensor.kind.lower()}, which llama.cpp does not use for it", None


def _rounded(pairs: list[_Pair]) -> tuple[str, ...]:
    return tuple(sorted({pair.encoding.tensor.kind.lower() for pair in pairs} - {"f32"}))


def _difference(pair: _Pair, progress: Any) -> str | None:
    """How the values of a tensor differ from those of the source; None where they are what they should be."""
    stored = pair.file.stored[pair.name]
    wrong, worst, first = 0, 0.0, 0
    for source in pair.step.inputs:
        for start, values in bands(source, 1, _BAND_BYTES):
            coding, rows = pair.encoding, values.reshape(len(values), -1) if values.ndim else values.reshape(1, 1)
            kept = stored.read_rows(first + start, first + start + len(rows))
            off, most = off_by_more(coding, values_of(coding, rows), kept)
            wrong, worst = wrong + off, max(worst, most)
            progress(values.nbytes)
        first += source.shape[0] if source.shape else 1
    return f"{wrong:,} values differ, by {worst:.3g} at most" if wrong else None


def off_by_more(coding: Encoding, values: np.ndarray, kept: np.ndarray) -> tuple[int, float]:
    """How many numbers of some rows are not what they may be, and by how much at most.

    Args:
        coding: of the tensor.
        values: [rows, columns] of the source in its element type.
        kept: uint8 [rows, bytes of a row] of the file.
    """
    kind = coding.tensor.kind
    if kind in ("F32", "F16"):
        wanted = coding.encode(values)
        if np.array_equal(wanted, kept):
            return 0, 0.0
        bits = "<u4" if kind == "F32" else "<u2"
        wrong = wanted.view(bits) != kept.view(bits)
        with np.errstate(invalid="ignore", over="ignore"):
            size = np.abs(decode(wanted, kind).astype(np.float64) - decode(kept, kind))
        return int(wrong.sum()), float(np.nan_to_num(size[wrong], nan=np.inf).max())
    wanted_values = coding.scaled(values).astype(np.float32, copy=False)
    blocks = wanted_values.reshape(-1, _BLOCK)
    found = decode(kept, kind).reshape(-1, _BLOCK)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    step = largest / _STEPS[kind]
    bound = _OFF_BY[kind] * step + _STEPS[kind] * (2.0**-11 * step + 2.0**-25) + 2.0**-22 * largest
    with np.errstate(invalid="ignore", over="ignore"):
        size = np.abs(found - blocks)
        wrong = ~(size <= bound)
    return int(wrong.sum()), float(np.nan_to_num(size[wrong], nan=np.inf).max()) if wrong.any() else 0.0


# ---- metadata -------------------------------------------------------------------------------------------------------


def _metadata_differences(file: GgufFile, model: Model) -> tuple[dict[str, tuple[Any, Any]], list[str]]:
    """Keys whose values are not those of the source, with both, and notes on what was not compared."""
    wanted: dict[str, Value] = hyperparameters(model.config)
    notes: list[str] = []
    if model.path.is_dir():
        try:
            tokenizer = read_tokenizer(model.path, model.config, model.tokens)
            wanted |= vocabulary_metadata(tokenizer, model.config, model.path)[0]
        except ConversionError as error:
            notes.append(f"the tokenizer in {file.path} was not compared: {error}")
    else:
        notes.append(f"{model.path}: a checkpoint has no tokenizer; that in {file.path} was not compared")
    differing: dict[str, tuple[Any, Any]] = {}
    for key, value in wanted.items():
        expected = value_bytes(value)
        if file.metadata.get(key) != expected:
            differing[key] = (shown_value(file.metadata.get(key)), shown_value(expected))
    for key, stored in file.metadata.items():
        if _SCALING in key and key not in wanted:  # llama.cpp would scale positions that the source does not
            differing[key] = (shown_value(stored), shown_value(None))
    return differing, notes
