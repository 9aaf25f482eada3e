"""Answers to the prompts of a file, recorded as they are made, so that a run which was ended goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from cerebras_jais.chat.engine import Engine
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.endpoint.record import open_record
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, check_regular, parse_json, shown_path

_LONGEST_LINE = 16 * MIB
_AT_ONCE = 8  # prompts; one reading of the weights serves them all


@dataclass(frozen=True)
class Prompt:
    """A line of the file: its number from 1 on, what it holds, and its tokens."""

    line: int
    entry: dict[str, Any]
    ids: list[int]


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
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    output: Path,
    progress: Callable[[Sequence[Prompt], int], Iterable[Prompt]],
) -> int:
    """Append an answer to `output` for each prompt that has none there, in their order; return how many were made.

    An answer belongs to the model's name, its prompt's line and tokens, and the sampling, whose seed the line's number
    is added to. An entry has the line's own keys, `answer`, `finish_reason`, `prompt_tokens` and `completion_tokens`.
    """
    with open_record(output) as record:
        seeded = {prompt.line: replace(sampling, seed=(sampling.seed or 0) + prompt.line) for prompt in prompts}
        keys = {prompt.line: _key(engine, prompt, seeded[prompt.line]) for prompt in prompts}
        left = [prompt for prompt in prompts if keys[prompt.line] not in record]
        for group in _groups(progress(left, len(prompts))):
            done = engine.complete([prompt.ids for prompt in group], [seeded[prompt.line] for prompt in group])
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


def _key(engine: Engine, prompt: Prompt, sampling: Sampling) -> str:
    asked = [engine.name, prompt.line, prompt.ids, asdict(sampling)]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
