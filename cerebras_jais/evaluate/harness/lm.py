"""A model of the family as lm_eval's interface wants one; answers are recorded as they are made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.chat.engine import Engine
from cerebras_jais.chat.forward import Forward
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.encoding import encode_texts, explained
from cerebras_jais.endpoint.record import Record
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.scoring.processes import log_probabilities_of_processes
from cerebras_jais.evaluate.scoring.scorer import BATCH_TOKENS, Likelihood, likelihoods, score_requests
from cerebras_jais.evaluate.scoring.tree import Request
from cerebras_jais.model.tensors import parameter_count
from checkpoint_convert.formats.release_directory import TOKENIZER

T = TypeVar("T")
Progress = Callable[[Iterable[T], int, int, str], Iterable[T]]
"""Of work as it is done: the items, how many were done before, how many there are, and what they are."""
_LONGEST_ANSWER = 256  # tokens, where a task does not say; lm_eval's own default
_ANSWERS_AT_ONCE = 8
_UNTIL_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm_eval's order


def no_progress(items: Iterable[T], done: int, total: int, what: str) -> Iterable[T]:
    """Show nothing."""
    return items


def tokens_before(folder: Path) -> list[int]:
    """The ids that the tokenizer.json of a folder has put before a text, such as Llama's <s>."""
    from tokenizers import Tokenizer

    with explained(str(folder / TOKENIZER)):
        ids: list[int] = Tokenizer.from_file(str(folder / TOKENIZER)).encode("").ids
    return ids


class JaisLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model whose likelihoods are those of lm_eval's `hf` backend for its release, and whose record answers again.

    Args:
        engine: the model with its tokenizer.
        record: where each answer is added, and found if it was asked before.
        model: of the record: what changes when the model's files do.
        before: ids that its tokenizer puts before a text; the first stands for an empty context.
        chat: whether prompts are made by the chat template. An option then follows the prompt with a space, as the
            answers that chat models are tuned on do; lm_eval leaves it out.
        processes: how many score options, this one included.
        open_forward: opens the model of another of them, by its number.
        processes: how many score, this one included; `open_forward` opens the model of another by its number.
    """

    def __init__(
        self,
        engine: Engine,
        record: Record,
        model: str,
        *,
        before: Sequence[int] = (),
        chat: bool = False,
        batch_tokens: int = BATCH_TOKENS,
        progress: Progress[Any] = no_progress,
        processes: int = 1,
        open_forward: Callable[[int], Forward] | None = None,
    ) -> None:
        super().__init__()
        self.engine, self.record, self.model, self.chat = engine, record, model, chat
        self.before, self.batch_tokens, self.progress = list(before), batch_tokens, progress
        self.max_length = engine.context
        self.processes, self.open_forward = processes, open_forward

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.engine.eos[0]

    @property
    def prefix_token_id(self) -> int:
        """The token that an empty context becomes."""
        return self.before[0] if self.before else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """Of lm_eval's own caches, which are not used."""
        return self.engine.name

    def chat_template(self, wanted: bool | str = False) -> str:
        """The text of the template that prompts are made by, "" for none."""
        return self.engine.template or chat_template() if wanted else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation."""
        if not add_generation_prompt:
            raise UserError("a task begins the answer itself (gen_prefix), which --chat-template has no place for")
        return self.engine.chat_text(chat_history)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text; a special token that is written in it is text."""
        (ids,) = encode_texts(self.engine.tokenizer, [string])
        return ids if add_special_tokens is False else [*self.before, *ids]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each pair of a context and a continuation: ln p of the continuation, and whether it is the likeliest."""
        if self.chat:
            requests = [_with_space(request) for request in requests]
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = []
        for _pair, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation has {len(continuation):,} tokens, more than the {self.max_length:,} that "
                    f"{self.engine.name} reads; leave the task out"
                )
            tokens = tuple((context + continuation)[-(self.max_length + 1) :])
            asked.append(Request(tokens, len(continuation)))
        return [(likelihood.log_likelihood, likelihood.is_greedy) for likelihood in self._likelihoods(asked)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """ln p of each text, in disjoint windows of the model's length, each with one token of context."""
        asked, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, windows):
                asked.append(Request((*context, *continuation), len(continuation)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, likelihood in zip(owners, self._likelihoods(asked), strict=True):
            totals[owner] += likelihood.log_likelihood
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The likeliest continuation of each context, up to the first of its stop texts."""
        asked = [self._question(*request.args) for request in requests]
        keys = [self._key("generate", ids, sampling.max_new_tokens, *sampling.stop) for ids, sampling in asked]
        # Groups do not depend on what is answered: what an answer is to the last bit depends on its group.
        order = sorted(range(len(asked)), key=lambda number: (len(asked[number][0]), asked[number][0]))
        groups = [order[start : start + _ANSWERS_AT_ONCE] for start in range(0, len(order), _ANSWERS_AT_ONCE)]
        left = [group for group in groups if any(keys[number] not in self.record for number in group)]
        for group in self.progress(left, len(groups) - len(left), len(groups), "answers, eight each"):
            self.engine.forget()
            prompts, samplings = zip(*(asked[number] for number in group), strict=True)
            for number, done in zip(group, self.engine.complete(prompts, samplings), strict=True):
                if keys[number] not in self.record:
                    self.record.add(keys[number], {"text": done.text, "finish_reason": done.finish_reason})
        return [str(self.record[key]["text"]) for key in keys]

    def get_model_info(self) -> dict[str, Any]:
        """What lm_eval writes into the `config` of results."""
        config = self.engine.forward.config
        return {
            "model_hash": self.model,
            "model_num_parameters": parameter_count(config),
            "model_dtype": self.engine.forward.weights,
            "max_length": self.max_length,
            "positions": config.position_embedding_type,
            "chat_template_applied": self.chat,
        }

    def _question(self, context: str, settings: dict[str, Any]) -> tuple[list[int], Sampling]:
        if settings.get("do_sample") or settings.get("temperature"):
            raise UserError("a task wants sampled answers; only the likeliest are made here; leave it out")
        until = settings.get("until") or []
        stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
        longest = next((int(settings[name]) for name in _UNTIL_LENGTHS if settings.get(name)), _LONGEST_ANSWER)
        if longest >= self.max_length:
            raise UserError(
                f"a task wants answers of up to {longest} tokens, and {self.engine.name} reads {self.max_length} in "
                "all; leave the task out"
            )
        ids = self.tok_encode(context)[-(self.max_length - longest) :]
        return ids or [self.prefix_token_id], Sampling(max_new_tokens=longest, stop=stop)

    def _likelihoods(self, asked: Sequence[Request]) -> list[Likelihood]:
        keys = [self._key("score", request.tokens, request.predicted) for request in asked]
        answered = {number for number, key in enumerate(keys) if key in self.record}
        if self.open_forward is None or self.processes == 1 or len(answered) == len(asked):
            work = score_requests(self.engine.forward, asked, answered, batch_tokens=self.batch_tokens)
        else:
            scored = log_probabilities_of_processes(
                self.engine.forward,
                self.open_forward,
                asked,
                answered,
                self.processes,
                batch_tokens=self.batch_tokens,
            )
            work = likelihoods(asked, answered, scored)
        for number, likelihood in self.progress(work, len(answered), len(asked), "options"):
            if keys[number] not in self.record:  # two tasks may ask the same
                self.record.add(keys[number], likelihood._asdict())
        found = (self.record[key] for key in keys)
        return [Likelihood(entry["log_likelihood"], entry["is_greedy"]) for entry in found]

    def _key(self, *asked: Any) -> str:
        forward = self.engine.forward
        return hashlib.sha256(
            json.dumps([self.model, forward.weights, forward.device.type, *asked]).encode()
        ).hexdigest()


def _with_space(request: Instance) -> Instance:
    context, continuation = request.args
    if continuation[:1].isspace():
        return request
    return Instance(request.request_type, request.doc, (context, f" {continuation}"), request.idx, request.metadata)
