"""Which Cerebras tensor is which Hugging Face tensor: one table per architecture, stated once, read in both directions.

Names on the Cerebras side are those under `state["model"]` without their leading `model.`. `{layer}` is the
number of a layer. `cerebras_jais.model.tensors` lists the tensors and their shapes; the shapes of the
other sides follow from the operation. Source: the tensors of the published Jais and Llama releases, and of the
architectures `jais` and `llama` of llama.cpp, whose names the package `gguf` has too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import bare_name, second_names, tensors
from cerebras_jais.wording import number_runs
from checkpoint_convert.mapping.operations import (
    Chain,
    Identity,
    MergeRows,
    Operation,
    RotaryInterleave,
    Shape,
    Transpose,
)

Side = Literal["cerebras", "hugging_face", "gguf"]
"""Where tensors are stored; GGUF is only ever written to."""


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
    gguf: tuple[str, ...]
    """One name, or none where llama.cpp has no such tensor: it computes ALiBi's slopes."""

    @property
    def holds_slopes(self) -> bool:
        """Whether it is the rule of ALiBi's slopes, which follow from the number of heads and never train."""
        return self.cerebras[0].endswith(".slopes")

    def names(self, side: Side) -> tuple[str, ...]:
        return {"cerebras": self.cerebras, "hugging_face": self.hugging_face, "gguf": self.gguf}[side]

    def shapes(self, side: Side) -> tuple[Shape, ...]:
        return self.operation("cerebras", side).shapes(self.cerebras_shapes)

    def operation(self, side: Side, onto: Side) -> Operation:
        """The operation that takes one side's tensors to another side's; one of the two is the Cerebras side."""
        if side == onto:
            return Identity()
        if onto == "gguf":
            assert side == "cerebras", "the tensors of a release are first seen in the Cerebras layout"
            return self._to_gguf
        return self.to_hugging_face if side == "cerebras" else self.to_hugging_face.inverse

    @property
    def _to_gguf(self) -> Operation:
        """Both keep [out, in] and rotate neighbours, so that only the projections of one tensor are stacked."""
        if len(self.cerebras) == 1:
            return Identity()
        return MergeRows(tuple(shape[0] for shape in self.cerebras_shapes))


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
    """The rules of a model, every layer spelled out, in the order in which releases list their tensors.

    A line of the table is a rule where the model has its tensors: biases are there or not by the config.
    """
    shapes = _shapes(config)
    table = (_jais_table if architecture_of(config) is JAIS else _llama_table)(config)
    spelled: list[Rule] = []
    for section in table:
        per_layer = "{layer}" in section[0].cerebras[0]
        for layer in range(config.num_hidden_layers if per_layer else 1):
            for line in section:
                names = tuple(name.format(layer=layer) for name in line.cerebras)
                if all(name in shapes for name in names):
                    release_name = line.hugging_face.format(layer=layer)
                    gguf = (line.gguf.format(layer=layer),) if line.gguf else ()
                    own_shapes = tuple(shapes[name] for name in names)
                    spelled.append(Rule(names, own_shapes, (release_name,), line.operation, gguf))
    return tuple(spelled)


def ties(config: DecoderConfig, side: Side) -> dict[str, str]:
    """Second names of tensors on a side: name -> the name in the rules. Both hold the same values."""
    others = {rule.cerebras[0]: rule.names(side) for rule in rules(config)}
    tied: dict[str, str] = {}
    for second, first in second_names(config).items():
        pair = bare_name(second), bare_name(first)
        if side != "cerebras":
            if all(name in others for name in pair):
                tied[others[pair[0]][0]] = others[pair[1]][0]
        elif pair[1] in others:
            tied[pair[0]] = pair[1]
        else:  # the table has the last norm under its second name
            tied[pair[1]] = pair[0]
    return tied


def expected_tensors(config: DecoderConfig, side: Side) -> dict[str, Shape]:
    """Names and shapes of all tensors that a model of this config has on a side, second names included."""
    if side == "cerebras":
        return _shapes(config)
    shapes = {
        name: shape for rule in rules(config) for name, shape in zip(rule.names(side), rule.shapes(side), strict=True)
    }
    return shapes | {name: shapes[first] for name, first in ties(config, side).items()}


def tensor_count(config: DecoderConfig) -> int:
    """The tensors of a model: those of the Cerebras side, each counted once whatever names it has."""
    return sum(tensor.same_as is None for tensor in tensors(config))


def _shapes(config: DecoderConfig) -> dict[str, Shape]:
    return {bare_name(tensor.name): tensor.shape for tensor in tensors(config)}


@dataclass(frozen=True)
class _Line:
    """A line of a table: a rule without its shapes, for any layer."""

    cerebras: tuple[str, ...]
    hugging_face: str
    operation: Operation
    gguf: str


_Table = tuple[list[_Line], ...]
_LAYER = "transformer_decoder.layers.{layer}."


def _jais_table(c: DecoderConfig) -> _Table:
    qkv = [f"{_LAYER}self_attn.proj_{x}_dense_layer" for x in "qkv"]
    merge, h = MergeRows((c.hidden_size,) * 3), "transformer.h.{layer}."
    b = "blk.{layer}."

    def attention(part: str, operation: Operation) -> _Line:
        names = tuple(f"{name}.{part}" for name in qkv)
        return _Line(names, f"{h}attn.c_attn.{part}", operation, f"{b}attn_qkv.{part}")

    return (
        [
            _same("embedding_layer.word_embeddings.weight", "transformer.wte.weight", "token_embd.weight"),
            _same("embedding_layer.position_embed_helper.slopes", "transformer.relative_pe.slopes", ""),
        ],
        [
            *_module(f"{_LAYER}norm1", f"{h}ln_1", f"{b}attn_norm"),
            attention("weight", Chain((merge, Transpose()))),
            attention("bias", merge),
            *_module(f"{_LAYER}self_attn.proj_output_dense_layer", f"{h}attn.c_proj", f"{b}attn_output", Transpose()),
            *_module(f"{_LAYER}norm3", f"{h}ln_2", f"{b}ffn_norm"),
            *_module(f"{_LAYER}ffn.ffn.0.linear_layer", f"{h}mlp.c_fc", f"{b}ffn_up", Transpose()),
            *_module(f"{_LAYER}ffn.ffn.0.linear_layer_for_glu", f"{h}mlp.c_fc2", f"{b}ffn_gate", Transpose()),
            *_module(f"{_LAYER}ffn.ffn.1.linear_layer", f"{h}mlp.c_proj", f"{b}ffn_down", Transpose()),
        ],
        [
            *_module("transformer_decoder.norm", "transformer.ln_f", "output_norm"),
            _same("lm_head.weight", "lm_head.weight", "output.weight"),
        ],
    )


def _llama_table(c: DecoderConfig) -> _Table:
    q_to_halves = RotaryInterleave(c.num_heads, c.head_dim, c.effective_rotary_dim, to_halves=True)
    k_to_halves = RotaryInterleave(c.num_kv_groups, c.head_dim, c.effective_rotary_dim, to_halves=True)
    m, b = "model.layers.{layer}.", "blk.{layer}."
    return (
        [_same("embedding_layer.word_embeddings.weight", "model.embed_tokens.weight", "token_embd.weight")],
        [
            *_module(f"{_LAYER}norm1", f"{m}input_layernorm", f"{b}attn_norm"),
            *_module(f"{_LAYER}self_attn.proj_q_dense_layer", f"{m}self_attn.q_proj", f"{b}attn_q", q_to_halves),
            *_module(f"{_LAYER}self_attn.proj_k_dense_layer", f"{m}self_attn.k_proj", f"{b}attn_k", k_to_halves),
            *_module(f"{_LAYER}self_attn.proj_v_dense_layer", f"{m}self_attn.v_proj", f"{b}attn_v"),
            *_module(f"{_LAYER}self_attn.proj_output_dense_layer", f"{m}self_attn.o_proj", f"{b}attn_output"),
            *_module(f"{_LAYER}norm3", f"{m}post_attention_layernorm", f"{b}ffn_norm"),
            *_module(f"{_LAYER}ffn.ffn.0.linear_layer", f"{m}mlp.up_proj", f"{b}ffn_up"),
            *_module(f"{_LAYER}ffn.ffn.0.linear_layer_for_glu", f"{m}mlp.gate_proj", f"{b}ffn_gate"),
            *_module(f"{_LAYER}ffn.ffn.1.linear_layer", f"{m}mlp.down_proj", f"{b}ffn_down"),
        ],
        [
            *_module("transformer_decoder.norm", "model.norm", "output_norm"),
            _same("lm_head.weight", "lm_head.weight", "output.weight"),
        ],
    )


def _same(cerebras: str, hugging_face: str, gguf: str, operation: Operation | None = None) -> _Line:
    return _Line((cerebras,), hugging_face, operation or Identity(), gguf)


def _module(cerebras: str, hugging_face: str, gguf: str, operation: Operation | None = None) -> list[_Line]:
    """The weight and the bias of a module; the operation holds for both."""
    parts = ("weight", "bias")
    return [_same(f"{cerebras}.{part}", f"{hugging_face}.{part}", f"{gguf}.{part}", operation) for part in parts]


def by_layer(names: Iterable[str]) -> tuple[list[str], dict[str, list[int]]]:
    """The names outside layers; and for names within layers, the name in its layer -> numbers of the layers."""
    layers: dict[str, list[int]] = {}
    rest: list[str] = []
    for name in names:
        found = re.fullmatch(r"(?:.*\.)?(?:layers|h|blk)\.(\d{1,9})\.(.+)", name)
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
    numbers = set(numbers)
    return ("layers " if len(numbers) > 1 else "layer ") + ", ".join(number_runs(numbers))
