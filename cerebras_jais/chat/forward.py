"""The forward pass of generation: fused weights, keys and values kept in a cache that is allocated once.

The mathematics is that of `model/decoder.py`. The weights of queries, keys and values are one matrix here, and so are
those of SwiGLU's two halves: one token reads each of them once, and an operation fewer is an operation less to start.

B batch, L query length, S key length, H query heads, G key/value heads, R query heads of a group, D head size,
M hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cerebras_jais.model.attention import SelfAttention
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import DecoderLayer, GatedLinear, LanguageModel, OutputLinear
from cerebras_jais.model.positions import alibi_bias_HLS, rotary_angles, rotate_BHLD

_LONGEST_PIECE = 512  # prompt tokens of one forward pass
_BIAS_ELEMENTS = 2**24  # of a piece's bias, heads x piece x keys: 64 MiB in float32


@dataclass
class _Layer:
    """The weights of one layer; qkv has the rows of queries, keys and values, gate_up those of SwiGLU's two halves."""

    norm1: Callable[[Tensor], Tensor]
    qkv: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    norm3: Callable[[Tensor], Tensor]
    up_gate: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


class Cache:
    """Keys and values of all layers, [layers, B, G, capacity, D] each; each row ends in the same column."""

    def __init__(self, config: DecoderConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (config.num_hidden_layers, batch, config.num_kv_groups, capacity, config.head_dim)
        # Of columns that are masked out the values must be finite all the same.
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.capacity = capacity

    def copy(self, row: int, start: int, source: Cache, source_row: int, source_start: int, count: int) -> None:
        """Take over the first `count` tokens of a row of another cache, or of this one."""
        for mine, other in ((self.k, source.k), (self.v, source.v)):
            mine[:, row, :, start : start + count] = other[:, source_row, :, source_start : source_start + count]


class Forward:
    """A model for generation, made of a `LanguageModel`, whose weights it takes over.

    Attributes:
        config: what the model is.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.config = model.config
        decoder = model.model
        self._embedding = decoder.embedding_layer.word_embeddings.weight.detach()
        self._head = (decoder.lm_head.weight.detach(), _data(decoder.lm_head.bias))
        self._last_norm = decoder.ln_f
        self._slopes: Tensor | None = None
        if self.config.position_embedding_type == "alibi":
            self._slopes = decoder.embedding_layer.position_embed_helper.slopes.detach()
        self._layers = []
        layers = decoder.transformer_decoder.layers
        for number in range(len(layers)):
            layer = layers[number]
            assert isinstance(layer, DecoderLayer)
            self._layers.append(_fused(layer))
            layers[number] = torch.nn.Identity()  # its weights go as the fused ones come
        self._row_H1S = torch.empty(0)

    def new_cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache of the model's type and device."""
        return Cache(self.config, batch, capacity, self._embedding)

    def prefill(
        self, ids: Sequence[int], done: int, cache: Cache, row: int, start: int, cancelled: Callable[[], bool]
    ) -> Tensor | None:
        """Feed the tokens of a prompt from number `done` on; logits [V] of the last, None where cancelled.

        Args:
            ids: the whole prompt; its first `done` tokens are in the cache.
            start: the column of its first token.
        """
        x_BLM = None
        while done < len(ids):
            if cancelled():
                return None
            heads = self.config.num_heads
            piece = max(16, min(_LONGEST_PIECE, _BIAS_ELEMENTS // (heads * len(ids))))
            end = min(len(ids), done + piece)
            x_BLM = self._prompt_piece(
                torch.tensor([ids[done:end]], device=self._embedding.device), done, cache, row, start
            )
            done = end
        assert x_BLM is not None, "at least one token is fed"
        return self.logits(x_BLM[:, -1])[0]

    def _prompt_piece(self, ids_BL: Tensor, past: int, cache: Cache, row: int, start: int) -> Tensor:
        c, device, length = self.config, ids_BL.device, ids_BL.shape[1]
        here_L, all_S = torch.arange(past, past + length, device=device), torch.arange(past + length, device=device)
        cos = sin = bias = None
        if self._slopes is None:
            cos, sin = rotary_angles(here_L, c.effective_rotary_dim, c.rope_theta, c.pos_scaling_factor)
        if self._slopes is not None or past:
            bias = self.bias(all_S[None, :] <= here_L[:, None], here_L, all_S)
        x_BLM = F.embedding(ids_BL, self._embedding) * c.embeddings_scale
        at, end = start + past, start + past + length
        for number, layer in enumerate(self._layers):
            q_BHLD, k_BGLD, v_BGLD = self._qkv(layer, x_BLM)
            if cos is not None and sin is not None:
                q_BHLD, k_BGLD = rotate_BHLD(q_BHLD, cos, sin), rotate_BHLD(k_BGLD, cos, sin)
            cache.k[number, row, :, at:end] = k_BGLD[0]
            cache.v[number, row, :, at:end] = v_BGLD[0]
            k_BGSD, v_BGSD = cache.k[number, row : row + 1, :, start:end], cache.v[number, row : row + 1, :, start:end]
            if c.num_kv_groups != c.num_heads:
                repeats = c.num_heads // c.num_kv_groups
                k_BGSD, v_BGSD = k_BGSD.repeat_interleave(repeats, 1), v_BGSD.repeat_interleave(repeats, 1)
            out_BHLD = F.scaled_dot_product_attention(
                q_BHLD, k_BGSD, v_BGSD, attn_mask=bias, is_causal=bias is None, scale=c.attention_scale
            )
            x_BLM = _rest(layer, x_BLM, out_BHLD.transpose(1, 2).flatten(2))
        return x_BLM

    def step(self, ids: Sequence[int], cache: Cache, starts: Sequence[int], column: int) -> Tensor:
        """Feed one token of each row, into the same column of the cache; logits float32 [B, V].

        Args:
            ids: the tokens, one of each row.
            starts: the column of the first token of each row.
        """
        c, device, batch = self.config, self._embedding.device, len(ids)
        groups, repeats, first = c.num_kv_groups, c.num_heads // c.num_kv_groups, min(starts)
        cos = sin = bias = None
        if self._slopes is None:
            places_BL = torch.tensor([[column - start] for start in starts], device=device)
            cos, sin = rotary_angles(places_BL[:, None], c.effective_rotary_dim, c.rope_theta, c.pos_scaling_factor)
        else:
            bias = self._bias_row(column + 1)[..., first - column - 1 :].reshape(1, groups, repeats, -1)
        if any(start != first for start in starts):
            begins_B1 = torch.tensor(starts, device=device)[:, None]
            visible = (torch.arange(first, column + 1, device=device) >= begins_B1)[:, None, None]
            bias = torch.where(visible, torch.zeros((), device=device) if bias is None else bias, float("-inf"))
        if bias is not None:
            bias = self._for_kernel(bias)
        x_BLM = F.embedding(torch.tensor(ids, device=device), self._embedding)[:, None] * c.embeddings_scale
        for number, layer in enumerate(self._layers):
            q_BHLD, k_BGLD, v_BGLD = self._qkv(layer, x_BLM)
            if cos is not None and sin is not None:
                q_BHLD, k_BGLD = rotate_BHLD(q_BHLD, cos, sin), rotate_BHLD(k_BGLD, cos, sin)
            cache.k[number, :, :, column : column + 1] = k_BGLD
            cache.v[number, :, :, column : column + 1] = v_BGLD
            # The query heads of a group are the queries of one attention: keys are not repeated.
            out_BGRD = F.scaled_dot_product_attention(
                q_BHLD.view(batch, groups, repeats, c.head_dim),
                cache.k[number, :, :, first : column + 1],
                cache.v[number, :, :, first : column + 1],
                attn_mask=bias,
                scale=c.attention_scale,
            )
            x_BLM = _rest(layer, x_BLM, out_BGRD.reshape(batch, 1, -1))
        return self.logits(x_BLM[:, 0])

    def hidden(
        self,
        ids_L: Tensor,
        positions_L: Tensor,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Hidden states [L, M] before the last norm, of tokens whose attention is the caller's.

        Args:
            ids_L: token ids.
            positions_L: where each token stands in its text.
            attend: number of the layer, queries [H, L, D], keys and values [G, L, D], rotated where positions are
                rotary, to the outputs of the heads [H, L, D].
        """
        c, cos, sin = self.config, None, None
        if self._slopes is None:
            cos, sin = rotary_angles(positions_L, c.effective_rotary_dim, c.rope_theta, c.pos_scaling_factor)
        x_BLM = F.embedding(ids_L[None], self._embedding) * c.embeddings_scale
        for number, layer in enumerate(self._layers):
            q_BHLD, k_BGLD, v_BGLD = self._qkv(layer, x_BLM)
            if cos is not None and sin is not None:
                q_BHLD, k_BGLD = rotate_BHLD(q_BHLD, cos, sin), rotate_BHLD(k_BGLD, cos, sin)
            out_HLD = attend(number, q_BHLD[0], k_BGLD[0], v_BGLD[0])
            x_BLM = _rest(layer, x_BLM, out_HLD.transpose(0, 1).flatten(1)[None])
        return x_BLM[0]

    def bias(self, visible_LS: Tensor, queries_L: Tensor, keys_S: Tensor) -> Tensor:
        """What attention adds to its scores, [1, 1 or H, L, S], in the type of its kernel.

        Args:
            visible_LS: which keys a query may attend to, bool.
            queries_L: positions of the queries.
            keys_S: positions of the keys.
        """
        bias = torch.zeros((), device=visible_LS.device)
        if self._slopes is not None:
            bias = alibi_bias_HLS(self._slopes, queries_L, keys_S, self.config.pos_scaling_factor)[None]
        return self._for_kernel(torch.where(visible_LS, bias, float("-inf")))

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and arithmetic."""
        return self._embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.device

    def _qkv(self, layer: _Layer, x_BLM: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        heads_BLED = F.linear(layer.norm1(x_BLM), *layer.qkv).view(*x_BLM.shape[:2], -1, c.head_dim)
        q, k, v = heads_BLED.transpose(1, 2).tensor_split((c.num_heads, c.num_heads + c.num_kv_groups), dim=1)
        return q, k, v

    def _bias_row(self, length: int) -> Tensor:
        """ALiBi's bias of one query on the keys up to its own, [H, 1, S] with S at least `length`; its end is used."""
        assert self._slopes is not None
        if self._row_H1S.shape[-1] < length:
            keys_S = torch.arange(-(-length // 1024) * 1024, device=self._slopes.device)
            self._row_H1S = alibi_bias_HLS(self._slopes, keys_S[-1:], keys_S, self.config.pos_scaling_factor)
        return self._row_H1S

    def _for_kernel(self, bias: Tensor) -> Tensor:
        # A CPU's fused kernel adds a float32 bias to 16-bit scores; a GPU's wants the scores' own type.
        return bias if bias.device.type == "cpu" else bias.to(self._embedding.dtype)

    def logits(self, x_BM: Tensor) -> Tensor:
        """Logits float32 [B, V] of hidden states [B, M] before the last norm."""
        return F.linear(self._last_norm(x_BM), *self._head).float() * self.config.logits_scale


def _data(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _joined(*linears: torch.nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of linear layers of one input, as one."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])
    return weight, bias


def _fused(layer: DecoderLayer) -> _Layer:
    attention: SelfAttention = layer.self_attn
    gated, output = layer.ffn.ffn
    assert isinstance(gated, GatedLinear)
    assert isinstance(output, OutputLinear)
    return _Layer(
        norm1=layer.norm1,
        qkv=_joined(attention.proj_q_dense_layer, attention.proj_k_dense_layer, attention.proj_v_dense_layer),
        out=_joined(attention.proj_output_dense_layer),
        norm3=layer.norm3,
        up_gate=_joined(gated.linear_layer, gated.linear_layer_for_glu),
        down=_joined(output.linear_layer),
    )


def _rest(layer: _Layer, x_BLM: Tensor, heads_BLM: Tensor) -> Tensor:
    """What follows attention in a layer."""
    x_BLM = x_BLM + F.linear(heads_BLM, *layer.out)
    up_BLF, gate_BLF = F.linear(layer.norm3(x_BLM), *layer.up_gate).chunk(2, dim=-1)
    return x_BLM + F.linear(up_BLF * F.silu(gate_BLF), *layer.down)
