"""A conversation in a terminal: lines in, answers out as they are written, and what a line can ask beside that.

Text is printed in logical order: terminals that know Arabic turn it themselves.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import write_text
from cerebras_jais.chat.engine import Engine
from cerebras_jais.chat.sampling import Sampling
from cerebras_jais.errors import UserError
from checkpoint_convert.formats.json_files import json_text

HELP = """\
/reset         forget the conversation
/system TEXT   begin anew with a system message; without a text, with the model's own
/save FILE     write the conversation as JSON, {"messages": [...]}
/help          this list
/quit          end, as Ctrl-D and a second Ctrl-C do; the first Ctrl-C stops an answer"""


class Session:
    """One conversation.

    Attributes:
        messages: so far, in the form of `Engine.chat_ids`.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, write: Callable[[str], None], *, language: str | None = None
    ) -> None:
        self._engine, self._sampling, self._write, self._language = engine, sampling, write, language
        self.messages: list[dict[str, Any]] = []
        self._noted = False

    def take(self, line: str) -> bool:
        """Answer a line or do what it asks; False where that is the end. Errors leave the conversation as it was."""
        line = line.strip()
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "/quit":
            return False
        if word in ("/reset", "/system"):
            self.messages = [{"role": "system", "content": rest}] if word == "/system" and rest else []
        elif word == "/save":
            if not rest:
                raise UserError("/save: give the name of a file")
            write_text(Path(rest), json_text({"messages": self.messages}))
        elif word == "/help":
            self._write(f"{HELP}\n")
        elif word.startswith("/") and word[1:].isascii() and word[1:].isalpha():
            raise UserError(f"{word}: no such request; /help lists them")
        elif line:
            self._answer(line)
        return True

    def _answer(self, question: str) -> None:
        messages = [*self.messages, {"role": "user", "content": question}]
        prompt = self._engine.chat_ids(messages, self._language)
        note = self._engine.note_on(len(prompt))
        if note and not self._noted:
            self._write(f"note: {note}\n")
            self._noted = True
        answer = ""
        with _stopped_by_interrupt() as stopped:
            for piece in self._engine.stream(prompt, self._sampling, stopped):
                text = piece.text if answer else piece.text.lstrip()
                answer += text
                self._write(text)
        self._write("\n")
        # A template takes no empty message, so an unanswered question is not part of the conversation.
        if answer.strip():
            self.messages = [*messages, {"role": "assistant", "content": answer.strip()}]
        if self._sampling.seed is not None:
            self._sampling = replace(self._sampling, seed=self._sampling.seed + 1)


@contextmanager
def _stopped_by_interrupt() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed in the block, where it does nothing else."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.set())
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
