"""Text to token ids, with text as data.

Whatever tokenizer.json stores, a text is encoded whole, and a special token that is written in it (such as
`<|endoftext|>`) is spelled out like any other word. Control tokens are put in by their id alone.

`Encoder` is for many texts: it takes the fast engine where that is installed and gives the same ids.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cerebras_jais.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

COMPARED_EVERY = 10_000
"""Of the texts of an `Encoder`, every so many-th is encoded by both engines."""
_STANDARD_ERROR = threading.Lock()


class Tokens(NamedTuple):
    """The token ids of several texts: `ids`, uint32 [tokens], and where each text ends in it, `ends`, int64 [texts]."""

    ids: np.ndarray
    ends: np.ndarray

    def split(self) -> list[np.ndarray]:
        """The ids of each text."""
        ends = self.ends.tolist()
        return [self.ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


class Engine(StrEnum):
    """What turns text into token ids."""

    AUTO = "auto"
    """fastokens where it is installed and knows the kind of tokenizer, else tokenizers."""
    FASTOKENS = "fastokens"
    TOKENIZERS = "tokenizers"


class Encoder:
    """Texts to token ids by one of two engines, without Python objects for single tokens where it is the fast one.

    `tokenizers` is the judge: the fast engine must give its ids for HARD_TEXTS, and for every COMPARED_EVERY-th text
    that is encoded.

    Attributes:
        tokenizer: that of `tokenizers`, set to read text as data.
        engine: the one that is used, FASTOKENS or TOKENIZERS.
        encoded: how many texts were.

    Raises UserError if `fastokens` is asked for and cannot be had, or gives other ids.
    """

    def __init__(self, tokenizer: Tokenizer, engine: Engine = Engine.AUTO) -> None:
        self.tokenizer = reading_text_as_data(tokenizer)
        self._fast = None if engine is Engine.TOKENIZERS else _fast_tokenizer(tokenizer, engine is Engine.FASTOKENS)
        self.engine = Engine.TOKENIZERS if self._fast is None else Engine.FASTOKENS
        self.encoded = 0
        if self._fast is not None:
            for text, ids in zip(HARD_TEXTS, self._encode_fast(HARD_TEXTS).split(), strict=True):
                self._compare(text, ids, "a text of the comparison before the start")

    def encode(self, texts: Sequence[str], name: Callable[[int], str] = "text {}".format) -> Tokens:
        """Return the token ids of texts, without special tokens around them; `name` names one by its number.

        Raises UserError, which names the text, if the engines differ on one.
        """
        if self._fast is None:
            found = encode_texts(self.tokenizer, texts)
            ends = np.cumsum([len(ids) for ids in found], dtype=np.int64)
            total = int(ends[-1]) if found else 0
            self.encoded += len(texts)
            return Tokens(np.fromiter(chain.from_iterable(found), dtype=np.uint32, count=total), ends)
        batch = self._encode_fast(texts)
        for number in range(-self.encoded % COMPARED_EVERY, len(texts), COMPARED_EVERY):
            start, end = (int(batch.ends[number - 1]) if number else 0), int(batch.ends[number])
            self._compare(texts[number], batch.ids[start:end], name(number))
        self.encoded += len(texts)
        return batch

    def _encode_fast(self, texts: Sequence[str]) -> Tokens:
        assert self._fast is not None
        with explained("fastokens"):
            ids, offsets = self._fast.encode_batch_flat(list(texts), split_special_tokens=True)
        ends = np.frombuffer(offsets, dtype="<u8")[1:].astype(np.int64)
        return Tokens(np.frombuffer(ids, dtype="<u4"), ends)

    def _compare(self, text: str, ids: np.ndarray, name: str) -> None:
        (judged,) = encode_texts(self.tokenizer, [text])
        if judged != ids.tolist():
            raise UserError(
                f"{name}: fastokens gives {len(ids)} token ids for {text[:40]!r}..., which are not the {len(judged)} "
                "of tokenizers; give --engine tokenizers, and report it to the makers of fastokens"
            )


def _fast_tokenizer(tokenizer: Tokenizer, required: bool) -> Any:
    """The same tokenizer for the fast engine; None where it is not installed or does not know the kind."""
    try:
        import fastokens
    except ImportError:
        if required:
            raise UserError("fastokens is not installed; pip install 'cerebras-jais[pipeline]'") from None
        return None
    try:
        with explained("fastokens"):
            return fastokens.Tokenizer.from_json_str(tokenizer.to_str())
    except (ValueError, UserError) as refused:
        if required:
            raise UserError(f"fastokens cannot read this tokenizer ({refused}); give --engine tokenizers") from refused
        return None


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


# What engines have been seen, or are likely, to get wrong: each kind of white space and line end, marks on letters and
# their order, joiners, digits of three scripts, contractions, special tokens spelt out, long runs, rare planes.
HARD_TEXTS = (
    "",
    " ",
    "  leading, trailing  ",
    "a\r\nb\rc\n\n\nd\t\te \u00a0f\u2028g\u3000h\x00i\x1fj\x85k",
    "I'm, you'RE, he'll, 'tis; don\u2019t e.g. U.S.A. 3.14 1,000,000 2^10 100% $5 #tag @name a_b-c/d\\e",
    "<|endoftext|>a<|endoftext|> </s><s> <unk>[PAD]<pad> [|Human|] [|AI|] <|im_start|> <0x0A> \u2581\u2581x \u0120y",
    "السلام عليكم، كيف الحال؟ ـــ لا إلى الآن",
    "م\u064fح\u064eم\u0651\u064eد\u064c م\u064fح\u064eم\u064e\u0651د\u064c",
    "\u0671ل\u0652ع\u064eـ\u0670ل\u064eم\u0650ين\u064e",
    "\u0660\u0661\u0662\u0663 \u06f4\u06f5\u06f6 789 \u0663\u066b\u0661\u0664 \u066a \ufefb \ufdfa \u0627\u0653 \u0622",
    "می\u200cخواهم \u200f\u200e\u202b\u2067x\u2069\ufeff\u200by\u200d",
    "\u00e9 e\u0301 \ufb01 \u00b2\u00b3\u00bc \u2126 \u212b \u01c5 \u1e9e \u0130\u0131",
    "\u0e01\u0e33 \u0915\u094d\u0937\u093f \uac00 \u1100\u1161 \u4e2d\u6587\u3002",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e6\U0001f1ea \u2764\ufe0f \U0001d504\U00020000\U0010ffff",
    "\ufffd\ufffe\ue000\u0378",
    "def f(x):\n\tif x != 0:\n        return {'a': [1, 2.5e-3]}  # done\n\n\n",
    "x" * 600 + " " * 300 + "لا" * 300 + "\n" * 100 + "1" * 200 + "!?" * 100,
)


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
