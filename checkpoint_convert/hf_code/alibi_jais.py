"""ALiBi, which tells Jais how far a token is: -slope[head] * |key position - query position| on the attention scores.

Press et al., arXiv 2108.12409. Distances are whole numbers taken in float32, whatever the precision of the model.

Positions count the keys of a call from 0: those in the cache, then the new ones. Distances within a text are those
between positions, where several texts stand in one row too.

Shape suffixes: B batch, L query length, S key length, H heads, N distances.
"""

from __future__ import annotations

import torch
from torch import nn

from .configuration_jais import JAISConfig


def alibi_slopes(n_head: int) -> list[float]:
    """The ALiBi slope of each head, in head order.

    With n a power of two, 2^(-8/n), 2^(-16/n) ... 2^-8. Otherwise those of the next lower power of two, then every
    other one of the next higher (arXiv 2108.12409, section 3, and its published code).
    """

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** (n_head.bit_length() - 1)
    return geometric(below) + geometric(2 * below)[::2][: n_head - below]


class JAISRelativePositions(nn.Module):
    """Holds the ALiBi slopes ([H, 1], as in every Jais checkpoint) and turns positions into a float32 bias."""

    def __init__(self, config: JAISConfig):
        super().__init__()
        scaling = config.alibi_scaling or {}
        self.factor = scaling.get("factor")
        self.train_seq_len = scaling.get("train_seq_len")
        self.trainable = config.alibi_trainable_slopes
        self.standard = alibi_slopes(config.n_head)
        self.slopes = nn.Parameter(self.standard_slopes().unsqueeze(1))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Keeps fixed slopes fixed: from_pretrained of transformers 5 puts a trainable parameter in their place."""
        if param is not None and not self.trainable:
            param.requires_grad_(False)
        super().register_parameter(name, param)

    def standard_slopes(self, device: torch.device | None = None) -> torch.Tensor:
        return torch.tensor(self.standard, dtype=torch.float32, device=device)

    def exact_slopes(self) -> torch.Tensor:
        """The slopes [H] in float32, undoing what a half precision did to them.

        Slopes that are the standard ones rounded to bfloat16 or float16 give way to the standard ones: an error
        in a slope grows with the distance that it multiplies. All other stored values are taken as they are.
        """
        stored_H = self.slopes[:, 0].float()
        if self.trainable:
            return stored_H
        stored_H = stored_H.detach()
        standard_H = self.standard_slopes(stored_H.device)
        bfloat16_H, float16_H = standard_H.bfloat16(), standard_H.half()
        rounded = (bfloat16_H, float16_H, float16_H.bfloat16())
        is_rounded = torch.stack([(stored_H == candidate_H.float()).all() for candidate_H in rounded]).any()
        return torch.where(is_rounded, standard_H, stored_H)  # a tensor choice: no synchronisation, no graph break

    def forward(self, positions_L: torch.Tensor, positions_S: torch.Tensor, lengths_BL: torch.Tensor) -> torch.Tensor:
        """The bias [B or 1, H, L, S], float32, of integer positions; lengths_BL: tokens of the text of each query.

        lengths_BL may be [B, 1], where all queries of a row are of one text.
        """
        return alibi_bias(self.scaled_slopes(), positions_L, positions_S, divisors(lengths_BL, self.train_seq_len))

    def scaled_slopes(self) -> torch.Tensor:
        """The slopes [H] over the factor of alibi_scaling, float32."""
        return self.exact_slopes() if self.factor is None else self.exact_slopes() / self.factor


def divisors(lengths_BL: torch.Tensor, train_seq_len: int | None) -> torch.Tensor | None:
    """What slopes are divided by in texts of these lengths, float32; None where it is 1 for all."""
    return None if train_seq_len is None else (lengths_BL.float() / train_seq_len).clamp(min=1.0)


def alibi_bias(
    slopes_H: torch.Tensor, positions_L: torch.Tensor, positions_S: torch.Tensor, divisors_BL: torch.Tensor | None
) -> torch.Tensor:
    """-slope / divisor * distance, [B or 1, H, L, S] float32, of integer positions."""
    slopes_BHL = slopes_H[None, :, None]
    if divisors_BL is not None:
        slopes_BHL = slopes_BHL / divisors_BL.unsqueeze(1)
    distances_LS = (positions_S.unsqueeze(0) - positions_L.unsqueeze(1)).abs().float()
    return -slopes_BHL.unsqueeze(-1) * distances_LS


def alibi_by_distance(slopes_H: torch.Tensor, farthest: int, queries: int, dtype: torch.dtype) -> torch.Tensor:
    """The causal bias of the distances from `farthest` down to 1 - queries, [H, N]; the lowest number below 0."""
    lowest = torch.finfo(dtype).min
    distances_N = torch.arange(farthest, -queries, -1, device=slopes_H.device)
    bias_HN = (-slopes_H.unsqueeze(1) * distances_N.float()).to(dtype).clamp(min=lowest)
    return bias_HN.masked_fill(distances_N < 0, lowest)
