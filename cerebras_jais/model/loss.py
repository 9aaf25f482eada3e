"""Cross entropy of next-token prediction that holds only a slice of the logits at a time.

N tokens, M hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cerebras_jais.model.config import LOGITS_AT_ONCE
from cerebras_jais.model.kernels.linear import add_product_, matmul


class _SlicedCrossEntropy(torch.autograd.Function):
    """sum_n weight_n * -log softmax(scale * x_n W^T + b)[label_n], with its gradient found slice by slice.

    The gradient of a slice follows from its own logits alone (softmax minus one-hot), so it is computed with
    them: no array of size N x V is kept or computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NM: Tensor,
        weight_VM: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        weights_N: Tensor,
        scale: float,
        compute_dtype: torch.dtype,
    ) -> Tensor:
        needs_grad = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias_V is not None and ctx.needs_input_grad[2]]
        w_VM = weight_VM.to(compute_dtype)
        grad_x = torch.empty_like(x_NM) if needs_grad[0] else None
        grad_w = torch.zeros_like(weight_VM) if needs_grad[1] else None
        grad_b = torch.zeros_like(bias_V) if bias_V is not None and needs_grad[2] else None
        total = x_NM.new_zeros((), dtype=torch.float32)
        rows = max(1, LOGITS_AT_ONCE // weight_VM.shape[0])
        for start in range(0, x_NM.shape[0], rows):
            part = slice(start, start + rows)
            x = x_NM[part].to(compute_dtype)
            logits = matmul(x, w_VM.t())
            if bias_V is not None:
                logits += bias_V.to(compute_dtype)
            if scale != 1:
                logits *= scale
            logits = logits.float()
            label = labels_N[part, None]
            # The softmax of the largest logit is exp(largest - log_sum): log_sum takes no second pass of exponentials.
            grad = logits.softmax(1)
            log_sum = logits.amax(1, keepdim=True) - grad.amax(1, keepdim=True).log()
            total += ((log_sum - logits.gather(1, label))[:, 0] * weights_N[part]).sum()
            del logits
            if not any(needs_grad):
                continue
            grad.scatter_add_(1, label, grad.new_full((), -1.0).expand_as(label))
            grad.mul_((weights_N[part] * scale)[:, None])
            grad = grad.to(compute_dtype)
            if grad_x is not None:
                grad_x[part] = matmul(grad, w_VM)
            if grad_w is not None:
                add_product_(grad_w, grad.t(), x)
            if grad_b is not None:
                grad_b += grad.sum(0)
        ctx.save_for_backward(grad_x, grad_w, grad_b)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        if grad_total != 1:  # a pass over a V x M gradient that the usual case does not need
            grads = [None if g is None else g * grad_total.to(g.dtype) for g in grads]
        return *grads, None, None, None, None


def next_token_loss(
    x_BLM: Tensor,
    head_VM: Tensor,
    head_bias_V: Tensor | None,
    labels_BL: Tensor,
    loss_mask_BL: Tensor,
    *,
    logits_scale: float,
    loss_scaling: str,
    loss_weight: float,
) -> Tensor:
    """Loss of a batch as the Model Zoo scales it, a float32 scalar in nats.

    `num_tokens` divides the masked sum by the sum of the mask; `batch_size` divides it by B and multiplies by
    `loss_weight` (Model Zoo: losses/GPTLMHeadModelLoss.py). Positions with a mask of zero cost nothing.
    """
    if loss_scaling == "num_tokens":
        factor = 1.0 / loss_mask_BL.sum(dtype=torch.float32)
    else:
        factor = torch.tensor(loss_weight / labels_BL.shape[0], device=x_BLM.device)
    # The factor goes into the weights so that the gradient found slice by slice is the final one.
    weights_BL = loss_mask_BL.to(torch.float32) * factor
    return weighted_token_loss(x_BLM, head_VM, head_bias_V, labels_BL, weights_BL, logits_scale=logits_scale)


def weighted_token_loss(
    x_BLM: Tensor,
    head_VM: Tensor,
    head_bias_V: Tensor | None,
    labels_BL: Tensor,
    weights_BL: Tensor,
    *,
    logits_scale: float,
) -> Tensor:
    """Sum over the batch of weight * cross entropy, a float32 scalar in nats."""
    x_NM = x_BLM.reshape(-1, x_BLM.shape[-1])
    weights_N = weights_BL.reshape(-1).to(torch.float32)
    labels_N = labels_BL.reshape(-1).long()
    keep_N = weights_N != 0
    if not bool(keep_N.all()):
        x_NM, weights_N, labels_N = x_NM[keep_N], weights_N[keep_N], labels_N[keep_N]
    compute_dtype = head_VM.dtype
    if torch.is_autocast_enabled(x_BLM.device.type):
        compute_dtype = torch.get_autocast_dtype(x_BLM.device.type)
    with torch.autocast(x_BLM.device.type, enabled=False):
        loss: Tensor = _SlicedCrossEntropy.apply(  # type: ignore[no-untyped-call]
            x_NM, head_VM, head_bias_V, labels_N, weights_N, logits_scale, compute_dtype
        )
    return loss
