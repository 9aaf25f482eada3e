"""The forward pass of generation: fused weights, keys and values kept in a cache that is allocated once.

The mathematics is that of `model/decoder.py`. The weights of queries, keys and values are one matrix here, and so are
those of SwiGLU's two halves: one token reads each of them once, and an operation fewer is an operation less to start.

B batch, L query length, S key length, H query heads, G key/value heads, R query heads of a group, D head size,
M hidden, V vocabulary, E = H + 2G heads of queries, keys and values together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cerebras_jais.chat.weights import Weights, activation_dtype, check_weights, linear
from cerebras_jais.model.attention import SelfAttention
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import DecoderLayer, GatedLinear, LanguageModel, OutputLinear
from cerebras_jais.model.positions import alibi_bias_HLS, rotary_angles, rotate_BHLD

_LONGEST_PIECE = 512  # prompt tokens of one forward pass
_BIAS_ELEMENTS = 2**24  # of a piece's bias, heads x piece x keys: 64 MiB in float32


@dataclass(frozen=True)
class _Layer:
    """The parts of one layer; qkv has the rows of queries, keys and values, up_gate those of SwiGLU's two halves."""

    norm1: Callable[[Tensor], Tensor]
    qkv: Callable[[Tensor], Tensor]
    out: Callable[[Tensor], Tensor]
    norm3: Callable[[Tensor], Tensor]
    up_gate: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class Cache:
    """Keys, then values, of all layers, [layers, B, 2G, capacity, D]; each row ends in the same column."""

    def __init__(self, config: DecoderConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (config.num_hidden_layers, batch, 2 * config.num_kv_groups, capacity, config.head_dim)
        # A CPU's kernel reads 16-bit keys for one query at a sixth of the rate of float32 ones.
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        # Of columns that are masked out the values must be finite all the same.
        self.kv = like.new_zeros(shape, dtype=dtype)
        self.groups, self.batch, self.capacity = config.num_kv_groups, batch, capacity

    def read(self, begin: int, end: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Views of the keys and of the values of some columns, [B, G, end - begin, D] of each layer."""
        part = self.kv[:, :, :, begin:end]
        return part[:, :, : self.groups].unbind(), part[:, :, self.groups :].unbind()

    def copy(self, row: int, start: int, source: Cache, source_row: int, source_start: int, count: int) -> None:
        """Take over the first `count` tokens of a row of another cache, or of this one."""
        self.kv[:, row, :, start : start + count] = source.kv[:, source_row, :, source_start : source_start + count]


class Forward:
    """A model for generation, made of a `LanguageModel`, whose weights it takes over.

    Attributes:
        config: what the model is.
        weights: element type of its matrices.

    Raises UserError as `check_weights` does.
    """

    def __init__(self, model: LanguageModel, weights: Weights = "float32") -> None:
        self.config, self.weights = model.config, weights
        decoder, dtype = model.model, activation_dtype(weights)
        self._embedding = decoder.embedding_layer.word_embeddings.weight.detach().to(dtype)
        check_weights(weights, self._embedding.device)
        self._head = linear(decoder.lm_head.weight.detach(), _data(decoder.lm_head.bias), weights)
        del decoder.lm_head, decoder.embedding_layer.word_embeddings
        self._last_norm = _norm(decoder.ln_f, dtype)
        self._slopes: Tensor | None = None
        if self.config.position_embedding_type == "alibi":
            self._slopes = decoder.embedding_layer.position_embed_helper.slopes.detach()
        self._layers = []
        layers = decoder.transformer_decoder.layers
        for number in range(len(layers)):
            layer = layers[number]
            assert isinstance(layer, DecoderLayer)
            self._layers.append(_prepared(layer, weights))
            layers[number] = torch.nn.Identity()  # its weights go as the prepared ones come
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
            end = min(len(ids), done + self._piece(len(ids)))
            x_BLM = self._prompt_piece(
                torch.tensor([ids[done:end]], device=self._embedding.device), done, cache, row, start
            )
            done = end
        assert x_BLM is not None, "at least one token is fed"
        return self.logits(x_BLM[:, -1])[0]

    def _piece(self, tokens: int) -> int:
        """Tokens of a text of this length that go through the model at once."""
        return max(16, min(_LONGEST_PIECE, _BIAS_ELEMENTS // (self.config.num_heads * tokens)))

    def _prompt_piece(self, ids_BL: Tensor, past: int, cache: Cache, row: int, start: int) -> Tensor:
        c, device, length = self.config, ids_BL.device, ids_BL.shape[1]
        here_L, all_S = torch.arange(past, past + length, device=device), torch.arange(past + length, device=device)
        cos = sin = bias = None
        if self._slopes is None:
            cos, sin = rotary_angles(here_L, c.effective_rotary_dim, c.rope_theta, c.pos_scaling_factor)
        if self._slopes is not None or past:
            bias = self.bias(all_S[None, :] <= here_L[:, None], here_L, all_S)
        x_BLM = self._embedded(ids_BL)
        at, end = start + past, start + past + length
        for layer, kv_BGSD, k_BGSD, v_BGSD in zip(self._layers, cache.kv, *cache.read(start, end), strict=True):
            q_BHLD, new_BGLD = self._qkv(layer, x_BLM, cos, sin)
            kv_BGSD[row, :, at:end] = new_BGLD[0]
            k_BGSD, v_BGSD = k_BGSD[row : row + 1], v_BGSD[row : row + 1]
            if c.num_kv_groups != c.num_heads:
                repeats = c.num_heads // c.num_kv_groups
                k_BGSD, v_BGSD = k_BGSD.repeat_interleave(repeats, 1), v_BGSD.repeat_interleave(repeats, 1)
            out_BHLD = F.scaled_dot_product_attention(
                q_BHLD.to(k_BGSD.dtype),
                k_BGSD,
                v_BGSD,
                attn_mask=bias,
                is_causal=bias is None,
                scale=c.attention_scale,
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
        x_BLM = self._embedded(torch.tensor(ids, device=device)[:, None])
        new, (keys, values) = cache.kv[:, :, :, column : column + 1].unbind(), cache.read(first, column + 1)
        for layer, new_BGLD, k_BGSD, v_BGSD in zip(self._layers, new, keys, values, strict=True):
            q_BHLD, kv_BGLD = self._qkv(layer, x_BLM, cos, sin)
            new_BGLD.copy_(kv_BGLD)
            # The query heads of a group are the queries of one attention: keys are not repeated.
            out_BGRD = F.scaled_dot_product_attention(
                q_BHLD.to(k_BGSD.dtype).view(batch, groups, repeats, c.head_dim),
                k_BGSD,
                v_BGSD,
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
        x_BLM = self._embedded(ids_L[None])
        for number, layer in enumerate(self._layers):
            q_BHLD, kv_BGLD = self._qkv(layer, x_BLM, cos, sin)
            out_HLD = attend(number, q_BHLD[0], *kv_BGLD[0].chunk(2))
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
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._embedding.device

    def _embedded(self, ids_BL: Tensor) -> Tensor:
        return F.embedding(ids_BL, self._embedding) * self.config.embeddings_scale

    def _qkv(self, layer: _Layer, x_BLM: Tensor, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor]:
        """Queries [B, H, L, D], and keys and values [B, 2G, L, D] as the cache has them."""
        heads, groups = self.config.num_heads, self.config.num_kv_groups
        all_BELD = layer.qkv(layer.norm1(x_BLM)).view(*x_BLM.shape[:2], -1, self.config.head_dim).transpose(1, 2)
        if cos is not None and sin is not None:
            rotated_BELD, values_BGLD = all_BELD.tensor_split((heads + groups,), dim=1)
            all_BELD = torch.cat((rotate_BHLD(rotated_BELD, cos, sin), values_BGLD), dim=1)
        q_BHLD, kv_BGLD = all_BELD.tensor_split((heads,), dim=1)
        return q_BHLD, kv_BGLD

    def _bias_row(self, length: int) -> Tensor:
        """ALiBi's bias of one query on the keys up to its own, [H, 1, S] with S at least `length`; its end is used."""
        assert self._slopes is not None
        if self._row_H1S.shape[-1] < length:
            keys_S = torch.arange(-(-length // 1024) * 1024, device=self._slopes.device)
            self._row_H1S = alibi_bias_HLS(self._slopes, keys_S[-1:], keys_S, self.config.pos_scaling_factor)
        return self._row_H1S

    def _for_kernel(self, bias: Tensor) -> Tensor:
        # A GPU's fused kernel wants the bias in the type of the scores.
        return bias if bias.device.type == "cpu" else bias.to(self._embedding.dtype)

    def logits(self, x_BM: Tensor) -> Tensor:
        """Logits float32 [B, V] of hidden states [B, M] before the last norm."""
        return self._head(self._last_norm(x_BM)).float() * self.config.logits_scale


def _data(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _norm(module: torch.nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    module = module.to(dtype)
    if not isinstance(module, torch.nn.LayerNorm):
        return module
    shape, weight, bias, eps = module.normalized_shape, module.weight.detach(), module.bias.detach(), module.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)  # a third quicker to start than the module


def _joined(weights: Weights, *linears: torch.nn.Linear) -> Callable[[Tensor], Tensor]:
    """Linear layers of one input, as one."""
    weight = torch.cat([each.weight.detach() for each in linears])
    bias = None if linears[0].bias is None else torch.cat([each.bias.detach() for each in linears])
    return linear(weight, bias, weights)


def _prepared(layer: DecoderLayer, weights: Weights) -> _Layer:
    attention: SelfAttention = layer.self_attn
    gated, output = layer.ffn.ffn
    assert isinstance(gated, GatedLinear)
    assert isinstance(output, OutputLinear)
    return _Layer(
        norm1=_norm(layer.norm1, activation_dtype(weights)),
        qkv=_joined(weights, attention.proj_q_dense_layer, attention.proj_k_dense_layer, attention.proj_v_dense_layer),
        out=_joined(weights, attention.proj_output_dense_layer),
        norm3=_norm(layer.norm3, activation_dtype(weights)),
        up_gate=_joined(weights, gated.linear_layer, gated.linear_layer_for_glu),
        down=_joined(weights, output.linear_layer),
    )


def _rest(layer: _Layer, x_BLM: Tensor, heads_BLM: Tensor) -> Tensor:
    """What follows attention in a layer; x is changed."""
    x_BLM += layer.out(heads_BLM.to(x_BLM.dtype))
    up_BLF, gate_BLF = layer.up_gate(layer.norm3(x_BLM)).chunk(2, dim=-1)
    x_BLM += layer.down(up_BLF * F.silu(gate_BLF))
    return x_BLM
