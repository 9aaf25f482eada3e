"""The tensors of a model, from its config alone and without torch: their names, shapes and kinds, and which are tied.

Names are the Model Zoo's, as in `named_parameters()` and below `model` in a checkpoint; the order is that of the
modules (Model Zoo models/nlp/gpt2/gpt2_model.py). V vocabulary, M hidden, F filter, K rows of keys and values, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from cerebras_jais.model.config import DecoderConfig

Kind = Literal[
    "embedding", "slopes", "norm", "bias", "attention", "attention_output", "ffn_input", "ffn_output", "head"
]
"""What a tensor is for. `bias` is that of a linear layer; `norm` is the weight or the bias of a norm."""

PREFIX = "model."
"""Stands before the name of every tensor; files of the Model Zoo's own converter leave it out."""

_Any = TypeVar("_Any")


def state_key(name: str) -> str:
    """The name of a tensor or module with the prefix, as the state of the model has it; with it already, unchanged."""
    return name if name.startswith(PREFIX) else f"{PREFIX}{name}"


def bare_name(name: str) -> str:
    """The name of a tensor without the prefix."""
    return name.removeprefix(PREFIX)


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of a model under one of its names."""

    name: str
    shape: tuple[int, ...]
    """Of the Model Zoo's form: [out, in] for a linear layer, [H, 1] for ALiBi's slopes."""
    kind: Kind
    same_as: str | None = None
    """The first name of the tensor, where this is its second."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def tensors(config: DecoderConfig) -> tuple[ModelTensor, ...]:
    """Every tensor of a model under every name, as `state_dict()` of its module lists them."""
    return tuple(_tensors(config))


def second_names(config: DecoderConfig) -> dict[str, str]:
    """Second name -> first name of each tensor that has two: the last norm, and the head if it is the embedding."""
    return {tensor.name: tensor.same_as for tensor in tensors(config) if tensor.same_as is not None}


def parameter_count(config: DecoderConfig) -> int:
    """Number of parameters as transformers counts them: a tied tensor once, ALiBi's slopes too."""
    return sum(tensor.size for tensor in tensors(config) if tensor.same_as is None)


def under_both_names(found: Mapping[str, _Any], second: Mapping[str, str]) -> dict[str, _Any]:
    """What is found by name, and under the other name of a tied tensor where only one of the two is there.

    Args:
        found: anything by the names of tensors.
        second: second name -> first name.
    """
    complete = dict(found)
    for name, first in second.items():
        if name in complete:
            complete.setdefault(first, complete[name])
        elif first in complete:
            complete[name] = complete[first]
    return complete


def _tensors(c: DecoderConfig) -> Iterator[ModelTensor]:
    V, M, F, K = c.vocab_size, c.hidden_size, c.filter_size, c.num_kv_groups * c.head_dim
    attention, attention_out = c.use_projection_bias_in_attention, c.use_ffn_bias_in_attention
    embedding = f"{PREFIX}embedding_layer.word_embeddings.weight"
    yield ModelTensor(embedding, (V, M), "embedding")
    if c.position_embedding_type == "alibi":
        yield ModelTensor(f"{PREFIX}embedding_layer.position_embed_helper.slopes", (c.num_heads, 1), "slopes")
    yield from _norm(c, f"{PREFIX}ln_f")
    for layer in range(c.num_hidden_layers):
        at = f"{PREFIX}transformer_decoder.layers.{layer}"
        yield from _linear(f"{at}.self_attn.proj_q_dense_layer", (M, M), "attention", attention)
        yield from _linear(f"{at}.self_attn.proj_k_dense_layer", (K, M), "attention", attention)
        yield from _linear(f"{at}.self_attn.proj_v_dense_layer", (K, M), "attention", attention)
        yield from _linear(f"{at}.self_attn.proj_output_dense_layer", (M, M), "attention_output", attention_out)
        yield from _norm(c, f"{at}.norm1")
        yield from _norm(c, f"{at}.norm3")
        yield from _linear(f"{at}.ffn.ffn.0.linear_layer", (F, M), "ffn_input", c.use_ffn_bias)
        yield from _linear(f"{at}.ffn.ffn.0.linear_layer_for_glu", (F, M), "ffn_input", c.use_ffn_bias)
        yield from _linear(f"{at}.ffn.ffn.1.linear_layer", (M, F), "ffn_output", c.use_ffn_bias)
    yield from _norm(c, f"{PREFIX}transformer_decoder.norm", same_as=f"{PREFIX}ln_f")
    tied = embedding if c.share_embedding_weights else None
    yield ModelTensor(f"{PREFIX}lm_head.weight", (V, M), "head", tied)
    if c.use_bias_in_output:
        yield ModelTensor(f"{PREFIX}lm_head.bias", (V,), "bias")


def _linear(name: str, shape: tuple[int, int], kind: Kind, bias: bool) -> Iterator[ModelTensor]:
    yield ModelTensor(f"{name}.weight", shape, kind)
    if bias:
        yield ModelTensor(f"{name}.bias", shape[:1], "bias")


def _norm(c: DecoderConfig, name: str, same_as: str | None = None) -> Iterator[ModelTensor]:
    for part in ("weight", "bias") if c.norm_type == "layernorm" else ("weight",):
        first = None if same_as is None else f"{same_as}.{part}"
        yield ModelTensor(f"{name}.{part}", (c.hidden_size,), "norm", first)
