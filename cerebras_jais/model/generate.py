"""Text from a model, one token at a time, with keys and values kept in a cache allocated once."""

from __future__ import annotations

import torch
from torch import Tensor

from cerebras_jais.model.decoder import LanguageModel

_LOWEST_TEMPERATURE = 1e-6  # lower values overflow the logits, and the likeliest token is certain anyway
_PREFILL = 128  # prompt tokens per forward pass: attention scores of a whole long prompt would not fit in memory


@torch.inference_mode()
def generate(
    model: LanguageModel,
    input_ids_BL: Tensor,
    max_new_tokens: int,
    *,
    eos_token_id: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Continue prompts of equal length by at most `max_new_tokens` tokens, [B, L + new].

    Args:
        model: put in eval mode for the call, and back afterwards.
        input_ids_BL: prompts, int64 or int32, on the model's device.
        eos_token_id: a sequence that produced it is filled with it; generation ends when all have.
        temperature: logits are divided by it and sampled; 0, and less than 1e-6, takes the likeliest token.
        top_p: sample only from the likeliest tokens that together hold this probability.

    Raises:
        UserError: a prompt token outside the vocabulary.
    """
    model.check_token_ids(input_ids_BL)
    batch, length = input_ids_BL.shape
    ids = torch.empty(batch, length + max_new_tokens, dtype=torch.long, device=input_ids_BL.device)
    ids[:, :length] = input_ids_BL
    finished_B = torch.zeros(batch, dtype=torch.bool, device=ids.device)
    caches = model.new_caches(batch, length + max_new_tokens)
    was_training = model.training
    model.eval()
    try:
        fed = 0
        for end in range(length, length + max_new_tokens):
            while fed < end:
                piece = ids[:, fed : min(end, fed + _PREFILL)]
                logits_BV = model.logits(piece, caches=caches, last_only=True)[:, -1].float()
                fed += piece.shape[1]
            token_B = _choose(logits_BV, temperature, top_p, generator)
            if eos_token_id is not None:
                token_B = torch.where(finished_B, eos_token_id, token_B)
                finished_B |= token_B == eos_token_id
            ids[:, end] = token_B
            if bool(finished_B.all()):
                return ids[:, : end + 1]
    finally:
        model.train(was_training)
    return ids


def _choose(logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    if temperature < _LOWEST_TEMPERATURE:
        return logits_BV.argmax(-1)
    probability_BV, order_BV = (logits_BV / temperature).softmax(-1).sort(-1, descending=True)
    # A token stays while the tokens likelier than it hold less than top_p; the likeliest always stays.
    beyond_BV = probability_BV.cumsum(-1) - probability_BV >= top_p
    beyond_BV[:, 0] = False
    probability_BV = probability_BV.masked_fill(beyond_BV, 0)
    pick_B1 = torch.multinomial(probability_BV, 1, generator=generator)
    return order_BV.gather(1, pick_B1)[:, 0]
