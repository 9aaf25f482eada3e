"""The engine: a model with its tokenizer that answers prompts, one or several at a time, token by token.

One thread uses an engine at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from cerebras_jais.catalog.chat import SAMPLING
from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.chat.checks import check_memory, check_tokenizer
from cerebras_jais.chat.detokenize import Detokenizer, StopStrings, TokenBytes, token_bytes
from cerebras_jais.chat.forward import Cache, Forward
from cerebras_jais.chat.prompts import chat_prompt, release_template
from cerebras_jais.chat.sampling import Sampling, choose
from cerebras_jais.chat.weights import Weights, check_weights
from cerebras_jais.data.tokenizer import end_of_text_id, load_tokenizer, vocabulary_size
from cerebras_jais.encoding import encode_texts
from cerebras_jais.errors import UserError
from cerebras_jais.model.load import load_model
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import GENERATION_CONFIG, TOKENIZER
from checkpoint_convert.load import load_release
from checkpoint_convert.open_model import opening

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]
_ROUNDED_TO = 256  # tokens; a cache has some room for the next prompt


def never() -> bool:
    """No answer is cancelled."""
    return False


@dataclass(frozen=True)
class Piece:
    """A part of an answer: its text, the tokens since the last part, and in the last part why the answer ends.

    The end-of-text token is among the tokens. Tokens behind a stop string in the last token's text are not cut off.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer; the joined pieces of its stream."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        """Number of tokens of the answer."""
        return len(self.token_ids)


@dataclass
class _Row:
    """One answer under way."""

    prompt: list[int]
    sampling: Sampling
    detokenizer: Detokenizer
    stops: StopStrings
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    finished: FinishReason | None = None

    def take(self, token: int, eos: Sequence[int]) -> Piece:
        """The piece that a further token makes."""
        self.ids.append(token)
        ends = token in eos
        text = self.stops.add("" if ends else self.detokenizer.add(token))
        if ends or self.stops.stopped:
            self.finished = "stop"
        elif len(self.ids) >= self.sampling.max_new_tokens:
            self.finished = "length"
        if self.finished and not self.stops.stopped:
            text += self.stops.add(self.detokenizer.end())
            if self.stops.stopped:
                self.finished = "stop"
            text += self.stops.end()
        return Piece(text, (token,), self.finished)


class Engine:
    """A model with its tokenizer.

    Attributes:
        name: of the file or folder it was read from.
        forward: the model itself.
        template: the chat template of its own, in Jinja; None is the catalog's.
        tokenizer: it reads text as data.
        context: tokens that the model was trained with.
        positions: "alibi" or "rotary"; a prompt may be longer than the context with ALiBi alone.
        is_chat: whether the model is tuned on conversations.
        eos: ids that end an answer.
        chat_sampling: how the model answers messages where nothing else is said.
        vocabulary: number of token ids.
    """

    def __init__(
        self,
        name: str,
        forward: Forward,
        tokenizer: Tokenizer,
        eos: tuple[int, ...],
        *,
        is_chat: bool = False,
        template: str | None = None,
        before: tuple[int, ...] = (),
        chat_sampling: Sampling | None = None,
    ) -> None:
        config = forward.config
        if vocabulary_size(tokenizer) > config.vocab_size:
            raise UserError(
                f"{name}: has a vocabulary of {config.vocab_size}, and the tokenizer {vocabulary_size(tokenizer)} ids: "
                "the tokenizer does not belong to this model; give the model's own"
            )
        self.name, self.tokenizer, self.eos, self.is_chat = name, tokenizer, eos, is_chat
        self.context, self.vocabulary = config.max_position_embeddings, config.vocab_size
        self.positions = config.position_embedding_type
        self.chat_sampling = chat_sampling or card_sampling({})
        self.forward, self.template, self._before = forward, template, before
        self._table: TokenBytes = token_bytes(tokenizer)
        # Of the last prompt: its tokens, and where their keys and values are (cache, row, column of the first).
        self._last: tuple[list[int], Cache, int, int] | None = None

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt, at least one; special tokens written in the text are text."""
        return [*self._before, *encode_texts(self.tokenizer, [text])[0]] or [self.eos[0]]

    def check_chats(self) -> None:
        """Raise UserError for a base model."""
        if not self.is_chat:
            raise UserError(
                f"{self.name}: is a base model, which continues text; to chat give one tuned on conversations"
            )

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], language: str | None = None) -> list[int]:
        """The prompt of a conversation; raises UserError as `check_chats` and `chat_prompt` do."""
        return self.encode(self.chat_text(messages, language))

    def chat_text(self, messages: Sequence[Mapping[str, Any]], language: str | None = None) -> str:
        """The text of that prompt, which the answer follows."""
        self.check_chats()
        return chat_prompt(messages, language, template=self.template, normalizer=self.tokenizer.normalizer)

    def forget(self) -> None:
        """Give up the keys and values of the last prompt, so that the next answer is what a new engine gives."""
        self._last = None

    def note_on(self, prompt_tokens: int) -> str | None:
        """A line on a prompt that is longer than the context, None where it is not.

        Raises UserError where the model cannot read one: rotary positions are known up to the context alone.
        """
        if prompt_tokens <= self.context:
            return None
        if self.positions == "rotary":
            raise UserError(
                f"the prompt has {prompt_tokens:,} tokens, and {self.name} was trained with {self.context:,}, beyond "
                "which its rotary positions are unknown; shorten it"
            )
        return (
            f"the prompt has {prompt_tokens:,} tokens, more than the {self.context:,} that {self.name} was trained "
            "with; ALiBi reads on, with less certainty"
        )

    def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, cancelled: Callable[[], bool] = never
    ) -> Iterator[Piece]:
        """The answer to one prompt, a piece to a token; a cancelled one ends with the reason "cancelled"."""
        for pieces in self.stream_batch([prompt_ids], [sampling], lambda row: cancelled()):
            yield from (piece for piece in pieces if piece is not None)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        cancelled: Callable[[], bool] = never,
    ) -> list[Completion]:
        """The answers to several prompts, made as one batch; the lengths may differ."""
        found: list[list[Piece]] = [[] for _ in prompts]
        for pieces in self.stream_batch(prompts, samplings, lambda row: cancelled()):
            for row, piece in enumerate(pieces):
                if piece is not None:
                    found[row].append(piece)
        return [
            Completion(
                "".join(piece.text for piece in pieces),
                tuple(token for piece in pieces for token in piece.token_ids),
                pieces[-1].finish_reason or "cancelled",
                len(prompt),
            )
            for prompt, pieces in zip(prompts, found, strict=True)
        ]

    @torch.inference_mode()
    def _prefill(self, rows: list[_Row], cache: Cache, starts: list[int], stopped: Callable[[int], bool]) -> list[Any]:
        """Logits of the last token of each prompt; None where cancelled."""
        found = []
        for number, row in enumerate(rows):
            shared = 0
            if self._last is not None:
                ids, source, source_row, source_start = self._last
                longest = min(len(ids), len(row.prompt) - 1)
                shared = next((n for n in range(longest) if ids[n] != row.prompt[n]), longest)
                if (source, source_row, source_start) != (cache, number, starts[number]):
                    cache.copy(number, starts[number], source, source_row, source_start, shared)
            self._last = None
            logits_V = self.forward.prefill(row.prompt, shared, cache, number, starts[number], partial(stopped, number))
            if logits_V is not None:
                self._last = (list(row.prompt), cache, number, starts[number])
            found.append(logits_V)
        return found

    @torch.inference_mode()
    def _step(self, rows: list[_Row], cache: Cache, starts: list[int], column: int) -> Any:
        return self.forward.step([row.ids[-1] for row in rows], cache, starts, column)

    @torch.inference_mode()
    def _choose(self, logits_V: Any, row: _Row) -> int:
        return choose(logits_V, row.sampling, row.prompt + row.ids, len(row.ids), self.eos, row.generator)

    def stream_batch(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        cancelled: Callable[[int], bool] = lambda row: False,
    ) -> Iterator[list[Piece | None]]:
        """The answers to several prompts as one batch: at each step the piece of each row, None for one that ended.

        The prompts are padded on the left, so that all rows write the same column of the cache; ALiBi counts distances
        and rotary positions are counted from the first token, so padding changes nothing.

        Args:
            cancelled: whether the row of this number is to end; asked before each step.

        Raises UserError for a token outside the vocabulary, and as `note_on` does.
        """
        rows = [self._row(prompt, sampling) for prompt, sampling in zip(prompts, samplings, strict=True)]
        if not rows:
            return
        longest = max(len(row.prompt) for row in rows)
        needed = longest + max(row.sampling.max_new_tokens for row in rows)
        starts = [longest - len(row.prompt) for row in rows]
        cache = self._cache_for(len(rows), needed)
        logits = self._prefill(rows, cache, starts, cancelled)
        column = longest
        while True:
            pieces: list[Piece | None] = []
            for number, row in enumerate(rows):
                if row.finished is not None:
                    pieces.append(None)
                elif logits[number] is None or cancelled(number):
                    row.finished = "cancelled"
                    pieces.append(Piece(row.stops.end(), (), "cancelled"))
                else:
                    pieces.append(row.take(self._choose(logits[number], row), self.eos))
            yield pieces
            if all(row.finished for row in rows):
                return
            logits = self._step(rows, cache, starts, column)
            if len(rows) == 1 and self._last is not None:
                self._last[0].append(rows[0].ids[-1])
            column += 1

    def _row(self, prompt: Sequence[int], sampling: Sampling) -> _Row:
        ids = list(prompt)
        if not ids:
            raise UserError("a prompt has no tokens; give at least one")
        wrong = next((token for token in ids if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            raise UserError(f"token id {wrong} is outside the vocabulary of {self.vocabulary}")
        self.note_on(len(ids))
        if self.positions == "rotary":  # known up to the context, for the answer's tokens too
            most = min(sampling.max_new_tokens, max(1, self.context - len(ids)))
            sampling = replace(sampling, max_new_tokens=most)
        generator = torch.Generator()
        generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
        return _Row(ids, sampling, Detokenizer(self._table), StopStrings(sampling.stop), generator)

    def _cache_for(self, batch: int, tokens: int) -> Cache:
        """The cache of the last prompt where it is large enough, for its prefix; otherwise a new one."""
        if batch == 1 and self._last is not None:
            _, cache, row, start = self._last
            if row == start == 0 and cache.batch == 1 and cache.capacity >= tokens:
                return cache
        return self.forward.new_cache(batch, -(-tokens // _ROUNDED_TO) * _ROUNDED_TO)


def open_engine(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    config: str | Path | None = None,
    weights: Weights = "float32",
    device: str = "cpu",
    allow_pickle: bool = False,
) -> Engine:
    """Open a checkpoint (.mdl) or a Hugging Face release for generation; none of a release's code is run.

    Args:
        tokenizer: its folder; a release brings its own.
        config: trainer YAML, where a checkpoint does not record it.
        weights: element type of the matrices (`WEIGHTS`).
        device: as torch names it.
        allow_pickle: whether weights in pickle files may be read.

    Raises UserError for what cannot be read, does not fit together, or does not fit into memory.
    """
    path = Path(path)
    folder = tokenizer_of(path, Path(tokenizer) if tokenizer is not None else None)
    if config is not None and path.is_dir():
        raise UserError(f"{config}: a release is read by its own config.json; leave --config out")
    check_device(device)
    check_weights(weights, torch.device(device))
    encoder = load_tokenizer(folder)
    with opening(path, config=Path(config) if config else None, allow_pickle=allow_pickle) as model:
        known, is_chat = model.config, model.is_chat
    read_as = torch.bfloat16 if weights == "bfloat16" else torch.float32  # int4 is rounded from float32
    check_tokenizer(encoder, folder, path, known)
    check_memory(path, known, read_as)
    loaded = (
        load_release(path, allow_pickle=allow_pickle, dtype=read_as)
        if path.is_dir()
        else load_model(path, read_trainer_yaml(Path(config))[-1].init.model if config else None, read_as)
    )
    eos: tuple[int, ...] = (end_of_text_id(encoder, folder),)
    sampling: dict[str, Any] = {}
    if path.is_dir() and (path / GENERATION_CONFIG).is_file():
        said = read_json(path / GENERATION_CONFIG)
        sampling = said
        found = said.get("eos_token_id")
        more = found if isinstance(found, list) else [found]
        eos = tuple(dict.fromkeys((*eos, *(token for token in more if type(token) is int))))
    return Engine(
        Path(os.path.abspath(path)).name,  # of `.` too, and of a link its own
        Forward(loaded.to(device=torch.device(device)), weights),
        encoder,
        eos,
        is_chat=is_chat,
        template=release_template(folder) if is_chat else None,
        chat_sampling=card_sampling(sampling),
    )


def check_device(device: str) -> None:
    """Raise UserError for a device that torch does not have here, or that holds no numbers, such as meta."""
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # as torch says that it has no such device, or was built without
        raise UserError(f"device {device!r}: cannot be used ({str(error).splitlines()[0]}); give cpu") from error


def tokenizer_of(path: Path, given: Path | None) -> Path:
    """The folder of the tokenizer: the one given, or the release itself."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; give a checkpoint (.mdl) or a release")
    if given is not None:
        return given
    if not path.is_dir():
        raise UserError(f"{path}: a checkpoint has no tokenizer in it; give its folder with --tokenizer")
    if not (path / TOKENIZER).is_file():
        raise UserError(f"{path}: has no {TOKENIZER}; give the folder of one with --tokenizer")
    return path


def card_sampling(generation_config: Mapping[str, Any]) -> Sampling:
    """How a chat model samples: as its generation_config.json says, else as the card of the family."""
    said = {**SAMPLING, **generation_config}
    if not said.get("do_sample", True):
        return Sampling()
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    return Sampling(**{name: said[name] for name in names if said.get(name) is not None})
