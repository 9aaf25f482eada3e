"""Answers to the prompts of a file, recorded as they are made, so that a run which was ended goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from cerebras_jais.chat.engine import Completion, Engine
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.endpoint.record import open_record
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, Identity, check_regular, identity_of, parse_json, shown_path
from checkpoint_convert.formats.release_directory import TOKENIZER

_LONGEST_LINE = 16 * MIB
_AT_ONCE = 8  # prompts; one reading of the weights serves them all


@dataclass(frozen=True)
class Prompt:
    """A line of the file: its number from 1 on, what it holds, and its tokens."""

    line: int
    entry: dict[str, Any]
    ids: list[int]


class Completes(Protocol):
    """What answers prompts, such as an engine."""

    @property
    def complete(self) -> Callable[[Sequence[Sequence[int]], Sequence[Sampling]], list[Completion]]:
        """The answers to prompts, each by its sampling, in their order."""


def identity_of_model(path: Path, *, tokenizer: Path | None, config: Path | None) -> list[tuple[str, *Identity]]:
    """Of a checkpoint or each file of a release, and of what is given with it: name, and what changes with a write.

    Args:
        tokenizer: the folder that is given with it, if any; config: the trainer YAML.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    given = (tokenizer / TOKENIZER if tokenizer is not None else None, config)
    return [(file.name, *identity_of(file)) for file in (*files, *given) if file is not None]


def read_prompts(file: Path, engine: Engine, *, as_chat: bool, language: str | None) -> list[Prompt]:
    """Read JSON lines with `prompt`, a text, or `messages`, a conversation, which only `as_chat` takes.

    A line may have a `language`; `language` is that of the others. Raises UserError, which names the line.
    """
    check_regular(file)
    found = []
    with file.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(_LONGEST_LINE + 1), b""), 1):
            where = f"{shown_path(file)}:{number}"
            if len(line) > _LONGEST_LINE:
                raise UserError(f"{where}: is longer than {_LONGEST_LINE // MIB} MiB; shorten the prompt")
            if not line.strip():
                continue
            try:
                entry = parse_json(line.decode("utf-8"), where)
            except UnicodeDecodeError:
                raise UserError(f"{where}: is not UTF-8; convert the file") from None
            found.append(Prompt(number, entry, _ids(entry, engine, where, as_chat, language)))
    if not found:
        raise UserError(f'{shown_path(file)}: has no prompts; give lines such as {{"prompt": "..."}}')
    return found


def _ids(entry: Any, engine: Engine, where: str, as_chat: bool, language: str | None) -> list[int]:
    if not isinstance(entry, dict) or ("prompt" in entry) == ("messages" in entry):
        raise UserError(f"{where}: must be an object with either `prompt` or `messages`")
    if "messages" in entry and not as_chat:
        raise UserError(f"{where}: has messages, which only a chat template makes a prompt of; give --chat")
    if "prompt" in entry and not isinstance(entry["prompt"], str):
        raise UserError(f"{where}: `prompt` must be a text")
    try:
        if not as_chat:
            ids = engine.encode(entry["prompt"])
        else:
            messages = entry.get("messages") or [{"role": "user", "content": entry["prompt"]}]
            ids = engine.chat_ids(messages, entry.get("language", language))
        engine.note_on(len(ids))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return ids


def answer_all(
    engine: Completes,
    model: object,
    prompts: Sequence[Prompt],
    samplings: Sequence[Sampling],
    output: Path,
    progress: Callable[[Sequence[Prompt], int], Iterable[Prompt]],
) -> int:
    """Append an answer to `output` for each prompt that has none there, in their order; return how many were made.

    An answer belongs to its model (JSON values that change when its files do), the prompt's line and tokens, and its
    sampling, whose seed the line's number is added to. An entry has the line's own keys, `answer`, `finish_reason`,
    `prompt_tokens` and `completion_tokens`.
    """
    with open_record(output) as record:
        sampling_of = {prompt.line: sampling for prompt, sampling in zip(prompts, samplings, strict=True)}
        keys = {prompt.line: key_of(model, prompt, sampling_of[prompt.line]) for prompt in prompts}
        left = [prompt for prompt in prompts if keys[prompt.line] not in record]
        for group in _groups(progress(left, len(prompts))):
            done = engine.complete(
                [prompt.ids for prompt in group], [_seeded(sampling_of[prompt.line], prompt) for prompt in group]
            )
            for prompt, completion in zip(group, done, strict=True):
                made = {
                    "answer": completion.text,
                    "finish_reason": completion.finish_reason,
                    "prompt_tokens": completion.prompt_tokens,
                    "completion_tokens": completion.completion_tokens,
                }
                record.add(keys[prompt.line], {**{k: v for k, v in prompt.entry.items() if k != "key"}, **made})
        return len(left)


def _groups(prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
    left = iter(prompts)
    while group := list(islice(left, _AT_ONCE)):
        yield group


def _seeded(sampling: Sampling, prompt: Prompt) -> Sampling:
    return replace(sampling, seed=(sampling.seed or 0) + prompt.line)


def key_of(model: object, prompt: Prompt, sampling: Sampling) -> str:
    """What an answer is known by in the record."""
    asked = [model, prompt.line, prompt.ids, asdict(_seeded(sampling, prompt))]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
