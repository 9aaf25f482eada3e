"""Self-attention with the Model Zoo's projections, through PyTorch's fused kernel.

B batch, L query length, S key length, H query heads, G key/value heads, D head size, M hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.kernels.flex import FlexMask
from cerebras_jais.model.kernels.linear import Linear
from cerebras_jais.model.kernels.tiled import Tiling
from cerebras_jais.model.positions import rotate_BHLD


@dataclass(frozen=True)
class Positions:
    """The positions of tokens as attention uses them, computed once per forward pass and shared by all layers.

    kernel: what attends in linear memory, or None.
    bias: additive float mask [1 or B, 1 or H, L, S]; without it and without a kernel attention is plainly causal.
    cos, sin: rotary angles, or None under ALiBi.
    """

    kernel: Tiling | FlexMask | None = None
    bias: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None


class SelfAttention(nn.Module):
    """Multi-head or grouped-query attention; the parameter names are the Model Zoo's."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.num_heads, self.num_groups = config.num_heads, config.num_kv_groups
        self.head_dim = config.head_dim
        self.scale = config.attention_scale
        self.dropout = config.attention_dropout
        hidden, kv_width = config.hidden_size, config.num_kv_groups * config.head_dim
        bias = config.use_projection_bias_in_attention
        self.proj_q_dense_layer = Linear(hidden, hidden, bias=bias)
        self.proj_k_dense_layer = Linear(hidden, kv_width, bias=bias)
        self.proj_v_dense_layer = Linear(hidden, kv_width, bias=bias)
        self.proj_output_dense_layer = Linear(hidden, hidden, bias=config.use_ffn_bias_in_attention)

    def forward(self, x_BLM: Tensor, positions: Positions) -> Tensor:
        q_BHLD = self._heads(self.proj_q_dense_layer(x_BLM))
        k_BGSD = self._heads(self.proj_k_dense_layer(x_BLM))
        v_BGSD = self._heads(self.proj_v_dense_layer(x_BLM))
        if positions.cos is not None and positions.sin is not None:
            q_BHLD = rotate_BHLD(q_BHLD, positions.cos, positions.sin)
            k_BGSD = rotate_BHLD(k_BGSD, positions.cos, positions.sin)
        if self.num_groups != self.num_heads and not isinstance(positions.kernel, FlexMask):
            # The other kernels of the oldest supported PyTorch need as many key heads as query heads.
            k_BGSD = k_BGSD.repeat_interleave(self.num_heads // self.num_groups, dim=1)
            v_BGSD = v_BGSD.repeat_interleave(self.num_heads // self.num_groups, dim=1)
        # Autocast would cast the shared bias again in every layer; queries, keys and values are 16-bit already.
        with torch.autocast(x_BLM.device.type, enabled=False):
            if positions.kernel is not None:
                out_BHLD = positions.kernel.attend(q_BHLD, k_BGSD, v_BGSD, self.scale)
            else:
                out_BHLD = F.scaled_dot_product_attention(
                    q_BHLD,
                    k_BGSD,
                    v_BGSD,
                    attn_mask=positions.bias,
                    dropout_p=self.dropout if self.training else 0.0,
                    is_causal=positions.bias is None,
                    scale=self.scale,
                )
        out_BLM: Tensor = self.proj_output_dense_layer(out_BHLD.transpose(1, 2).flatten(2))
        return out_BLM

    def _heads(self, x_BLE: Tensor) -> Tensor:
        return x_BLE.view(*x_BLE.shape[:2], -1, self.head_dim).transpose(1, 2)
