"""What Jais adds to its attention scores: the ALiBi bias, and the masks that come with a call.

bias is -slope[head] * |key position - query position| (Press et al., arXiv 2108.12409). Distances are whole numbers
taken in float32, whatever the precision of the model. Where a query may look is kept apart from the bias until both
are put into one tensor.

Shape suffixes: B batch, L query length, S key length, H heads.
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

    def forward(self, positions_L: torch.Tensor, positions_S: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """The bias [B or 1, H, L, S], float32, of integer positions; lengths_B: tokens each row has so far."""
        slopes_BH = self.exact_slopes().unsqueeze(0)
        if self.factor is not None:
            slopes_BH = slopes_BH / self.factor
        elif self.train_seq_len is not None:
            slopes_BH = slopes_BH / (lengths_B.float() / self.train_seq_len).clamp(min=1.0).unsqueeze(1)
        distances_LS = (positions_S.unsqueeze(0) - positions_L.unsqueeze(1)).abs().float()
        return -slopes_BH[:, :, None, None] * distances_LS


def read_mask(
    attention_mask: torch.Tensor | None, positions_L: torch.Tensor, positions_S: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where a query may look, [B or 1, 1, L, S] booleans, and what a 4-D additive mask adds there (or None)."""
    if attention_mask is None or (attention_mask.dim() == 2 and _masks_nothing(attention_mask, positions_L)):
        return (positions_S <= positions_L.unsqueeze(1))[None, None], None
    key_length = positions_S.shape[0]
    if attention_mask.dim() == 2:
        is_token_BS = attention_mask[:, :key_length].to(positions_S.device) != 0
        missing = key_length - is_token_BS.shape[1]  # slots of a static cache that nothing has been written to
        is_token_BS = nn.functional.pad(is_token_BS, (0, missing), value=False)
        causal_LS = positions_S <= positions_L.unsqueeze(1)
        return causal_LS & is_token_BS[:, None, None, :], None
    if attention_mask.dim() != 4:
        raise ValueError(f"attention_mask must have shape [B, S] or [B, 1, L, S], got {tuple(attention_mask.shape)}")
    mask_BHLS = attention_mask[..., :key_length].to(positions_S.device)
    if not mask_BHLS.is_floating_point():
        return mask_BHLS != 0, None
    # Half of the lowest number is far below any real bias, and above the sum of a lowest number and some score.
    return mask_BHLS > torch.finfo(mask_BHLS.dtype).min / 2, mask_BHLS


def _masks_nothing(attention_mask: torch.Tensor, positions_L: torch.Tensor) -> bool:
    """Whether a 2-D mask is all ones, in which case one bias serves all rows of the batch: that saves B times its size.

    Asked only where it pays: it waits for the device, and a compiled graph cannot branch on values.
    """
    if positions_L.shape[0] == 1 or attention_mask.device.type == "meta" or torch.compiler.is_compiling():
        return False
    return bool((attention_mask != 0).all())


def bias_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which a fused kernel on the device of `tensor` takes its bias.

    On the CPU at least float32, whatever the queries are: rounded to bfloat16, a bias of -1000 would be off by 2. The
    kernels of other devices demand the dtype of the queries, and autocast casts the bias to its own.
    """
    device_type = tensor.device.type
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return torch.promote_types(tensor.dtype, torch.float32) if device_type == "cpu" else tensor.dtype
