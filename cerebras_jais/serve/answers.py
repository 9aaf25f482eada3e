"""The JSON of answers, as OpenAI's interface has it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Usage:
    """Tokens read and written."""

    prompt: int
    completion: int

    def body(self) -> dict[str, int]:
        """As OpenAI counts them."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Shape:
    """The form of one request's answer.

    Attributes:
        model: the name of what answers.
        chat: whether it is a chat completion.
        usage_last: whether a streamed answer ends with its counts.
    """

    model: str
    chat: bool
    usage_last: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    identifier: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(self, choices: Sequence[tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """An answer at once; each choice is its text and why it ended."""
        found = [
            {"index": index, **self._content("message", text), "logprobs": None, "finish_reason": finish}
            for index, (text, finish) in enumerate(choices)
        ]
        return {**self._frame("chat.completion"), "choices": found, "usage": usage.body()}

    def first(self) -> dict[str, Any]:
        """What opens the stream of a chat: the role."""
        return self._chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def piece(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        """A part of a streamed answer, the last one with why it ended."""
        return self._chunk(
            [{"index": index, **self._content("delta", text), "logprobs": None, "finish_reason": finish}]
        )

    def last(self, usage: Usage) -> dict[str, Any]:
        """The counts that a stream ends with."""
        return {**self._chunk([]), "usage": usage.body()}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.usage_last else {}
        return {**self._frame("chat.completion.chunk"), "choices": choices, **usage}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.identifier}",
            "object": kind if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def _content(self, name: str, text: str) -> dict[str, Any]:
        if not self.chat:
            return {"text": text}
        if name == "delta":
            return {"delta": {"content": text} if text else {}}
        return {"message": {"role": "assistant", "content": text, "refusal": None}}
