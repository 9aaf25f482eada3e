"""Whether a tokenizer belongs to a model, and the model fits into memory, before its weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cerebras_jais.data.tokenizer import load_tokenizer, vocabulary_size
from cerebras_jais.errors import UserError
from cerebras_jais.machine import available_memory
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import tensors
from checkpoint_convert.formats.release_directory import TOKENIZER

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def check_tokenizer(tokenizer: Tokenizer, folder: Path, model: Path, config: DecoderConfig) -> None:
    """Raise UserError for a tokenizer with ids that the model has no row for, or that is not the release's own.

    Args:
        folder: of the tokenizer.
        model: a checkpoint, which says nothing of its tokenizer, or a release.
    """
    if vocabulary_size(tokenizer) > config.vocab_size:
        raise UserError(
            f"{folder}: its ids go up to {vocabulary_size(tokenizer) - 1} but the model's vocab_size is "
            f"{config.vocab_size}: the tokenizer does not belong to this model; give the model's own"
        )
    if folder == model or not (model / TOKENIZER).is_file():
        return
    given, own = tokenizer.get_vocab(), load_tokenizer(model).get_vocab()
    if given != own:
        token = min({*given.items()} ^ {*own.items()}, key=lambda pair: pair[1])[0]
        raise UserError(
            f"{folder}: the token {token!r} has the id {given.get(token)}, but {own.get(token)} in the tokenizer of "
            f"{model}: the tokenizer does not belong to this model; leave --tokenizer out"
        )


def check_memory(path: Path, config: DecoderConfig, dtype: torch.dtype) -> None:
    """Raise UserError where a model needs more memory than is free.

    It needs its weights, a tied head beside the embedding, and while they are read the largest of them in float32;
    later the keys and values of its context.

    Args:
        dtype: of the weights, as they are read.
    """
    sizes = [tensor.size for tensor in tensors(config)]
    needed = dtype.itemsize * sum(sizes) + max(4 * max(sizes), cache_bytes(config, config.max_position_embeddings))
    free = available_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{path}: takes {needed / 1e9:.1f} GB of memory with its context of {config.max_position_embeddings:,} "
            f"tokens, and {free / 1e9:.1f} GB are free; end other programs, or take a smaller model"
        )


def cache_bytes(config: DecoderConfig, tokens: int) -> int:
    """Bytes of the keys and values of one prompt with its answer, in float32."""
    return 2 * 4 * config.num_hidden_layers * config.num_kv_groups * config.head_dim * tokens
