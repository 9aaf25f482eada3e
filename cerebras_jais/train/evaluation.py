"""The model as the trainer runs it: its training loss, and its loss and accuracy on held-out data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cerebras_jais.model.config import LOGITS_AT_ONCE
from cerebras_jais.model.decoder import LanguageModel


@dataclass(frozen=True)
class Evaluation:
    """Held-out loss in nats per token, weighted by the loss mask, and the share of tokens predicted right."""

    loss: float
    accuracy: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


class TrainedModel(nn.Module):
    """A LanguageModel behind one `forward`, so that whatever wraps it for several processes sees every pass.

    B batch, L length, M hidden, N tokens, V vocabulary.
    """

    def __init__(self, language_model: LanguageModel):
        super().__init__()
        self.language_model = language_model

    def forward(self, batch: Mapping[str, Tensor], evaluate: bool = False) -> Tensor:
        """The training loss, a scalar; with `evaluate` float64 [3]: sum of losses in nats, tokens right, tokens."""
        if evaluate:
            return self._evaluate_batch(batch)
        loss: Tensor = self.language_model(batch)
        return loss

    def _evaluate_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        lm = self.language_model
        x_BLM = lm.model(batch["input_ids"], batch.get("attention_span"), batch.get("position_ids"))
        x_NM = x_BLM.reshape(-1, x_BLM.shape[-1])
        labels_N = batch["labels"].reshape(-1).long()
        weights_N = batch["attention_mask"].reshape(-1).to(torch.float64)
        total = torch.zeros(3, dtype=torch.float64, device=x_NM.device)
        rows = max(1, LOGITS_AT_ONCE // lm.config.vocab_size)
        for start in range(0, len(x_NM), rows):
            part = slice(start, start + rows)
            logits = (lm.model.lm_head(x_NM[part]) * lm.config.logits_scale).float()
            losses = nn.functional.cross_entropy(logits, labels_N[part], reduction="none").double()
            right = (logits.argmax(-1) == labels_N[part]).double()
            weights = weights_N[part]
            total += torch.stack([(losses * weights).sum(), (right * weights).sum(), weights.sum()])
        return total


def evaluation_of(total: Tensor) -> Evaluation:
    """The evaluation from summed results of `TrainedModel(..., evaluate=True)`."""
    loss, right, tokens = total.tolist()
    if not tokens:
        return Evaluation(math.nan, math.nan, 0)
    return Evaluation(loss / tokens, right / tokens, round(tokens))
