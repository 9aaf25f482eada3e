"""Which Cerebras tensor is which Hugging Face tensor: one table per architecture, stated once, read in both directions.

Names on the Cerebras side are those under `state["model"]` without their leading `model.`. `{layer}` stands for the
number of a layer. The table gives the shapes of the Cerebras side, those of the other side follow from the operation.
Sources: the Model Zoo's models/nlp/gpt2 (names) and the tensors of the published Jais and Llama releases.

V vocabulary, M hidden, F filter, K rows of the key and value projections, H heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.mapping.operations import (
    Chain,
    Identity,
    MergeRows,
    Operation,
    RotaryInterleave,
    Shape,
    Transpose,
)

Side = Literal["cerebras", "hugging_face"]


def other_side(side: Side) -> Side:
    """The side across."""
    return "hugging_face" if side == "cerebras" else "cerebras"


@dataclass(frozen=True)
class Rule:
    """Tensors of one side that are tensors of the other through an operation."""

    cerebras: tuple[str, ...]
    cerebras_shapes: tuple[Shape, ...]
    hugging_face: tuple[str, ...]
    to_hugging_face: Operation

    @property
    def holds_slopes(self) -> bool:
        """Whether it is the rule of ALiBi's slopes, which follow from the number of heads and never train."""
        return self.cerebras[0].endswith(".slopes")

    def names(self, side: Side) -> tuple[str, ...]:
        return self.cerebras if side == "cerebras" else self.hugging_face

    def shapes(self, side: Side) -> tuple[Shape, ...]:
        if side == "cerebras":
            return self.cerebras_shapes
        return self.to_hugging_face.shapes(self.cerebras_shapes)

    def operation_from(self, side: Side) -> Operation:
        """The operation that takes this side's tensors to the other side's."""
        return self.to_hugging_face if side == "cerebras" else self.to_hugging_face.inverse

    def at(self, layer: int) -> Rule:
        """The rule with `{layer}` filled in."""
        return Rule(
            tuple(name.format(layer=layer) for name in self.cerebras),
            self.cerebras_shapes,
            tuple(name.format(layer=layer) for name in self.hugging_face),
            self.to_hugging_face,
        )


@dataclass(frozen=True)
class Architecture:
    """A family of models as Hugging Face knows it."""

    name: Literal["jais", "llama"]
    transformers_class: str
    ignored: re.Pattern[str]
    """Names that a release may hold besides its weights: buffers that code recomputes."""


JAIS = Architecture("jais", "JAISLMHeadModel", re.compile(r"transformer\.h\.\d+\.attn\.(masked_)?bias"))
LLAMA = Architecture("llama", "LlamaForCausalLM", re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"))


def architecture_of(config: DecoderConfig) -> Architecture:
    """Jais has ALiBi positions, Llama rotary ones; nothing else in a config tells them apart."""
    return JAIS if config.position_embedding_type == "alibi" else LLAMA


def rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """The rules of a model, every layer spelled out, in the order in which releases list their tensors."""
    table = (_jais_table if architecture_of(config) is JAIS else _llama_table)(config)
    spelled: list[Rule] = []
    for section in table:
        per_layer = "{layer}" in section[0].cerebras[0]
        for layer in range(config.num_hidden_layers if per_layer else 1):
            spelled += [rule.at(layer) for rule in section]
    return tuple(spelled)


def ties(config: DecoderConfig, side: Side) -> dict[str, str]:
    """Second names of tensors on a side: name -> the name that stands in the rules. Both hold the same values."""
    tied: dict[str, str] = {}
    if side == "cerebras":
        tied = {f"ln_f.{part}": f"transformer_decoder.norm.{part}" for part in _norm_parts(config)}
    if config.share_embedding_weights:
        names = {rule.names("cerebras")[0]: rule.names(side)[0] for rule in rules(config)}
        tied[names["lm_head.weight"]] = names["embedding_layer.word_embeddings.weight"]
    return tied


def expected_tensors(config: DecoderConfig, side: Side) -> dict[str, Shape]:
    """Names and shapes of all tensors that a model of this config has on a side, second names included."""
    shapes = {
        name: shape for rule in rules(config) for name, shape in zip(rule.names(side), rule.shapes(side), strict=True)
    }
    return shapes | {name: shapes[first] for name, first in ties(config, side).items()}


def tensor_count(config: DecoderConfig) -> int:
    """The tensors of a model: those of the Cerebras side, each counted once whatever names it has."""
    return len(expected_tensors(config, "cerebras").keys() - ties(config, "cerebras").keys())


_Table = tuple[list[Rule], ...]
_LAYER = "transformer_decoder.layers.{layer}."


def _jais_table(c: DecoderConfig) -> _Table:
    V, M, F = c.vocab_size, c.hidden_size, c.filter_size
    qkv = [f"{_LAYER}self_attn.proj_{x}_dense_layer" for x in "qkv"]
    merge, h = MergeRows((M, M, M)), "transformer.h.{layer}."
    return (
        [
            _same("embedding_layer.word_embeddings.weight", "transformer.wte.weight", (V, M)),
            _same("embedding_layer.position_embed_helper.slopes", "transformer.relative_pe.slopes", (c.num_heads, 1)),
        ],
        [
            *_norm(c, f"{_LAYER}norm1", f"{h}ln_1"),
            Rule(
                tuple(f"{name}.weight" for name in qkv),
                ((M, M),) * 3,
                (f"{h}attn.c_attn.weight",),
                Chain((merge, Transpose())),
            ),
            Rule(tuple(f"{name}.bias" for name in qkv), ((M,),) * 3, (f"{h}attn.c_attn.bias",), merge),
            *_linear(f"{_LAYER}self_attn.proj_output_dense_layer", f"{h}attn.c_proj", (M, M), True, Transpose()),
            *_norm(c, f"{_LAYER}norm3", f"{h}ln_2"),
            *_linear(f"{_LAYER}ffn.ffn.0.linear_layer", f"{h}mlp.c_fc", (F, M), True, Transpose()),
            *_linear(f"{_LAYER}ffn.ffn.0.linear_layer_for_glu", f"{h}mlp.c_fc2", (F, M), True, Transpose()),
            *_linear(f"{_LAYER}ffn.ffn.1.linear_layer", f"{h}mlp.c_proj", (M, F), True, Transpose()),
        ],
        [
            *_norm(c, "transformer_decoder.norm", "transformer.ln_f"),
            _same("lm_head.weight", "lm_head.weight", (V, M)),
        ],
    )


def _llama_table(c: DecoderConfig) -> _Table:
    V, M, F, K = c.vocab_size, c.hidden_size, c.filter_size, c.num_kv_groups * c.head_dim
    attention, out = c.use_projection_bias_in_attention, c.use_ffn_bias_in_attention
    q_to_halves = RotaryInterleave(c.num_heads, c.head_dim, c.effective_rotary_dim, to_halves=True)
    k_to_halves = RotaryInterleave(c.num_kv_groups, c.head_dim, c.effective_rotary_dim, to_halves=True)
    m = "model.layers.{layer}."
    return (
        [_same("embedding_layer.word_embeddings.weight", "model.embed_tokens.weight", (V, M))],
        [
            *_norm(c, f"{_LAYER}norm1", f"{m}input_layernorm"),
            *_linear(f"{_LAYER}self_attn.proj_q_dense_layer", f"{m}self_attn.q_proj", (M, M), attention, q_to_halves),
            *_linear(f"{_LAYER}self_attn.proj_k_dense_layer", f"{m}self_attn.k_proj", (K, M), attention, k_to_halves),
            *_linear(f"{_LAYER}self_attn.proj_v_dense_layer", f"{m}self_attn.v_proj", (K, M), attention),
            *_linear(f"{_LAYER}self_attn.proj_output_dense_layer", f"{m}self_attn.o_proj", (M, M), out),
            *_norm(c, f"{_LAYER}norm3", f"{m}post_attention_layernorm"),
            *_linear(f"{_LAYER}ffn.ffn.0.linear_layer", f"{m}mlp.up_proj", (F, M), c.use_ffn_bias),
            *_linear(f"{_LAYER}ffn.ffn.0.linear_layer_for_glu", f"{m}mlp.gate_proj", (F, M), c.use_ffn_bias),
            *_linear(f"{_LAYER}ffn.ffn.1.linear_layer", f"{m}mlp.down_proj", (M, F), c.use_ffn_bias),
        ],
        [
            *_norm(c, "transformer_decoder.norm", "model.norm"),
            _same("lm_head.weight", "lm_head.weight", (V, M)),
        ],
    )


def _same(cerebras: str, hugging_face: str, shape: Shape, operation: Operation | None = None) -> Rule:
    return Rule((cerebras,), (shape,), (hugging_face,), operation or Identity())


def _linear(
    cerebras: str, hugging_face: str, shape: Shape, bias: bool, operation: Operation | None = None
) -> list[Rule]:
    """A linear layer of weight `shape`, [out, in]; the operation holds for its bias too."""
    found = [_same(f"{cerebras}.weight", f"{hugging_face}.weight", shape, operation)]
    if bias:
        found.append(_same(f"{cerebras}.bias", f"{hugging_face}.bias", shape[:1], operation))
    return found


def _norm(config: DecoderConfig, cerebras: str, hugging_face: str) -> list[Rule]:
    return [
        _same(f"{cerebras}.{part}", f"{hugging_face}.{part}", (config.hidden_size,)) for part in _norm_parts(config)
    ]


def _norm_parts(config: DecoderConfig) -> tuple[str, ...]:
    return ("weight", "bias") if config.norm_type == "layernorm" else ("weight",)


def by_layer(names: Iterable[str]) -> tuple[list[str], dict[str, list[int]]]:
    """The names outside layers; and for names within layers, the name in its layer -> numbers of the layers."""
    layers: dict[str, list[int]] = {}
    rest: list[str] = []
    for name in names:
        found = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d{1,9})\.(.+)", name)
        if found:
            layers.setdefault(found[2], []).append(int(found[1]))
        else:
            rest.append(name)
    return rest, layers


def grouped(names: Iterable[str]) -> list[str]:
    """Names with the layers they share folded together: "layers 0-17, 20: ffn.ffn.1.linear_layer.bias"."""
    rest, layers = by_layer(names)
    return rest + [f"{layers_text(numbers)}: {name}" for name, numbers in layers.items()]


def layers_text(numbers: Iterable[int]) -> str:
    """Numbers of layers for a message: "layers 0-17, 20"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return ("layers " if len(set(numbers)) > 1 else "layer ") + text
