"""Positions of tokens: ALiBi biases, rotary angles, and the attention masks of plain and packed sequences.

B batch, L query length, S key length, H heads, D head size, R rotary size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def alibi_bias_HLS(slopes_H1: Tensor, query_positions_L: Tensor, key_positions_S: Tensor, factor: float) -> Tensor:
    """ALiBi bias -slope / factor * |i - j| for every head, [H, L, S] in float32.

    Distances are whole numbers taken in float32, exact up to 2^24 tokens, whatever the precision of the model; where a
    kernel wants the bias in 16 bits, the finished product is rounded once.
    `factor` is `pos_scaling_factor`: position interpolation divides the slopes by it (`alibi`).
    """
    distance_LS = (query_positions_L[:, None] - key_positions_S[None, :]).abs().to(torch.float32)
    return (slopes_H1.to(torch.float32) / -factor)[:, :, None] * distance_LS


def causal_mask_LS(length: int, device: torch.device) -> Tensor:
    """True where a query may attend: to its own position and earlier ones, bool [L, L]."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def packed_mask_B1LS(attention_span_BL: Tensor) -> Tensor:
    """True where a query of a packed (variable sequence length) batch may attend, bool [B, 1, L, L].

    Query i may attend to key j when 0 <= i - j <= attention_span[j]: `attention_span` counts how many later tokens
    of the same document may attend to a key (Model Zoo: create_vsl_mask).
    """
    length = attention_span_BL.shape[1]
    position_L = torch.arange(length, device=attention_span_BL.device)
    ahead_LS = position_L[:, None] - position_L[None, :]
    return ((ahead_LS >= 0) & (ahead_LS <= attention_span_BL[:, None, :]))[:, None]


def rotary_angles(positions: Tensor, rotary_dim: int, theta: float, factor: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * theta^(-2i/R), float32, shape of `positions` + [R / 2].

    The frequency is computed as exp(-2i/R * ln theta) in float32, the form the Model Zoo uses when it does not fold
    constants (layers/RotaryPositionEmbeddingHelper.py); `factor` is `pos_scaling_factor` and divides positions.
    """
    pair = torch.arange(rotary_dim // 2, device=positions.device, dtype=torch.float32)
    log_theta = torch.log(torch.tensor(theta, device=positions.device, dtype=torch.float32))
    frequency = torch.exp(pair * (-log_theta * 2 / rotary_dim))
    angle = (positions.to(torch.float32) / factor)[..., None] * frequency
    return angle.cos(), angle.sin()


def rotate_BHLD(x_BHLD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighbouring pairs (2i, 2i + 1) of the first R of D dimensions by the given angles.

    `cos` and `sin` are [L, R/2] or [B, 1, L, R/2]. The Model Zoo pairs neighbours; Hugging Face pairs halves, which
    is why conversion interleaves the rows of the query and key projections.
    """
    rotary_dim = 2 * cos.shape[-1]
    rotated, rest = x_BHLD[..., :rotary_dim], x_BHLD[..., rotary_dim:]
    even, odd = rotated[..., 0::2], rotated[..., 1::2]
    cos, sin = cos.to(x_BHLD.dtype), sin.to(x_BHLD.dtype)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return rotated if rest.shape[-1] == 0 else torch.cat((rotated, rest), dim=-1)
