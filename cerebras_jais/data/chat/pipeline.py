"""From files of conversations to a folder of packed data: duplicates, held-out split, tokens, rows, files."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.ahead import one_ahead
from cerebras_jais.data.chat.examples import (
    Example,
    PromptEncoder,
    TooLong,
    check_example,
    cut_response,
    without_oldest_turns,
)
from cerebras_jais.data.chat.prompts import Rendered
from cerebras_jais.data.chat.reading import Conversation, read_conversations
from cerebras_jais.data.dataset import DataParameters, check_new_folder
from cerebras_jais.data.documents import DataError, check_held_out, lines_of, object_in
from cerebras_jais.data.pipeline import HELD_OUT_FILE, TRAIN, PackedSplit, Split, batches, pack_store
from cerebras_jais.data.token_store import TRAINED
from cerebras_jais.data.tokenizer import DECODED_AGAIN, end_of_text_id, load_tokenizer, vocabulary_size
from cerebras_jais.encoding import Encoder, Engine
from cerebras_jais.wording import counted


@dataclass
class Counts:
    """What became of the conversations that were read; each is in a row, held out or in a row, or in one of these."""

    read: int = 0
    duplicates: int = 0
    too_long: int = 0
    cut_turns: int = 0
    """In a row, without their oldest turns."""
    cut_responses: int = 0
    """In a row, with a part of the last response."""
    by_language: Counter[str] = field(default_factory=Counter)
    """Those that are no duplicates."""


class _Read(NamedTuple):
    """A conversation with its text, how many bytes of UTF-8 and characters that has, and a digest of the example."""

    conversation: Conversation
    rendered: Rendered
    n_bytes: int
    characters: int
    digest: bytes


def pack_conversations(
    conversations: Iterable[Conversation],
    tokenizer: str | Path,
    max_sequence_length: int,
    output: str | Path,
    *,
    too_long: TooLong = TooLong.DROP,
    held_out: int = 10,
    seed: int = 0,
    engine: Engine = Engine.AUTO,
    progress: Callable[[Iterable[Conversation], str], Iterable[Conversation]] | None = None,
) -> tuple[list[PackedSplit], Counts]:
    """Pack conversations into `output`/train and `output`/held_out/LANGUAGE; return what each holds, train first.

    Each becomes one example: the family's prompt with all its turns, packed whole beside others that it does not see
    (`pack_vsl`), the loss on responses alone (`PromptEncoder.encode`). Of conversations that render to the same
    text one is kept, also where they do so only once they are cut. Every `held_out`-th one of each language is held out
    (0: none), and written to `output`/held_out.jsonl as messages, without the turns that were cut; where none is, there
    is no such file. The same conversations and seed give the same bytes.

    Memory: 16 bytes a conversation for its digest and what the set of digests takes, about 200 bytes in all, beside one
    window of `pack_vsl` and one file; the tokens wait on the disk, in `output`.

    All or nothing: `output` appears when everything is written. Raises DataError if it exists and is not empty, for
    text that the tokenizer turns into the end of text or does not give back (a sample is decoded again), and if no
    example is left to train on.
    """
    output = Path(output)
    check_new_folder(output)
    if held_out:
        check_held_out(held_out)
    loaded = load_tokenizer(tokenizer)
    encoder = PromptEncoder(Encoder(loaded, engine), end_of_text_id(loaded, tokenizer))
    counts = Counts()
    watched = progress(conversations, "reading") if progress else conversations
    packed = []
    with whole_folder(output) as hidden:
        waiting = hidden / "waiting"
        waiting.mkdir()
        splits = _collect(watched, encoder, max_sequence_length, hidden, waiting, too_long, held_out, counts)
        for name, split in splits.items():
            store = split.store()
            order = np.random.default_rng(seed).permutation(len(store))
            metadata = DataParameters(
                vocab_size=vocabulary_size(loaded),
                eos_id=encoder.eos_id,
                pad_id=encoder.eos_id,
                tokenizer=os.path.basename(os.path.abspath(tokenizer)),
                output_dir=name,
                source="conversations",
                documents=split.documents,
                raw_bytes=split.n_bytes,
                raw_characters=split.characters,
                mode="finetuning",
            )
            report = pack_store(
                store,
                order,
                max_sequence_length,
                hidden / name,
                metadata,
                scratch=waiting,
                vsl=True,
                marked=True,
                seed=seed,
            )
            packed.append(PackedSplit(name, output / name, split.documents, split.n_bytes, report))
        shutil.rmtree(waiting)
    return packed, counts


def held_out_conversations(packed: str | Path) -> list[Conversation] | None:
    """The conversations that `pack_conversations` held out when it made a folder; None where there are none."""
    file = Path(packed) / HELD_OUT_FILE
    if not file.exists():
        return None
    first = next(filter(None, (object_in(line, "{}") for line in lines_of(file))), {})
    return list(read_conversations(file)) if "messages" in first else None


def _collect(
    conversations: Iterable[Conversation],
    encoder: PromptEncoder,
    max_sequence_length: int,
    folder: Path,
    waiting: Path,
    too_long: TooLong,
    held_out: int,
    counts: Counts,
) -> dict[str, Split]:
    """Encode all conversations into stores, one for each split, train first; write those held out."""
    splits = {TRAIN: Split(TRAIN, waiting / "0")}
    shortest = 0
    with (folder / HELD_OUT_FILE).open("w", encoding="utf-8", newline="\n") as kept:
        seen: set[bytes] = set()
        unique = _unique(conversations, encoder, seen, counts)
        read_batches = batches(unique, lambda read: read.characters)
        for batch, examples in one_ahead(lambda batch: (batch, _examples(batch, encoder)), read_batches):
            for number, (whole, example) in enumerate(zip(batch, examples, strict=True)):
                if encoder.eos_id in example.ids[:-1] or number < DECODED_AGAIN:
                    text, ids = whole.rendered.text, example.ids[:-1]
                    check_example(encoder.tokenizer, whole.conversation, text, ids, encoder.eos_id)
                fitted = _fit(whole, example, encoder, max_sequence_length, too_long)
                if fitted is not None and fitted[0] is not whole:
                    if fitted[0].digest in seen:
                        counts.duplicates += 1
                        continue
                    seen.add(fitted[0].digest)
                    counts.cut_turns += too_long is TooLong.CUT_TURNS
                    counts.cut_responses += too_long is TooLong.CUT_RESPONSE
                split = _split_of(whole.conversation, held_out, counts, splits, waiting)
                if fitted is None:
                    counts.too_long += 1
                    shortest = min(shortest or len(example.ids), len(example.ids))
                    continue
                read, kept_example = fitted
                if split is not splits[TRAIN]:
                    _write(kept, read.conversation)
                stored = kept_example.ids.copy()
                stored[kept_example.trained] |= TRAINED
                split.add(stored, read.n_bytes, read.characters)
    if not splits[TRAIN].documents:
        raise DataError(_nothing_left(counts, shortest, max_sequence_length))
    if not (folder / HELD_OUT_FILE).stat().st_size:
        (folder / HELD_OUT_FILE).unlink()
    return {name: split for name, split in splits.items() if split.documents}


def _unique(
    conversations: Iterable[Conversation], encoder: PromptEncoder, seen: set[bytes], counts: Counts
) -> Iterator[_Read]:
    for conversation in conversations:
        counts.read += 1
        read = _read(conversation, encoder.render(conversation))
        if read.digest in seen:
            counts.duplicates += 1
            continue
        seen.add(read.digest)
        yield read


def _read(conversation: Conversation, rendered: Rendered) -> _Read:
    text = rendered.text
    encoded = text.encode("utf-8")
    return _Read(conversation, rendered, len(encoded), len(text), _digest(encoded))


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _examples(batch: list[_Read], encoder: PromptEncoder) -> list[Example]:
    return list(encoder.encode([read.rendered for read in batch], [read.conversation.place for read in batch]))


def _split_of(
    conversation: Conversation, held_out: int, counts: Counts, splits: dict[str, Split], waiting: Path
) -> Split:
    """The split of the next conversation: every `held_out`-th of a language is held out, by order alone."""
    counts.by_language[conversation.language] += 1
    if not held_out or counts.by_language[conversation.language] % held_out:
        return splits[TRAIN]
    name = f"held_out/{conversation.language}"
    if name not in splits:
        splits[name] = Split(name, waiting / str(len(splits)))
    return splits[name]


def _fit(
    read: _Read, example: Example, encoder: PromptEncoder, max_sequence_length: int, too_long: TooLong
) -> tuple[_Read, Example] | None:
    """An example that a row takes, with what was read, cut by the rule where it is longer; None where it is left out.

    What is cut has a digest of its own, since two that differ may be equal once they are cut.
    """
    if len(example.ids) - 1 <= max_sequence_length:
        return read, example
    if too_long is TooLong.CUT_RESPONSE and (cut := cut_response(example, max_sequence_length)):
        return read._replace(digest=_digest(cut.ids.tobytes())), cut
    if too_long is TooLong.CUT_TURNS:
        fitting = without_oldest_turns(read.conversation, encoder, max_sequence_length)
        if fitting is not None:
            conversation, rendered, shorter = fitting
            return _read(conversation, rendered), shorter
    return None


def _write(lines: TextIO, conversation: Conversation) -> None:
    entry = {
        "messages": [message._asdict() for message in conversation.messages],
        "language": conversation.language,
        "source": conversation.source,
    }
    lines.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _nothing_left(counts: Counts, shortest: int, max_sequence_length: int) -> str:
    if not counts.read:
        return "no conversation to train on; give more, one to a line"
    if counts.too_long == counts.by_language.total():
        return (
            f"no example fits {counted(max_sequence_length, 'position')}, prompt and response together: the shortest "
            f"has {shortest} tokens; give --max-sequence-length {shortest - 1} or more, or a tokenizer with more "
            "entries"
        )
    return "no conversation is left to train on; give more, or a larger --held-out"
