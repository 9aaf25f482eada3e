"""How the next token is chosen: transformers' definitions of the options, in its order. B batch, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cerebras_jais.errors import UserError
from cerebras_jais.ranges import COUNT_OR_NONE, PENALTY, SEED, SHARE, SIZE, TEMPERATURE, shown

if TYPE_CHECKING:
    from torch import Generator, Tensor

_FIRST_RANKED = 1024  # tokens that top_p ranks at first: all 84,992 take 16 times as long
_LOWEST_TEMPERATURE = 1e-6  # lower values overflow the logits, and the likeliest token is certain anyway
_RANGES = {
    "temperature": TEMPERATURE,
    "top_k": COUNT_OR_NONE,
    "top_p": SHARE,
    "repetition_penalty": PENALTY,
    "min_new_tokens": COUNT_OR_NONE,
    "max_new_tokens": SIZE,
}


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and where an answer ends.

    Attributes:
        temperature: divides the logits; 0, and less than 1e-6, takes the likeliest token.
        top_k: only so many of the likeliest tokens are drawn; 0 is all.
        top_p: only the likeliest tokens that together hold this probability are drawn.
        repetition_penalty: divides positive logits of tokens of the prompt and the answer, multiplies negative ones.
        min_new_tokens: no answer ends before so many.
        max_new_tokens: an answer has at most so many.
        seed: of the draws of this answer; None draws one.
        stop: the answer ends before the first of these texts.

    Raises UserError, which names the field.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    max_new_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = {name: bounds.problem(getattr(self, name)) for name, bounds in _RANGES.items()}
        if self.seed is not None:
            problems["seed"] = SEED.problem(self.seed)
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            problems["stop"] = f"must be texts of at least one character (got {shown(self.stop)})"
        for name, problem in problems.items():
            if problem is not None:
                raise UserError(f"{name}: {problem}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature < _LOWEST_TEMPERATURE


def processed_logits(
    logits_V: Tensor, sampling: Sampling, seen: Sequence[int], new_tokens: int, eos: Sequence[int]
) -> Tensor:
    """Logits as they are drawn from, float32 [V]; -inf where a token cannot come.

    The options act in transformers' order: repetition penalty, least length, temperature, top_k, top_p. For a greedy
    choice the last three do not act.

    Args:
        logits_V: of the model, float32.
        seen: tokens of the prompt and of the answer so far.
        new_tokens: how many the answer has.
        eos: tokens that end an answer.
    """
    import torch

    logits_V = logits_V.clone()
    if sampling.repetition_penalty != 1.0 and seen:
        before = torch.tensor(sorted(set(seen)), device=logits_V.device)
        old = logits_V[before]
        logits_V[before] = torch.where(old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty)
    if new_tokens < sampling.min_new_tokens:
        logits_V[list(eos)] = float("-inf")
    if sampling.is_greedy:
        return logits_V
    logits_V = logits_V / sampling.temperature
    if 0 < sampling.top_k < logits_V.shape[-1]:
        logits_V[logits_V < logits_V.topk(sampling.top_k).values[-1]] = float("-inf")
    if sampling.top_p < 1.0:
        logits_V = _most_probable(logits_V, sampling.top_p)
    return logits_V


def _most_probable(logits_V: Tensor, share: float) -> Tensor:
    """-inf but for the likeliest tokens that together hold this probability."""
    import torch

    likely_V = logits_V.softmax(-1)
    for ranked in (min(_FIRST_RANKED, len(logits_V)), len(logits_V)):
        descending_K, order_K = likely_V.topk(ranked)
        before_K = descending_K.cumsum(-1) - descending_K
        if ranked == len(logits_V) or before_K[-1] >= share:
            break
    kept_K = before_K < share
    kept_K[0] = True
    kept = order_K[kept_K]
    return torch.full_like(logits_V, float("-inf")).index_copy_(0, kept, logits_V[kept])


def choose(
    logits_V: Tensor,
    sampling: Sampling,
    seen: Sequence[int],
    new_tokens: int,
    eos: Sequence[int],
    generator: Generator,
) -> int:
    """The next token of one answer; the arguments are those of `processed_logits`."""
    unchanged = sampling.repetition_penalty == 1.0 and new_tokens >= sampling.min_new_tokens
    if not (sampling.is_greedy and unchanged):
        logits_V = processed_logits(logits_V, sampling, seen, new_tokens, eos)
    if sampling.is_greedy:
        return int(logits_V.argmax())
    likely_V = logits_V.softmax(-1).cpu()
    possible_K = likely_V.nonzero()[:, 0]  # a draw from all 84,992 takes longer than the rest of the choice
    return int(possible_K[likely_V[possible_K].multinomial(1, generator=generator)])
