"""Loading a model: the config that a checkpoint records, and its weights, checked by name, shape and value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from cerebras_jais.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from cerebras_jais.model.config import DecoderConfig, ModelConfigError
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.stored import FOLD_THEM, WeightsError, adapters_in, stored_weights
from cerebras_jais.model.tensors import second_names, tensors, under_both_names
from cerebras_jais.params import section_at, trainers_of
from cerebras_jais.wording import number_runs

# What is read at a time of a tensor.
_BAND_BYTES = 64 << 20
_EARLIER = "use an earlier checkpoint"


def load_model(
    path: str | Path, config: DecoderConfig | None = None, dtype: torch.dtype = torch.float32
) -> LanguageModel:
    """The model of a checkpoint in eval mode, on the CPU.

    Args:
        path: a .mdl file of the Model Zoo or of this project.
        config: what the model is; by default the one recorded in the checkpoint by its trainer.
        dtype: of the weights, to which stored ones are rounded as they are read; ALiBi's slopes are float32.

    Raises:
        CheckpointError: the file cannot be read.
        WeightsError: no config is recorded, or the tensors are not those the config demands.
    """
    with open_checkpoint(path) as checkpoint:
        config = config or recorded_config(checkpoint)
        _fitting(config, checkpoint)  # before memory is taken for it
        model = empty_model(config, dtype)
        fill_model(model, checkpoint)
    return model.eval()


def empty_model(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model on the CPU whose weights are not initialized; a tied head is the embedding, and slopes are float32."""
    with torch.device("meta"):
        model = LanguageModel(config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    allocate(model, torch.device("cpu"))
    return model


def allocate(model: LanguageModel, device: torch.device) -> None:
    """Give a model of the meta device memory on another one, not initialized; a tied head stays the embedding."""
    model.to_empty(device=device)
    if model.config.share_embedding_weights:
        model.model.lm_head.weight = model.model.embedding_layer.word_embeddings.weight


def recorded_config(checkpoint: Checkpoint) -> DecoderConfig:
    """The `model:` section that the checkpoint's trainer recorded in `__metadata__`."""
    for record in reversed(checkpoint.metadata):
        trainers = trainers_of(record.get("params"))
        section = section_at(trainers[-1][1], "init", "model") if trainers else None
        if isinstance(section, Mapping):
            try:
                return DecoderConfig.from_section(section)
            except ModelConfigError as error:
                raise WeightsError(f"{checkpoint.path}: its recorded config cannot be used: {error}") from error
    raise WeightsError(f"{checkpoint.path}: records no model config; give its trainer YAML with --config")


def whole(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Of a tensor that is not divided among processes: all of it, from row 0 on."""
    return tensor, 0


OwnRows = Callable[[torch.Tensor], tuple[torch.Tensor, int]]
"""Gives the rows of a tensor that this process keeps, and the number of the first of them."""


def fill_model(model: LanguageModel, checkpoint: Checkpoint, own_rows: OwnRows = whole) -> None:
    """Copy a checkpoint's weights into a model of any device and floating dtype, in bounded memory.

    Of a model that is divided among processes, each reads what `own_rows` says.

    Raises WeightsError that groups what is missing, left over or of another shape by layer pattern, or names two stored
    tensors that the config ties but that differ, or one that holds NaN or infinity.
    """
    stored = _fitting(model.config, checkpoint)
    targets = model.state_dict()
    for name, second in _names(model.config).items():
        rows, first = own_rows(targets[name])
        read_rows_into(rows, stored[name], first)
        twice = second and stored[second].key != stored[name].key
        if second and twice and not _same_rows(stored[name], stored[second], first, first + len(rows)):
            raise WeightsError(
                f"{checkpoint.path}: {name} and {second} differ, but the config makes them one tensor; "
                "for an untied head set share_embedding_weights: false"
            )


@torch.no_grad()
def read_rows_into(rows: torch.Tensor, stored: StoredTensor, first: int = 0) -> None:
    """Fill a tensor with the rows of a stored one from `first` on, a band at a time.

    Raises WeightsError where they hold NaN or infinity.
    """
    if not stored.shape:
        rows.copy_(read_finite(stored))
        return
    for start, stop in _bands(stored, first, first + len(rows)):
        values = _as_torch(stored.read_rows(start, stop), stored.dtype)
        check_finite(values, stored.path, stored.key, _EARLIER)
        rows[start - first : stop - first].copy_(values)


def _bands(stored: StoredTensor, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about `_BAND_BYTES` that end where what is packed together does."""
    unit = stored.chunk_rows or 1
    rows = max(1, _BAND_BYTES * stored.shape[0] // max(stored.nbytes, 1) // unit) * unit
    while start < stop:
        end = min(start // rows * rows + rows, stop)
        yield start, end
        start = end


def _same_rows(one: StoredTensor, other: StoredTensor, start: int, stop: int) -> bool:
    return all(
        torch.equal(*(_as_torch(tensor.read_rows(*band), tensor.dtype) for tensor in (one, other)))
        for band in _bands(one, start, stop)
    )


def _names(config: DecoderConfig) -> dict[str, str | None]:
    """First name of each tensor -> its second name, None where it has none."""
    second = {first: name for name, first in second_names(config).items()}
    return {tensor.name: second.get(tensor.name) for tensor in tensors(config) if tensor.same_as is None}


def _fitting(config: DecoderConfig, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """What a checkpoint stores under every name of a model; WeightsError where that does not fit."""
    stored = under_both_names(stored_weights(checkpoint), second_names(config))
    adapters = adapters_in(stored)
    if adapters:
        raise WeightsError(f"{checkpoint.path}: {'; '.join(describe(adapters, 'in it'))}; {FOLD_THEM}")
    shapes = {tensor.name: tensor.shape for tensor in tensors(config)}
    problems = [
        *describe(shapes.keys() - stored.keys(), "missing"),
        *describe(stored.keys() - shapes.keys(), "not part of the model"),
        *describe(
            (name for name in shapes.keys() & stored.keys() if shapes[name] != stored[name].shape),
            "of another shape",
            lambda name: f"{list(stored[name].shape)} stored, {list(shapes[name])} in the config",
        ),
    ]
    if problems:
        raise WeightsError(f"{checkpoint.path}: does not fit the config: {'; '.join(problems)}")
    return stored


def to_torch(tensor: StoredTensor) -> torch.Tensor:
    """Read a stored tensor into torch, bfloat16 included."""
    return _as_torch(tensor.read(), tensor.dtype)


def _as_torch(array: np.ndarray, dtype: str) -> torch.Tensor:
    if dtype == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def read_finite(tensor: StoredTensor) -> torch.Tensor:
    """Read a stored tensor into torch; WeightsError where it holds NaN or infinity, which training cannot undo."""
    values = to_torch(tensor)
    check_finite(values, tensor.path, tensor.key, _EARLIER)
    return values


def check_finite(values: torch.Tensor, path: str | Path, name: str, remedy: str = "fetch it again") -> None:
    """Raise WeightsError where values hold NaN or infinity; it names the file, the tensor and the remedy."""
    if values.numel() and not all(torch.isfinite(bound) for bound in values.aminmax()):  # NaN is both bounds then
        raise WeightsError(f"{path}: {name} holds NaN or infinite values; {remedy}")


def describe(names: Iterable[str], what: str, detail: Callable[[str], str] | None = None) -> list[str]:
    """One phrase per name pattern: "layers.{0-17}.norm1.weight missing" for eighteen names of one kind."""
    by_pattern: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(names):
        layer = re.search(r"layers\.(\d+)\.", name)
        pattern = re.sub(r"layers\.\d+\.", "layers.*.", name)
        by_pattern.setdefault(pattern, []).append((int(layer[1]) if layer else -1, name))
    phrases = []
    for pattern, members in by_pattern.items():
        members.sort()
        shown = pattern
        if members[0][0] >= 0:
            shown = pattern.replace("layers.*", f"layers.{_braced([number for number, _ in members])}")
        phrases.append(f"{shown} {what}" + (f" ({detail(members[0][1])})" if detail else ""))
    return phrases


def _braced(numbers: list[int]) -> str:
    """Numbers in a pattern: 0, 1, 2, 5 is "{0-2,5}"; one number has no braces."""
    text = ",".join(number_runs(numbers))
    return text if len(numbers) == 1 else "{" + text + "}"
