"""The layers of the Jais decoder: attention, SwiGLU, and the block that has one of each.

Shape suffixes: B batch, L query length, S key length, H heads, D head size, M hidden size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from .blocks_jais import Blocks, attend_by_blocks
from .configuration_jais import JAISConfig


class JAISAttention(nn.Module):
    """Causal self-attention; c_attn makes q | k | v as three contiguous blocks of M."""

    def __init__(self, config: JAISConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.n_embd // config.n_head
        self.dropout = config.attn_pdrop
        self.is_causal = True
        self.scaling = 1.0
        if config.scale_attn_weights:
            self.scaling = 1.0 / self.head_dim if config.mup_scale_qk_dot_by_d else self.head_dim**-0.5
        if config.scale_attn_by_inverse_layer_idx:
            self.scaling /= layer_idx + 1
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.c_proj.ends_residual_branch = True  # type: ignore[assignment]
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        x_BLM: torch.Tensor,
        bias: torch.Tensor,
        past_key_values: Cache | None,
        positions_L: torch.Tensor,
        output_attentions: bool,
        blocks: Blocks | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*x_BLM.shape[:2], -1, self.head_dim)
        q_BHLD, k_BHSD, v_BHSD = (
            part.view(heads).transpose(1, 2) for part in self.c_attn(x_BLM).split(self.config.n_embd, dim=2)
        )
        if past_key_values is not None:
            # The last argument places the new keys in a static cache of transformers 4; version 5 counts by itself.
            k_BHSD, v_BHSD = past_key_values.update(k_BHSD, v_BHSD, self.layer_idx, {"cache_position": positions_L})

        attend = eager_attention  # the fused kernels return no weights
        if self.config._attn_implementation != "eager" and not output_attentions:
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
            if q_BHLD.device.type != "cpu" and blocks is None:
                bias = bias.to(q_BHLD.dtype)  # cast already, but for queries of another dtype than the hidden states
        options = {"scaling": self.scaling, "dropout": self.dropout if self.training else 0.0}
        if blocks is None:
            out_BLHD, weights_BHLS = attend(self, q_BHLD, k_BHSD, v_BHSD, bias, **options)
        else:
            out_BLHD, weights_BHLS = (
                attend_by_blocks(attend, self, q_BHLD, k_BHSD, v_BHSD, bias, blocks, **options),
                None,
            )
        out_BLM = out_BLHD.reshape(*x_BLM.shape[:2], -1)
        return self.resid_dropout(self.c_proj(out_BLM)), weights_BHLS


class JAISMLP(nn.Module):
    """SwiGLU: c_proj(c_fc(x) * silu(c_fc2(x)))."""

    def __init__(self, config: JAISConfig):
        super().__init__()
        n_inner = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.c_fc = Conv1D(n_inner, config.n_embd)
        self.c_fc2 = Conv1D(n_inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, n_inner)
        self.c_proj.ends_residual_branch = True  # type: ignore[assignment]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_BLM: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.c_fc(x_BLM) * functional.silu(self.c_fc2(x_BLM))))


class JAISBlock(GradientCheckpointingLayer):
    """One pre-norm decoder block; returns (hidden states, attention weights or None).

    `bias` is that of every pair, [B or 1, H, L, S]; with `blocks`, the slopes [H] that biases are made of.
    """

    def __init__(self, config: JAISConfig, layer_idx: int):
        super().__init__()
        self.checkpoints = False
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = JAISAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = JAISMLP(config)

    @property
    def gradient_checkpointing(self) -> bool:  # type: ignore[override]
        """Never without gradients: there is nothing to save then, and checkpointing would take the cache away."""
        return self.checkpoints and torch.is_grad_enabled()

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.checkpoints = value

    def forward(
        self,
        h_BLM: torch.Tensor,
        bias: torch.Tensor,
        past_key_values: Cache | None = None,
        positions_L: torch.Tensor | None = None,
        output_attentions: bool = False,
        blocks: Blocks | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended_BLM, weights_BHLS = self.attn(
            self.ln_1(h_BLM), bias, past_key_values, positions_L, output_attentions, blocks
        )
        h_BLM = h_BLM + attended_BLM
        return h_BLM + self.mlp(self.ln_2(h_BLM)), weights_BHLS


def bias_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which a fused kernel on the device of `tensor` takes its bias.

    On the CPU at least float32, whatever the queries are: rounded to bfloat16, a bias of -1000 would be off by 2. The
    kernels of other devices demand the dtype of the queries, and autocast casts the bias to its own.
    """
    device_type = tensor.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.promote_types(tensor.dtype, torch.float32) if device_type == "cpu" else tensor.dtype


def eager_attention(module, q_BHLD, k_BHSD, v_BHSD, bias_BHLS, scaling, dropout=0.0, **_):
    """Plain attention with a float32 softmax; the scale is put on q, so that q.k stays in the range of float16.

    Returns (output [B, L, H, D], weights [B, H, L, S]), both in the dtype of v.
    """
    scores_BHLS = torch.matmul(q_BHLD * scaling, k_BHSD.transpose(2, 3)).float() + bias_BHLS.float()
    weights_BHLS = functional.softmax(scores_BHLS, dim=-1).to(v_BHSD.dtype)
    weights_BHLS = functional.dropout(weights_BHLS, p=dropout, training=module.training)
    return torch.matmul(weights_BHLS, v_BHSD).transpose(1, 2), weights_BHLS
