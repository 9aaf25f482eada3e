"""A model as the server needs it, and the one that answers by the reference path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Generator, Tensor

    from cerebras_jais.model.decoder import LanguageModel


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen, and where an answer ends.

    Attributes:
        temperature: divides logits; 0 takes the likeliest token.
        top_k: of the likeliest tokens so many are left; 0 for all.
        top_p: of the likeliest tokens those that together hold this probability are left.
        repetition_penalty: of tokens that were there: their positive logits are divided by it, others multiplied.
        min_new_tokens: before which the end of text is not chosen.
        max_new_tokens: at most.
        seed: of the draws.
        stop: texts before the first of which the answer ends.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    max_new_tokens: int = 16
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of an answer: text, the tokens since the last part, and why the answer ends there ("stop", "length")."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str | None = None


class Model(Protocol):
    """What the server asks; `stream` is called by one thread at a time, the rest by any.

    Attributes:
        name: under which clients ask for it.
        context: tokens that it was trained with.
        extrapolates: whether a prompt may be longer than that: ALiBi allows it, rotary positions do not.
        vocabulary: its size.
        is_chat: whether it answers messages.
        sampling: what holds where a request says nothing.
    """

    name: str
    context: int
    extrapolates: bool
    vocabulary: int
    is_chat: bool
    sampling: Sampling

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, at least one."""

    def chat_ids(self, messages: Sequence[tuple[str, str]], language: str | None) -> list[int]:
        """The prompt of a conversation of (role, content), without markers of roles in its texts."""

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling, cancelled: Callable[[], bool]) -> Iterator[Piece]:
        """The answer, part by part; it ends early once `cancelled` gives true."""


class ReferenceModel:
    """Answers with the reference path, one token at a time.

    Args:
        name: of the model.
        model: in eval mode.
        tokenizer: of the model.
        eos: its end of text.
        is_chat: whether it was tuned on conversations.
    """

    def __init__(self, name: str, model: LanguageModel, tokenizer: Tokenizer, eos: int, *, is_chat: bool) -> None:
        from cerebras_jais.catalog.chat import SAMPLING

        self.name, self.is_chat = name, is_chat
        self.context, self.vocabulary = model.config.max_position_embeddings, model.config.vocab_size
        self.extrapolates = model.config.position_embedding_type == "alibi"
        self.sampling = Sampling()
        if is_chat:
            self.sampling = Sampling(SAMPLING["temperature"], 0, SAMPLING["top_p"], SAMPLING["repetition_penalty"])
        self._model, self._tokenizer, self._eos = model, tokenizer, eos

    def encode(self, text: str) -> list[int]:
        from cerebras_jais.encoding import encode_texts

        return [*encode_texts(self._tokenizer, [text])[0]] or [self._eos]

    def chat_ids(self, messages: Sequence[tuple[str, str]], language: str | None) -> list[int]:
        from cerebras_jais.data.chat.prompts import Message, prompt_language, render

        turns = [Message(*message) for message in messages]
        prompt = render(
            [*turns, Message("assistant", "")], language or prompt_language(turns), self._tokenizer.normalizer
        )
        return self.encode(prompt.text.rstrip())

    def stream(self, prompt_ids: Sequence[int], sampling: Sampling, cancelled: Callable[[], bool]) -> Iterator[Piece]:
        said, sent, ids, new = "", 0, [], []
        for token in self._tokens(prompt_ids, sampling, cancelled):
            new.append(token)
            ids.append(token)
            if token == self._eos:
                break
            said = self._text(prompt_ids, ids)
            stops = [place for stop in sampling.stop if (place := said.find(stop)) >= 0]
            if stops:
                yield Piece(said[sent : min(stops)], tuple(new), "stop")
                return
            safe = _safe_length(said, sampling.stop)
            if safe > sent:
                yield Piece(said[sent:safe], tuple(new))
                sent, new = safe, []
        if not cancelled():
            yield Piece(said[sent:], tuple(new), "stop" if ids and ids[-1] == self._eos else "length")

    def _text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        before = self._tokenizer.decode([prompt_ids[-1]])
        return self._tokenizer.decode([prompt_ids[-1], *ids])[len(before) :]

    def _tokens(self, prompt_ids: Sequence[int], sampling: Sampling, cancelled: Callable[[], bool]) -> Iterator[int]:
        import torch

        generator = torch.Generator().manual_seed(sampling.seed)
        with torch.inference_mode():
            ids = torch.tensor([[*prompt_ids]])
            caches = self._model.new_caches(1, len(prompt_ids) + sampling.max_new_tokens)
            parts = [ids[:, begin : begin + 128] for begin in range(0, ids.shape[1], 128)]
            for number in range(sampling.max_new_tokens):
                for part in parts:
                    if cancelled():
                        return
                    logits_V = self._model.logits(part, caches=caches, last_only=True)[0, -1].float()
                seen = torch.tensor(sorted(set(ids[0].tolist())))
                if sampling.repetition_penalty != 1:
                    old = logits_V[seen]
                    penalty = sampling.repetition_penalty
                    logits_V[seen] = torch.where(old > 0, old / penalty, old * penalty)
                if number < sampling.min_new_tokens:
                    logits_V[self._eos] = float("-inf")
                token = _choose(logits_V, sampling, generator)
                parts = [torch.tensor([[token]])]
                ids = torch.cat([ids, parts[0]], dim=1)
                yield token


def _choose(logits_V: Tensor, sampling: Sampling, generator: Generator) -> int:
    if sampling.temperature < 1e-6:
        return int(logits_V.argmax())
    probability_V, order_V = (logits_V / sampling.temperature).softmax(-1).sort(descending=True)
    beyond_V = probability_V.cumsum(-1) - probability_V >= sampling.top_p
    beyond_V[0] = False
    if sampling.top_k:
        beyond_V[sampling.top_k :] = True
    return int(order_V[probability_V.masked_fill(beyond_V, 0).multinomial(1, generator=generator)])


def _safe_length(text: str, stops: Sequence[str]) -> int:
    """How much of a text no later token changes: without half a character, and what may become a stop string."""
    text = text.rstrip("\ufffd")
    held = [size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size])]
    return len(text) - max(held, default=0)
