"""Running a torch model larger than memory: each module's weights are read just before it is called and freed after.

The model is built on the meta device and its code runs unchanged. The memory is that of the largest module with weights
of its own, which is one matrix, for any number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cerebras_jais.model.tensors import under_both_names
from checkpoint_convert.errors import ConversionError, first_few
from checkpoint_convert.formats.tensors import WEIGHT_TYPES, Shape, StorageId, Tensor
from checkpoint_convert.mapping.operations import forward
from checkpoint_convert.mapping.plan import Plan, Step, same_values
from checkpoint_convert.mapping.rules import grouped

_BLOCK_BYTES = 64 << 20


def find_weights(
    path: Path,
    model: nn.Module,
    stored: Mapping[str, Tensor],
    ties: Mapping[str, str],
    ignored: Callable[[str], object] = lambda name: False,
) -> dict[str, Tensor]:
    """The stored tensor of each parameter of a model, by its name in the model; only possibly tied tensors are read.

    Args:
        path: the file or directory, for errors.
        model: on the meta device.
        stored: all tensors of the model in the file.
        ties: second names -> first names; one of the two may be missing.
        ignored: whether the file may have a tensor of this name that is not a parameter of the model.

    Raises:
        ConversionError: tensors are missing, not part of the model, of another shape or not floating-point numbers; or
            two names of a tied tensor have different values, so that loaders could disagree on which to use.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    found = under_both_names(stored, ties)
    for name, first in ties.items():
        if name in found and not same_values(found[name], found[first]):
            raise ConversionError(f"{path}: {name} and {first} differ, but the config makes them one tensor")
    both = shapes.keys() & found.keys()
    problems = {
        "missing": shapes.keys() - found.keys(),
        "not part of the model": {name for name in found.keys() - shapes.keys() if not ignored(name)},
        "of another shape than the config demands": {name for name in both if tuple(found[name].shape) != shapes[name]},
        "not floating-point numbers": {name for name in both if found[name].dtype not in WEIGHT_TYPES},
    }
    texts = []
    for what, names in problems.items():
        if names:
            texts.append(f"{what}: {first_few(grouped(sorted(names)), '; ')}")
    if texts:
        raise ConversionError(f"{path}: its tensors are not those that its config demands; {'; '.join(texts)}")
    return {name: found[name] for name in shapes}


@dataclass(frozen=True, eq=False)
class _Converted:
    """A tensor that a step of a conversion makes, as float32: converted when it is read, and nothing is written."""

    step: Step
    index: int
    shape: Shape
    dtype = "float32"
    chunk_rows = None

    @property
    def nbytes(self) -> int:
        return 4 * math.prod(self.shape)

    @property
    def storage_id(self) -> StorageId:
        file, place = self.step.inputs[0].storage_id
        return file, f"{place}, {self.index}"

    def read(self) -> np.ndarray:
        made = forward(self.step.operation, [source.read() for source in self.step.inputs])[self.index]
        return np.ascontiguousarray(made, dtype=np.float32)

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        return self.read()[start:stop]

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        return self.read()[:, start:stop]


def converted(plan: Plan) -> dict[str, Tensor]:
    """What a conversion would write, by name, as float32: each tensor is converted whole when it is read."""
    return {
        header.name: _Converted(step, index, header.shape)
        for step in plan.steps
        for index, header in enumerate(step.headers)
    }


def stream_weights(
    model: nn.Module, weights: Mapping[str, Tensor], report: Callable[[int], object] = lambda nbytes: None
) -> None:
    """Make every module of a model read its own weights when it is called, and free them afterwards.

    Args:
        model: on the meta device; a module that is used but never called gets no weights.
        weights: from `find_weights`.
        report: called with the bytes of each tensor read.
    """
    for path, module in model.named_modules():
        own = {leaf: weights[f"{path}.{leaf}"] for leaf, _ in module.named_parameters(recurse=False)}
        if own:
            module.register_forward_pre_hook(lambda module, _, own=own: load(module, own, report))
            module.register_forward_hook(lambda module, *_, own=own: _drop(module, own))


def load(module: nn.Module, own: Mapping[str, Tensor], report: Callable[[int], object] = lambda nbytes: None) -> None:
    """Read a module's own weights, by their names in it, as float32."""
    for leaf, source in own.items():
        setattr(module, leaf, nn.Parameter(_in_float32(source), requires_grad=False))
        report(source.nbytes)


def _drop(module: nn.Module, own: Mapping[str, Tensor]) -> None:
    for leaf, source in own.items():
        setattr(module, leaf, nn.Parameter(torch.empty(source.shape, device="meta"), requires_grad=False))


def _in_float32(source: Tensor) -> torch.Tensor:
    """A stored tensor as float32; other element types are converted in blocks of rows."""
    if source.dtype == "float32":
        return torch.from_numpy(source.read())
    values = torch.empty(source.shape, dtype=torch.float32)
    rows = max(1, _BLOCK_BYTES // max(1, source.nbytes // source.shape[0]))
    for start in range(0, source.shape[0], rows):
        stop = min(start + rows, source.shape[0])
        block = source.read_rows(start, stop)
        if source.dtype == "bfloat16":  # torch cannot read ml_dtypes' type
            values[start:stop] = torch.from_numpy(block.view("int16")).view(torch.bfloat16)
        else:
            values[start:stop] = torch.from_numpy(block)
    return values
