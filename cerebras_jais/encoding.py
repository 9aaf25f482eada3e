"""Text to token ids, with text as data.

Whatever tokenizer.json stores, a text is encoded whole, and a special token that is written in it (such as
`<|endoftext|>`) is spelled out like any other word. Control tokens are put in by their id alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def reading_text_as_data(tokenizer: Tokenizer) -> Tokenizer:
    """Set a tokenizer to spell special tokens out, and switch its truncation, padding and BPE dropout off."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens around them."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
