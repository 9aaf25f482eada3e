"""A byte-level BPE tokenizer in the way of Jais, trained on documents and saved as Hugging Face expects it.

It reads text as data (encoding.py).
"""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.documents import DataError, Document, count_words
from cerebras_jais.encoding import Encoder, Tokens, encode_texts, explained, reading_text_as_data
from cerebras_jais.files import MIB, parse_json, read_text
from cerebras_jais.ranges import VOCABULARY

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
EOS_ID = 0
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
LARGEST = 64 * MIB  # bytes of a tokenizer.json; the largest known are of half that
_LONGEST_WORD = 10_000  # characters
_ENDLESS_WORD = re.compile(rf"\S{{{_LONGEST_WORD}}}|\s{{{_LONGEST_WORD}}}")
# So many documents of an encoder, and conversations of each batch, are decoded again and compared with their text; of
# further documents every DECODED_EVERY-th is.
DECODED_AGAIN = 8
DECODED_EVERY = 100
# One special token and the 256 bytes; a smaller vocabulary could not spell every text.
SMALLEST_VOCABULARY = 257


def train_tokenizer(documents: Iterable[Document], vocab_size: int, eos: str = END_OF_TEXT) -> "Tokenizer":
    """Train a byte-level BPE tokenizer of at most `vocab_size` entries; the end-of-text token has id 0.

    As the Jais family's: GPT-2's pre-tokenising pattern, no normaliser (tashkeel, tatweel and presentation forms
    stay as written), no leading space added, no special token put in by encoding. Every text round-trips. A small
    corpus can give fewer entries than asked for: use `tokenizer.get_vocab_size()`.
    Raises DataError for a vocab_size under 257.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(f"vocabulary of {vocab_size}: must be at least {SMALLEST_VOCABULARY} (256 bytes, end of text)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[eos],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for document in documents for piece in _learnable(document.text)), trainer)
    assert tokenizer.token_to_id(eos) == EOS_ID
    return reading_text_as_data(tokenizer)


def _learnable(text: str) -> Iterator[str]:
    """A text whole, or in pieces where it has a run without a break that would take for ever: learning takes the square
    of the longest word's length."""
    if _ENDLESS_WORD.search(text) is None:
        yield text
        return
    for start in range(0, len(text), _LONGEST_WORD):
        yield text[start : start + _LONGEST_WORD]


def check_folder(directory: str | Path, overwrite: bool = False) -> None:
    """Raise DataError where a tokenizer may not be written: what is there is no folder, or holds other files.

    An empty folder may be; one that holds a tokenizer and nothing else may be with `overwrite`.
    """
    directory = Path(directory)
    if not os.path.lexists(directory):
        return
    if not directory.is_dir():
        raise DataError(f"{directory}: is not a folder; choose another --output")
    names = {path.name for path in directory.iterdir()}
    if "tokenizer.json" in names and not overwrite:
        raise DataError(f"{directory}: holds a tokenizer already; choose another --output or give --overwrite")
    if others := sorted(names - set(FILES)):
        raise DataError(f"{directory}: holds other files, such as {others[0]}; choose a new folder as --output")


def save_tokenizer(
    tokenizer: "Tokenizer", directory: str | Path, model_max_length: int, *, overwrite: bool = False
) -> Path:
    """Write the three files that `transformers.AutoTokenizer.from_pretrained(directory)` loads; return the folder.

    tokenizer.json, tokenizer_config.json (PreTrainedTokenizerFast) and special_tokens_map.json. The token with id 0
    serves as bos, eos, pad and unk, as in the Jais family. The folder appears whole or not at all. Raises DataError as
    `check_folder` does.
    """
    check_folder(directory, overwrite)
    directory = Path(directory)
    eos = tokenizer.id_to_token(EOS_ID)
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), eos)
    added = {"content": eos, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "added_tokens_decoder": {str(EOS_ID): {**added, "special": True}},
        "add_prefix_space": False,
        # True would delete spaces before punctuation when decoding, and break the round trip.
        "clean_up_tokenization_spaces": False,
        # Without it transformers 4 makes token_type_ids too, which Llama's `generate` refuses.
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
    }
    contents = (
        tokenizer.to_str(pretty=True),
        json.dumps(config, indent=2, ensure_ascii=False) + "\n",
        json.dumps(special, indent=2, ensure_ascii=False) + "\n",
    )
    with whole_folder(directory, replaces=overwrite) as hidden:
        for name, content in zip(FILES, contents, strict=True):
            (hidden / name).write_text(content, encoding="utf-8")
    return directory


def load_tokenizer(directory: str | Path) -> "Tokenizer":
    """Load tokenizer.json from a folder (or the file itself), set to read text as data.

    Truncation, padding and BPE dropout that the file stores are switched off; `encode_texts` spells special tokens out.
    Raises DataError if the file is not there or cannot be read.
    """
    from tokenizers import Tokenizer

    path = Path(directory)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.exists():
        raise DataError(f"{file}: no such file; make one with `cerebras-jais data tokenizer` or name its folder")
    content = read_text(file, LARGEST, DataError)
    with explained(str(file), DataError):
        tokenizer = reading_text_as_data(Tokenizer.from_str(content))
    largest = vocabulary_size(tokenizer) - 1
    if largest >= VOCABULARY.high:
        raise DataError(
            f"{file}: has the token id {largest}, beyond the {VOCABULARY.high:,} entries that a model can have; give "
            "another tokenizer"
        )
    return tokenizer


def vocabulary_size(tokenizer: "Tokenizer") -> int:
    """The largest token id + 1, below which every id is; there can be fewer entries, as ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def encode_document(tokenizer: "Tokenizer", document: Document, eos_id: int) -> list[int]:
    """Return the token ids of one document, checked by `check_end_of_text` and `check_round_trip`."""
    (ids,) = encode_texts(tokenizer, [document.text])
    check_end_of_text(document, ids, eos_id)
    check_round_trip(tokenizer, document, ids)
    return ids


def encode_documents(encoder: Encoder, documents: Sequence[Document], eos_id: int) -> Tokens:
    """Return the token ids of documents, checked by `check_end_of_text`; a sample is checked by `check_round_trip`.

    The sample is the first DECODED_AGAIN of an encoder, and then every DECODED_EVERY-th: decoding is the slower way.
    Raises UserError, too, if the engines of the encoder differ on a document.
    """
    before = encoder.encoded
    batch = encoder.encode([document.text for document in documents], lambda number: documents[number].source)
    for place in np.flatnonzero(batch.ids == eos_id)[:1]:
        number = int(np.searchsorted(batch.ends, place, side="right"))
        check_end_of_text(documents[number], batch.ids[place : place + 1].tolist(), eos_id)
    sample = (n for n in range(len(documents)) if before + n < DECODED_AGAIN or (before + n) % DECODED_EVERY == 0)
    for number in sample:
        start, end = (int(batch.ends[number - 1]) if number else 0), int(batch.ends[number])
        check_round_trip(encoder.tokenizer, documents[number], batch.ids[start:end].tolist())
    return batch


def check_end_of_text(document: Document, ids: Sequence[int], eos_id: int) -> None:
    """Raise DataError if a document's own text became the end-of-text token, which only ends documents."""
    if eos_id in ids:
        raise DataError(
            f"{document.source}: the tokenizer turns text of this document into the end-of-text token (id {eos_id}); "
            "in tokenizer.json give that token special: true, and no other way to be spelled"
        )


def check_round_trip(tokenizer: "Tokenizer", document: Document, ids: Sequence[int]) -> None:
    """Raise DataError if the token ids of a document do not decode to its text.

    What a tokenizer takes for the same counts as the same: a text and its normal form, a space and the ▁ written
    for it (SentencePiece), a text with and without the one space that may be put before it.
    """
    text, decoded = document.text, tokenizer.decode(list(ids), skip_special_tokens=False)
    if decoded == text:
        return
    if tokenizer.normalizer is not None:
        text, decoded = (tokenizer.normalizer.normalize_str(version) for version in (text, decoded))
    text, decoded = (version.replace("▁", " ") for version in (text, decoded))
    if decoded in (text, f" {text}") or text == f" {decoded}":
        return
    differing = (index for index, (a, b) in enumerate(zip(text, decoded, strict=False)) if a != b)
    at = next(differing, min(len(text), len(decoded)))
    raise DataError(
        f"{document.source}: its tokens do not decode to its text: {text[at : at + 20]!r} at character {at} becomes "
        f"{decoded[at : at + 20]!r}; use a tokenizer that keeps every text, such as a byte-level BPE"
    )


def end_of_text_id(tokenizer: "Tokenizer", directory: str | Path | None = None) -> int:
    """Return the id of the tokenizer's end-of-text token.

    `<|endoftext|>` or `</s>` (Llama) when the vocabulary has it, unless `directory` has a tokenizer_config.json that
    names another `eos_token`. Raises DataError when there is none.
    """
    names = [END_OF_TEXT, "</s>"]
    config_file = Path(directory) / "tokenizer_config.json" if directory is not None else None
    if config_file is not None and config_file.exists():
        config = parse_json(read_text(config_file, MIB, DataError), str(config_file), DataError)
        declared = config.get("eos_token") if isinstance(config, dict) else config
        declared = declared.get("content") if isinstance(declared, dict) else declared
        if not isinstance(declared, str | None):
            raise DataError(f"{config_file}: its eos_token must be a text or an object with content; mend it")
        names = [declared] if declared else names
    for name in names:
        token_id = tokenizer.token_to_id(name)
        if token_id is not None:
            return token_id
    raise DataError(f"{directory or 'tokenizer'}: no end-of-text token ({' or '.join(names)}) in the vocabulary")


def tokens_per_word(tokenizer: "Tokenizer", documents: Iterable[Document]) -> float:
    """Return the fertility: tokens per white-space separated word over all documents (nan without words)."""
    tokens = words = 0
    for document in documents:
        tokens += len(encode_texts(tokenizer, [document.text])[0])
        words += count_words(document.text)
    return tokens / words if words else math.nan


def bits_per_byte(total_nats: float, n_bytes: int) -> float:
    """Return total_nats / (n_bytes ln 2): a loss summed over tokens, in nats, per UTF-8 byte of the text it predicts.

    Unlike the loss per token it can be compared between tokenizers.
    """
    if n_bytes <= 0:
        raise ValueError(f"n_bytes must be positive, got {n_bytes}")
    return total_nats / (n_bytes * math.log(2))
