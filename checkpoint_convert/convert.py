"""The three things people do: release a checkpoint, take a release back for more training, check one against the other.

Nothing here needs torch or transformers; tensors pass one projection at a time, in the element type that they have.
"""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cerebras_jais.checkpoint import Checkpoint, LazyTensor, StoredTensor, open_checkpoint, replacing, save_checkpoint
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.model_config import RELEASE, refuse_inexpressible, to_config_json, to_model_section
from checkpoint_convert.plan import Plan, Source, make_plan, same_values
from checkpoint_convert.release import directory_appearing, read_tokenizer, write_companions
from checkpoint_convert.rules import architecture_of, ties
from checkpoint_convert.safetensors_files import TensorToWrite, open_model, plan_shards, read_json, write_model
from checkpoint_convert.trainer_yaml import model_section_of, read_model_section, trainer_params, yaml_text

Path_ = str | os.PathLike
Progress = Callable[[int, int], object]
"""Called with (bytes just written, bytes in all)."""

DEFAULT_SHARD_SIZE = 5 * 10**9
_SHOWN = 6


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    output: Path
    architecture: str
    """Name of the Hugging Face class."""
    tensors: int
    """Tensors written, second names of tied ones included."""
    parameters: int
    """Parameters, tied ones counted once."""
    dtypes: tuple[str, ...]
    nbytes: int
    """Bytes of the tensors written; links are none."""
    notes: tuple[str, ...]
    """What was left out or assumed."""


def convert_to_hf(
    checkpoint: Path_,
    output: Path_,
    *,
    config: Path_ | Mapping[str, Any] | None = None,
    tokenizer: Path_ | None = None,
    max_shard_size: int = DEFAULT_SHARD_SIZE,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Make a Hugging Face release directory of a Cerebras checkpoint.

    Args:
        checkpoint: the .mdl file.
        output: the directory to make; it must not exist.
        config: a trainer YAML, or a `model:` section; None takes what the checkpoint says of itself.
        tokenizer: directory of a tokenizer to include.
        max_shard_size: bytes of weights in one file.
        progress: called as bytes are written.

    Raises:
        UserError: anything that does not fit, before a byte is written; nothing is left of an output begun.
    """
    output = Path(output)
    with open_checkpoint(checkpoint, on_object="skip") as opened:
        section = _section_for(opened, config)
        model = DecoderConfig.from_section(section)
        refuse_inexpressible(model)
        files = read_tokenizer(Path(tokenizer) if tokenizer else None, model)
        plan = make_plan(model, "cerebras", cerebras_tensors(opened))
        config_json = to_config_json(section, plan.dtypes[0], files.tokens)
        notes = _left_out(opened)
        if tokenizer is None:
            notes.append("no tokenizer was given: add one before publishing")
        total = plan.nbytes
        with directory_appearing(output, total) as partial:
            write_model(partial, plan_shards(plan.outputs(), max_shard_size), lambda done: progress(done, total))
            write_companions(partial, model, config_json, files, plan, _origin(opened))
    return _report(output, model, plan, total, notes)


def convert_to_cerebras(release: Path_, output: Path_, *, progress: Progress = lambda done, total: None) -> Report:
    """Make a Cerebras checkpoint, and beside it the YAML that trains it on, of a Hugging Face release.

    Args:
        release: directory with config.json and safetensors.
        output: the .mdl file to write; `<stem>.yaml` beside it is written too, neither may exist.
        progress: called as bytes are written.

    Raises:
        UserError: anything that does not fit, before a byte is written; nothing is left of an output begun.
    """
    release, output = Path(release), Path(output)
    section, notes = to_model_section(_config_of(release))
    model = DecoderConfig.from_section(section)
    refuse_inexpressible(model)
    plan = make_plan(model, "hugging_face", open_model(release))
    if plan.ignored:
        notes.append(f"left out: {len(plan.ignored)} buffers that code recomputes, such as {plan.ignored[0]}")
    params = trainer_params(section, output.name)
    total = sum(tensor.nbytes for tensor in plan.outputs() if tensor.name not in plan.aliases)
    state = {
        "model": _state_of(plan, lambda done: progress(done, total)),
        "__metadata__": [{"version": RELEASE, "model_name": _model_name(section), "params": params}],
    }
    beside = output.with_suffix(".yaml")
    if beside == output:
        raise ConversionError(f"{output}: a checkpoint must not end in .yaml; that name is its YAML's")
    saved = False
    try:
        with replacing(beside) as yaml_file:
            yaml_file.write_text(yaml_text(params, notes), encoding="utf-8")
            save_checkpoint(output, state)
            saved = True
    except BaseException as error:
        if saved:  # the checkpoint is in its place, the YAML could not be put into its own: both or neither
            output.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConversionError(f"{output}: cannot be written: {error.strerror or error}") from error
        raise
    return _report(output, model, plan, total, notes)


@dataclass(frozen=True)
class Comparison:
    """How far two models have the same tensors."""

    total: int
    """Tensors that either has."""
    differences: Mapping[str, str]
    """Name -> what differs."""

    @property
    def identical(self) -> int:
        return self.total - len(self.differences)


def compare(
    first: Path_, second: Path_, *, progress: Callable[[int, int], object] = lambda done, total: None
) -> Comparison:
    """Compare two models tensor by tensor, bit for bit; each is a .mdl file or a release directory.

    Across formats the checkpoint is read as the release's config says, and the names are the release's. A tied tensor
    that one of them does not store is not a difference.

    Args:
        first: a model.
        second: another.
        progress: called with (tensors just compared, tensors in all).
    """
    paths = (Path(first), Path(second))
    with ExitStack() as stack:
        if paths[0].is_dir() == paths[1].is_dir():
            one, other = (_tensors_of(path, stack) for path in paths)
        else:
            release, checkpoint = sorted(paths, key=lambda path: not path.is_dir())
            model = DecoderConfig.from_section(to_model_section(_config_of(release))[0])
            refuse_inexpressible(model)
            stored = _tensors_of(checkpoint, stack)
            ignored = architecture_of(model).ignored
            one = {tensor.name: tensor for tensor in make_plan(model, "cerebras", stored).outputs()}
            other = {name: tensor for name, tensor in open_model(release).items() if not ignored.fullmatch(name)}
            for name in ties(model, "hugging_face").keys() - other.keys():
                del one[name]
        names = list(dict.fromkeys([*one, *other]))
        differences: dict[str, str] = {}
        for name in names:
            what = _difference(one.get(name), other.get(name))
            if what:
                differences[name] = what
            progress(1, len(names))
    return Comparison(len(names), differences)


def cerebras_tensors(opened: Checkpoint) -> dict[str, StoredTensor]:
    """The model's tensors in a checkpoint, by their names without the leading `model.`.

    Raises:
        ConversionError: the checkpoint holds no model, or something that is not a tensor among its tensors, or a tensor
            stored in a way that is not read.
    """
    for key in opened.skipped_objects:
        if key.startswith("model."):
            reason = opened.leaves[key].reason
            raise ConversionError(f"{opened.path}: '{key}' is {reason}; save the model's tensors as plain tensors")
    model = opened.tree.get("model") if isinstance(opened.tree, Mapping) else None
    if not isinstance(model, Mapping) or not model:
        raise ConversionError(f"{opened.path}: holds no model (no entry 'model' in its state)")
    tensors: dict[str, StoredTensor] = {}
    for name, leaf in model.items():
        if not isinstance(leaf, StoredTensor):
            raise ConversionError(f"{opened.path}: model.{name} is not a tensor")
        short = str(name).removeprefix("model.")
        if short in tensors:
            raise ConversionError(f"{opened.path}: has {short} with and without the leading 'model.'")
        tensors[short] = leaf
    return tensors


def _section_for(opened: Checkpoint, config: Path_ | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if config is not None:
        return read_model_section(Path(config))
    last = opened.metadata[-1] if opened.metadata else None
    params = last.get("params") if isinstance(last, Mapping) else None
    if not params:
        raise ConversionError(f"{opened.path}: says nothing of its config; give the trainer YAML with --config")
    return model_section_of(params, f"{opened.path} (its __metadata__)")


def _left_out(opened: Checkpoint) -> list[str]:
    others = [str(key) for key in opened.tree if key not in ("model", "__metadata__")]
    notes = [f"left out of the release: {', '.join(others)}"] if others else []
    skipped = opened.skipped_objects
    if skipped:
        more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        notes.append(f"not read, because they are pickled or stored elsewhere: {', '.join(skipped[:_SHOWN])}{more}")
    return notes


def _origin(opened: Checkpoint) -> dict[str, str]:
    """Where the weights come from, as far as the checkpoint says."""
    origin: dict[str, str] = {}
    last = opened.metadata[-1] if opened.metadata else None
    if isinstance(last, Mapping) and isinstance(last.get("version"), str):
        origin["Made from"] = f"a checkpoint of Cerebras release {last['version']}"
    step = opened.tree.get("global_step")
    if isinstance(step, StoredTensor) and not step.shape:
        step = step.read().item()
    if isinstance(step, int):
        origin["Training step"] = f"{step:,}"
    return origin


def _config_of(release: Path) -> dict[str, Any]:
    if not release.is_dir():
        raise ConversionError(
            f"{release}: is not a directory; a release is a directory with config.json and safetensors"
        )
    return read_json(release / "config.json")


def _tensors_of(path: Path, stack: ExitStack) -> dict[str, Any]:
    if path.is_dir():
        return dict(open_model(path))
    return dict(cerebras_tensors(stack.enter_context(open_checkpoint(path, on_object="skip"))))


def _state_of(plan: Plan, progress: Callable[[int], object]) -> OrderedDict[str, LazyTensor]:
    """The state under `model`; second names are the same object, which the writer stores once and links."""

    def counted(tensor: TensorToWrite) -> np.ndarray:
        values = tensor.read()
        progress(tensor.nbytes)
        return values

    lazy = {
        tensor.name: LazyTensor(tensor.shape, tensor.dtype, functools.partial(counted, tensor))
        for tensor in plan.outputs()
        if tensor.name not in plan.aliases
    }
    return OrderedDict((f"model.{name}", lazy[plan.aliases.get(name, name)]) for name in plan.written)


def _model_name(section: Mapping[str, Any]) -> str:
    """The Model Zoo's class for the section's `name`."""
    return {"jais": "JAISModel", "llama": "LlamaModel", "gpt2": "Gpt2Model"}.get(str(section.get("name")), "JAISModel")


def _difference(a: Source | TensorToWrite | None, b: Source | TensorToWrite | None) -> str:
    if a is None or b is None:
        return "only in the first" if b is None else "only in the second"
    if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        return f"{a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}"
    return "" if same_values(a, b) else "other values"


def _report(output: Path, config: DecoderConfig, plan: Plan, nbytes: int, notes: list[str]) -> Report:
    name = architecture_of(config).transformers_class
    return Report(output, name, len(plan.written), plan.parameters, plan.dtypes, nbytes, tuple(notes))
