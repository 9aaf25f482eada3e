"""What the body of a request asks for, checked key by key.

Keys that change the answer and that this server does not have are refused; keys that it does not know are passed over,
as other servers of this interface do. Source of the names: OpenAI's API reference; `top_k`, `repetition_penalty` and
`min_tokens` are named as in vLLM; `language` is of this server alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cerebras_jais.errors import UserError
from cerebras_jais.files import parse_json
from cerebras_jais.ranges import COUNT_OR_NONE, PENALTY, SEED, SHARE, SIZE, TEMPERATURE, Range, shown
from cerebras_jais.serve.http11 import HttpError

LANGUAGES = ("ar", "en")
MOST_STOPS, LONGEST_STOP = 4, 256  # strings, characters
MOST_PROMPTS = 16
_MOST_MESSAGES = 1000
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What a key may hold where the server does not have what it asks for: nothing, or what changes nothing.
_NOT_HERE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
}
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Options:
    """How a request is to be answered; None where it does not say.

    Attributes:
        model: the name that it asks for.
        max_tokens: tokens of an answer at most.
        stream: whether the answer is sent as it is written.
        include_usage: whether a streamed answer ends with its counts.
    """

    model: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    min_tokens: int | None
    max_tokens: int | None
    seed: int | None
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


@dataclass(frozen=True)
class Chat:
    """A chat completion: messages as (role, content), the last one the user's; their language, where it is given."""

    options: Options
    messages: tuple[tuple[str, str], ...]
    language: str | None


@dataclass(frozen=True)
class Completion:
    """A completion: texts, or their token ids."""

    options: Options
    prompts: tuple[str | Ids, ...]


def parse_chat(content: bytes) -> Chat:
    """The body of `/v1/chat/completions`; raises HttpError 400."""
    body = _object(content)
    language = body.get("language")
    if language is not None and language not in LANGUAGES:
        raise _wrong("language", "must be 'ar' or 'en'", language)
    return Chat(_options(body), _messages(body.get("messages")), language)


def parse_completion(content: bytes) -> Completion:
    """The body of `/v1/completions`; raises HttpError 400."""
    body = _object(content)
    return Completion(_options(body), _prompts(body.get("prompt")))


def _object(content: bytes) -> Mapping[str, Any]:
    try:
        body = parse_json(content.decode("utf-8"), "the body")
    except UnicodeDecodeError as damage:
        raise HttpError(400, f"the body is not UTF-8 ({damage.reason}); send JSON in UTF-8") from damage
    except UserError as damage:
        raise HttpError(400, str(damage)) from damage
    if not isinstance(body, dict):
        raise HttpError(400, 'the body is no JSON object; send one such as {"model": ..., "messages": [...]}')
    for name, harmless in _NOT_HERE.items():
        value = body.get(name)
        if value is not None and not any(value == same and type(value) is type(same) for same in harmless):
            allowed = f"; leave it out, or give {' or '.join(map(repr, harmless))}" if harmless else "; leave it out"
            raise _wrong(name, f"is not supported here{allowed}", value)
    return body


def _options(body: Mapping[str, Any]) -> Options:
    stream = _truth(body, "stream")
    given = body.get("stream_options")
    if given is not None and not isinstance(given, dict):
        raise _wrong("stream_options", "must be an object", given)
    if given is not None and not stream:
        raise _wrong("stream_options", "is for streamed answers; leave it out, or give stream: true", given)
    limits = [_whole(body, name, SIZE) for name in ("max_completion_tokens", "max_tokens")]
    if None not in limits and limits[0] != limits[1]:
        raise _wrong("max_tokens", f"differs from max_completion_tokens ({limits[0]}); give one of them", limits[1])
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise _wrong("model", "must be a string", model)
    return Options(
        model,
        _number(body, "temperature", TEMPERATURE),
        _number(body, "top_p", SHARE),
        _whole(body, "top_k", COUNT_OR_NONE),
        _number(body, "repetition_penalty", PENALTY),
        _whole(body, "min_tokens", COUNT_OR_NONE),
        limits[0] if limits[0] is not None else limits[1],
        _whole(body, "seed", SEED),
        _stops(body.get("stop")),
        stream,
        _truth(given or {}, "include_usage"),
    )


def _messages(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise _wrong("messages", "must be a list of messages, at least one", value)
    if len(value) > _MOST_MESSAGES:
        raise _wrong("messages", f"must have at most {_MOST_MESSAGES} messages", len(value))
    messages = tuple(_message(f"messages[{number}]", message) for number, message in enumerate(value))
    turns = messages[1:] if messages[0][0] == "system" else messages
    offset = len(messages) - len(turns)
    for number, (role, _) in enumerate(turns):
        wanted = "assistant" if number % 2 else "user"
        if role != wanted:
            where = f"messages[{number + offset}].role"
            raise _wrong(
                where,
                f"must be {wanted!r}: one system message may come first, then user and assistant take turns",
                role,
            )
    if len(turns) % 2 == 0:
        raise _wrong("messages", "must end with a message of the user", messages[-1][0])
    return messages


def _message(where: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, dict):
        raise _wrong(where, "must be an object with role and content", value)
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}", role)
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _wrong(
                    f"{where}.content[{number}]",
                    "must be {'type': 'text', 'text': ...}: this model reads text alone",
                    part,
                )
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _wrong(f"{where}.content", "must be a string, or a list of texts", content)
    return _ROLES[role], content


def _prompts(value: Any) -> tuple[str | Ids, ...]:
    """The prompts of a completion: a string, token ids, or a list of either."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(_is_id(item) for item in value):
            return (tuple(value),)
        if len(value) > MOST_PROMPTS:
            raise _wrong("prompt", f"must have at most {MOST_PROMPTS} prompts", len(value))
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, list) and item and all(map(_is_id, item)) for item in value):
            return tuple(map(tuple, value))
    raise _wrong("prompt", "must be a string, a list of token ids, or a list of strings or of lists of ids", value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _stops(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong("stop", "must be a string or a list of strings", value)
    if len(stops) > MOST_STOPS:
        raise _wrong("stop", f"must have at most {MOST_STOPS} strings", len(stops))
    for stop in stops:
        if not 0 < len(stop) <= LONGEST_STOP:
            raise _wrong("stop", f"must have strings of 1 to {LONGEST_STOP} characters", stop)
    return tuple(stops)


def _number(body: Mapping[str, Any], name: str, bounds: Range) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    problem = bounds.problem(value)
    if problem is not None:
        raise HttpError(400, f"{name} {problem}", param=name)
    return float(value)


def _whole(body: Mapping[str, Any], name: str, bounds: Range) -> int | None:
    value = _number(body, name, bounds)
    return None if value is None else int(body[name])


def _truth(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, "must be true or false", value)
    return bool(value)


def _wrong(name: str, message: str, value: Any) -> HttpError:
    return HttpError(400, f"{name} {message} (got {shown(value)})", param=name)


def check_ids(prompts: Sequence[str | Ids], vocabulary: int) -> None:
    """Raises HttpError 400 for an id that the model does not have."""
    for prompt in prompts:
        if not isinstance(prompt, str) and max(prompt) >= vocabulary:
            raise _wrong("prompt", f"must have ids below {vocabulary:,}, the size of the vocabulary", max(prompt))
