"""Text to token ids, with text as data.

Whatever tokenizer.json stores, a text is encoded whole, and a special token that is written in it (such as
`<|endoftext|>`) is spelled out like any other word. Control tokens are put in by their id alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cerebras_jais.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_STANDARD_ERROR = threading.Lock()


def reading_text_as_data(tokenizer: Tokenizer) -> Tokenizer:
    """Set a tokenizer to spell special tokens out, and switch its truncation, padding and BPE dropout off.

    Its post-processor goes, too: of encoding without special tokens it changes nothing but the places of the tokens in
    the text, from which ByteLevel and RobertaProcessing take the spaces.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    tokenizer.post_processor = None
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens around them."""
    with explained("tokenizer.json"):
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def encodings(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoding]:
    """The same with the place of each token in its text, which takes a third longer."""
    with explained("tokenizer.json"):
        return list(tokenizer.encode_batch(list(texts), add_special_tokens=False))


@contextmanager
def explained(where: str, refusal: type[UserError] = UserError) -> Iterator[None]:
    """Turn what the tokenizers library raises, bare Exceptions and panics of Rust, into one line that names `where`."""
    try:
        with _silenced():
            yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise refusal(f"{where}: not a readable tokenizer ({reason[:200]}); give another") from error


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep off standard error what a panic of Rust prints there, past Python's streams: the error has it too.

    Standard error is the whole process's, so one thread does this at a time.
    """
    with _STANDARD_ERROR:
        try:
            kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # standard error is closed
            yield
            return
        os.dup2(nothing, 2)
        os.close(nothing)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
