"""Tensors of a release seen as the Cerebras side stores them, band by band, without a copy on the disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import under_both_names
from checkpoint_convert.formats.tensors import StorageId, Tensor, np_dtype
from checkpoint_convert.mapping.operations import Operation, Piece, Shape
from checkpoint_convert.mapping.rules import Side, rules, ties
from checkpoint_convert.streaming.transpose import contiguous


@dataclass(frozen=True, eq=False)
class CerebrasView:
    """One Cerebras tensor out of the tensor of a release that holds it."""

    source: Tensor
    to_source: Operation
    """The operation that makes `source` of Cerebras tensors."""
    index: int
    """Which of those tensors this is."""
    shape: Shape

    @property
    def dtype(self) -> str:
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np_dtype(self.dtype).itemsize

    @property
    def storage_id(self) -> StorageId:
        """Equal for two names of one tensor."""
        path, place = self.source.storage_id
        return path, f"{place} {self.index}"

    @property
    def chunk_rows(self) -> int | None:
        """Rows that move together, such as those of a head."""
        return self.to_source.unit if self.to_source.unit > 1 else None

    def read(self) -> np.ndarray:
        """The whole tensor as a new array."""
        return self.read_rows(0, self.shape[0]) if self.shape else self.source.read()

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start to stop (exclusive) as a new row-major array; they begin and end at whole units."""
        shape = (stop - start, *self.shape[1:])
        # The place of a piece depends on its shape alone, so an array without memory stands for it.
        stand_in = np.broadcast_to(np.uint8(0), shape)
        (place,) = self.to_source.move(Piece(self.index, (start, *(0,) * (len(shape) - 1)), stand_in))
        if self.to_source.transposes and len(shape) == 2:
            values = self.source.read_columns(place.at[1], place.at[1] + stop - start)
        else:
            values = self.source.read_rows(place.at[0], place.at[0] + stop - start)
        bits = values.view(f"u{values.itemsize}")
        (moved,) = self.to_source.inverse.move(Piece(0, place.at, bits))
        return contiguous(moved.values).view(values.dtype)

    def read_columns(self, start: int, stop: int) -> np.ndarray:
        """Columns of a matrix; no step asks for them, since none transposes a Cerebras tensor for GGUF."""
        return self.read()[:, start:stop]


def in_cerebras_layout(config: DecoderConfig, side: Side, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a model by their Cerebras names, tied ones under both.

    Args:
        config: the model.
        side: the side that `tensors` come from.
        tensors: all tensors that the config demands, in the shapes that it demands (`make_plan` checks it).
    """
    if side == "cerebras":
        return tensors
    found: dict[str, Tensor] = {}
    for rule in rules(config):
        source = tensors[rule.names(side)[0]]
        for index, (name, shape) in enumerate(zip(rule.cerebras, rule.cerebras_shapes, strict=True)):
            found[name] = CerebrasView(source, rule.operation("cerebras", side), index, shape)
    return under_both_names(found, ties(config, "cerebras"))
