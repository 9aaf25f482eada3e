"""Two models, each a .mdl file or a release, compared tensor by tensor; or one model with its own manifest.

Digests in the Cerebras layout are compared, so no model is converted and only a band of a tensor is in memory at a
time. Where one side stores a tensor in a narrower element type, the other is rounded to it.
The files of a release beside its weights are compared with its manifest, and its code with this package's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import nearly_equal, public_keys
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.release_directory import TOKENIZER_FILES
from checkpoint_convert.formats.tensors import Tensor, np_dtype
from checkpoint_convert.mapping.operations import forward
from checkpoint_convert.mapping.plan import Step, same_values
from checkpoint_convert.mapping.rules import Rule, architecture_of, rules, ties
from checkpoint_convert.open_model import Model, opening
from checkpoint_convert.streaming.digest import file_digest
from checkpoint_convert.streaming.run import Progress, run_steps
from checkpoint_convert.verify.manifest import Manifest, manifest_path, read_manifest
from checkpoint_convert.verify.release_code import read_code
from checkpoint_convert.verify.release_files import check_files

Names = tuple[str, ...]
# Public keys of training or storage, which change nothing that the model computes.
_IGNORED_KEYS = {"resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "initializer_range", "auto_map"}
_ROUNDINGS = {("float64", "float32"), ("float64", "bfloat16"), ("float64", "float16")} | {
    ("float32", "bfloat16"),
    ("float32", "float16"),
}


@dataclass(frozen=True)
class Comparison:
    """How far two models are the same."""

    tensors: int
    """Tensors that either has, by their Cerebras names; a second name counts only where it is another tensor."""
    differences: Mapping[str, str]
    """Cerebras name -> what differs."""
    rounded: tuple[str, ...]
    """Element types that wider values of the other side were rounded to, and then were equal or not."""
    config: Mapping[str, tuple[Any, Any]]
    """Key of config.json -> its two values, where they differ and change what is computed."""
    manifests: Mapping[str, int]
    """Path of a manifest -> tensors whose digests it has right; one that is wrong is among the differences."""
    files: Mapping[str, str]
    """Path of a file of a release -> how it differs from the manifest of the release."""
    code: Mapping[str, str]
    """Path of a file of a release -> what makes it not this package's code."""
    notes: tuple[str, ...]
    """What differs from a manifest and may, and what was not checked."""

    @property
    def identical(self) -> int:
        return self.tensors - len(self.differences)

    @property
    def same(self) -> bool:
        return not (self.differences or self.config or self.files or self.code)


@dataclass(frozen=True)
class _Side:
    """One of the two models, its tensors found by the rules of its own config."""

    model: Model
    found: Mapping[Names, tuple[Rule, tuple[Tensor, ...]]]
    """Cerebras names of a rule -> the rule and its tensors, where all are there in the shapes they should have."""
    problems: Mapping[str, str]
    """Cerebras name -> why a tensor cannot be compared."""
    manifest: Manifest | None


def compare(
    first: Path | str,
    second: Path | str,
    *,
    config: Path | ConfigFile | None = None,
    allow_pickle: bool = False,
    magnitudes: bool = False,
    progress: Progress = lambda done, total: None,
    descriptions: Descriptions | None = None,
) -> Comparison:
    """Compare two models; each is a .mdl file or a release directory.

    Args:
        first: a model.
        second: another.
        config: trainer YAML of a .mdl file that records no config; where the other is a release, its is taken.
        allow_pickle: whether weights in pickle files may be read.
        magnitudes: report by how much tensors differ; each such tensor is then read whole.
        progress: called as bytes are read.
        descriptions: a child that was started with the .mdl files; None starts one where it is needed.

    Raises:
        UserError: a model cannot be opened.
    """
    paths = [Path(first), Path(second)]
    with ExitStack() as stack:
        opened: dict[Path, Model] = {}
        for path in sorted(paths, key=lambda path: not path.is_dir()):
            given: Any = config
            release = next((model for model in opened.values() if model.side == "hugging_face"), None)
            if config is None and release is not None and path.is_file() and not _has_config(path, stack, descriptions):
                given = release.section
            opened[path] = stack.enter_context(
                opening(path, config=given, allow_pickle=allow_pickle, descriptions=descriptions)
            )
        sides = (_side_of(opened[paths[0]]), _side_of(opened[paths[1]]))
        return _with_files(_compare(sides, magnitudes, progress), *sides)


def check_manifest(
    path: Path | str,
    *,
    config: Path | ConfigFile | None = None,
    allow_pickle: bool = False,
    progress: Progress = lambda done, total: None,
    descriptions: Descriptions | None = None,
) -> Comparison:
    """Compare the tensors of a model, and the files of a release, with the manifest that it has.

    Raises:
        ConversionError: it has none, or the model cannot be opened.
    """
    path = Path(path)
    with opening(path, config=config, allow_pickle=allow_pickle, descriptions=descriptions) as model:
        side = _side_of(model)
        if side.manifest is None:
            raise ConversionError(
                f"{path}: has no manifest ({manifest_path(path).name}); name the model to compare with"
            )
        found = side.found.items()
        steps = {key: Step(rule, model.side, "cerebras", inputs, inputs[0].dtype) for key, (rule, inputs) in found}
        digests = _digests({("", key): step for key, step in steps.items()}, progress)
        right, wrong = _against_manifest(side, {key: digests["", key] for key in steps}, steps)
        names = {name for key in side.found for name in key}
        second = ties(model.config, "cerebras").keys()
        listed = side.manifest.tensors.keys()
        differences = dict.fromkeys(names - listed - second, "not in the manifest")
        differences |= dict.fromkeys(listed - names, "only in the manifest")
        differences |= dict(side.problems) | wrong
        total = len((names - second) | differences.keys())
        manifests = {str(manifest_path(path)): right}
        return _with_files(Comparison(total, differences, (), {}, manifests, {}, {}, ()), side)


def with_trusted_code(comparison: Comparison) -> Comparison:
    """The comparison with other code than this package's among the notes, for whoever has read it."""
    notes = [f"{path}: {what}; it is trusted (--trust-release-code)" for path, what in comparison.code.items()]
    return replace(comparison, code={}, notes=(*comparison.notes, *notes))


def _has_config(path: Path, stack: ExitStack, descriptions: Descriptions | None) -> bool:
    """Whether a .mdl file records its config."""
    opened = stack.enter_context(open_checkpoint(path, on_object="skip", descriptions=descriptions))
    metadata = opened.metadata
    return bool(metadata and isinstance(metadata[-1], Mapping) and metadata[-1].get("params"))


def _side_of(model: Model) -> _Side:
    second = ties(model.config, model.side)
    sources = model.tensors
    found: dict[Names, tuple[Rule, tuple[Tensor, ...]]] = {}
    problems: dict[str, str] = {}
    known: set[str] = set()
    for rule in rules(model.config):
        names, shapes = rule.names(model.side), rule.shapes(model.side)
        known |= set(names)
        if missing := [name for name in names if name not in sources]:
            problems |= dict.fromkeys(rule.cerebras, f"{', '.join(missing)} missing in {model.path}")
        elif any(tuple(sources[name].shape) != shape for name, shape in zip(names, shapes, strict=True)):
            shown = ", ".join(f"{name} {list(sources[name].shape)}" for name in names)
            problems |= dict.fromkeys(rule.cerebras, f"{shown} is not what the config of {model.path} demands")
        elif len({sources[name].dtype for name in names}) > 1:
            problems |= dict.fromkeys(rule.cerebras, f"of several element types in {model.path}")
        else:
            found[rule.cerebras] = (rule, tuple(sources[name] for name in names))
    for name in [name for name in second if name in model.tensors and name not in known]:  # those that no rule has
        if not same_values(model.tensors[name], sources[second[name]]):
            problems[name] = f"not {second[name]}, the same tensor under another name, in {model.path}"
    ignored = architecture_of(model.config).ignored
    for name in model.tensors:
        if name not in known | second.keys() and not (model.side == "hugging_face" and ignored.fullmatch(name)):
            problems[name] = f"in {model.path}, but no part of such a model"
    return _Side(model, found, problems, read_manifest(manifest_path(model.path)))


def _with_files(comparison: Comparison, *sides: _Side) -> Comparison:
    """The comparison with what is wrong with the files of releases beside their weights."""
    files: dict[str, str] = {}
    code: dict[str, str] = {}
    notes: list[str] = []
    for side in {side.model.path: side for side in sides if side.model.path.is_dir()}.values():
        release = side.model.path
        found = read_code(release)
        problems = found.problems
        weights = {os.path.relpath(file, release) for file in side.model.files}
        differences, more = check_files(release, side.manifest, weights)
        if found.is_earlier:
            notes.append(f"{release}: its code is an earlier version of this package's; convert again to have today's")
        code |= {str(release / name): what for name, what in problems.items()}
        files |= {str(release / name): what for name, what in differences.items() if name not in problems}
        notes += more
    notes += _other_files([side.model.path for side in sides if side.model.path.is_dir()])
    return replace(comparison, files=files, code=code, notes=tuple(notes))


def _other_files(releases: Sequence[Path]) -> Iterator[str]:
    """A note on the tokenizers of two releases that differ: a tokenizer is no part of the model."""
    if len(releases) != 2:
        return
    found = {file.relative_to(r).as_posix() for r in releases for name in TOKENIZER_FILES for file in r.glob(name)}
    names = sorted(found)
    digests = [[file_digest(r / name) if (r / name).is_file() else None for name in names] for r in releases]
    differing = [name for name, one, other in zip(names, *digests, strict=True) if one != other]
    if differing:
        yield f"the two tokenizers differ, in {', '.join(differing)}; only the models are compared"


def _compare(models: tuple[_Side, _Side], magnitudes: bool, progress: Progress) -> Comparison:
    differences, steps = _pair_up(models)
    digests = _digests(steps, progress)
    manifests: dict[str, int] = {}
    for which, side in enumerate(models):
        own = {key: step for (owner, key), step in steps.items() if owner == which}
        of_side = {key: digests[which, key] for key in own}
        if side.manifest is not None:
            right, wrong = _against_manifest(side, of_side, own)
            manifests[str(manifest_path(side.model.path))] = right
            differences |= wrong
        for name, first in ties(side.model.config, "cerebras").items():
            if of_side.get((name,), ()) != of_side.get((first,), ()) and (name,) in of_side and (first,) in of_side:
                differences.setdefault(name, f"not {first}, which the config of {side.model.path} makes it")
    for which, key in steps:
        for index, name in enumerate(key) if which == 0 else ():
            if digests[0, key][index] != digests[1, key][index] and name not in differences:
                how = _magnitude(steps[0, key], steps[1, key], index) if magnitudes else "other values"
                differences[name] = how
    second = set.intersection(*(set(ties(side.model.config, "cerebras")) for side in models))
    names = ({name for side in models for key in side.found for name in key} - second) | differences.keys()
    rounded = {step.dtype for step in steps.values() if step.inputs[0].dtype != step.dtype}
    config = config_differences(*(side.model.config for side in models))
    return Comparison(len(names), differences, tuple(sorted(rounded)), config, manifests, {}, {}, ())


def _pair_up(models: tuple[_Side, _Side]) -> tuple[dict[str, str], dict[tuple[int, Names], Step]]:
    """Differences that headers show, and the steps that compute the digests of the rest: (which, names) -> step."""
    differences: dict[str, str] = {}
    for name in dict.fromkeys(name for side in models for name in side.problems):
        differences[name] = "; ".join(side.problems[name] for side in models if name in side.problems)
    steps: dict[tuple[int, Names], Step] = {}
    for key in dict.fromkeys(key for side in models for key in side.found):
        if any(name in differences for name in key):
            continue
        having = [side for side in models if key in side.found]
        if len(having) == 1:
            differences |= dict.fromkeys(key, f"only in {having[0].model.path}")
            continue
        (rule, inputs), (other, others) = (side.found[key] for side in models)
        if (text := _difference_of_headers(rule, other, inputs[0].dtype, others[0].dtype)) is not None:
            differences |= dict.fromkeys(key, text)
            continue
        dtype = min((inputs[0].dtype, others[0].dtype), key=lambda name: np_dtype(name).itemsize)
        for which, side in enumerate(models):
            own_rule, own_inputs = side.found[key]
            steps[which, key] = Step(own_rule, side.model.side, "cerebras", own_inputs, dtype)
    return differences, steps


def _difference_of_headers(rule: Rule, other: Rule, dtype: str, other_dtype: str) -> str | None:
    """How the headers of two tensors differ; None where their values can be compared."""
    if rule.cerebras_shapes != other.cerebras_shapes:
        return f"{[list(s) for s in rule.cerebras_shapes]} and {[list(s) for s in other.cerebras_shapes]}"
    if rule.to_hugging_face != other.to_hugging_face:
        return "the two models have different heads"
    if dtype != other_dtype and not {(dtype, other_dtype), (other_dtype, dtype)} & _ROUNDINGS:
        return f"{dtype} and {other_dtype}"
    return None


def _digests(steps: Mapping[Any, Step], progress: Progress) -> dict[Any, tuple[str, ...]]:
    keys = list(steps)
    total = sum(step.read_bytes for step in steps.values())
    found: dict[Any, tuple[str, ...]] = {}
    run_steps(
        {number: steps[key] for number, key in enumerate(keys)},
        None,
        lambda number, digests: found.__setitem__(keys[number], digests),
        lambda nbytes: progress(nbytes, total),
    )
    return found


def _against_manifest(
    side: _Side, digests: Mapping[Names, Names], steps: Mapping[Names, Step]
) -> tuple[int, dict[str, str]]:
    """Number of digests that match the manifest, and the tensors that do not; rounded tensors are left out."""
    right, wrong = 0, {}
    listed = side.manifest.tensors if side.manifest is not None else {}
    for key, found in digests.items():
        if any(source.dtype != steps[key].dtype for source in steps[key].inputs):
            continue
        for name, digest in zip(key, found, strict=True):
            if name not in listed:
                continue
            if listed[name] == digest:
                right += 1
            else:
                wrong[name] = f"differs from {manifest_path(side.model.path)}"
    return right, wrong


def _magnitude(one: Step, other: Step, index: int) -> str:
    """By how much two tensors differ."""
    arrays = []
    for step in (one, other):
        values = [source.read() for source in step.inputs]
        arrays.append(values[index] if step.side == "cerebras" else forward(step.operation, values)[index])
    a, b = (array.reshape(-1) for array in arrays)
    largest, count, block = 0.0, 0, 1 << 22
    for start in range(0, len(a), block):
        with np.errstate(invalid="ignore"):
            x, y = (array[start : start + block].astype(np.float64) for array in (a, b))
            difference = np.abs(x - y)
        differs = ~((x == y) | (np.isnan(x) & np.isnan(y)))
        count += int(differs.sum())
        if differs.any():
            largest = max(largest, float(np.nan_to_num(difference[differs], nan=math.inf).max()))
    return f"{count:,} of {len(a):,} values differ, by {largest:.3g} at most"


def config_differences(one: DecoderConfig, other: DecoderConfig) -> dict[str, tuple[Any, Any]]:
    """The keys of config.json that change what two models compute, with their two values."""
    keys = [public_keys(config) for config in (one, other)]
    return {
        key: (keys[0].get(key), keys[1].get(key))
        for key in dict.fromkeys([*keys[0], *keys[1]])
        if key not in _IGNORED_KEYS and not nearly_equal(keys[0].get(key), keys[1].get(key), rel_tol=1e-12)
    }
