"""From files of conversations to a folder of packed data: duplicates, held-out split, tokens, rows, files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, TextIO

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.chat.examples import (
    Example,
    PromptEncoder,
    TooLong,
    check_example,
    cut_response,
    without_oldest_turn,
)
from cerebras_jais.data.chat.prompts import Rendered, render
from cerebras_jais.data.chat.reading import Conversation, read_conversations
from cerebras_jais.data.dataset import SAMPLES_PER_FILE, DataParameters, check_new_folder, write_hdf5
from cerebras_jais.data.documents import DataError, check_held_out, lines_of, object_in
from cerebras_jais.data.packing import pack_examples
from cerebras_jais.data.pipeline import DECODED_AGAIN, HELD_OUT_FILE, PackedSplit, batches
from cerebras_jais.data.token_store import TokenStore
from cerebras_jais.data.tokenizer import end_of_text_id, load_tokenizer, vocabulary_size

_TRAIN = "train"
_POSITIONS_PER_FILE = 2**22  # a file is made in memory, of 20 bytes a position


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
    """A conversation with its text, and how many bytes of UTF-8 and characters that has."""

    conversation: Conversation
    rendered: Rendered
    n_bytes: int
    characters: int


@dataclass
class _Split:
    """A data directory while its examples are collected."""

    store: TokenStore
    n_bytes: int = 0
    characters: int = 0


def pack_conversations(
    conversations: Iterable[Conversation],
    tokenizer: str | Path,
    max_sequence_length: int,
    output: str | Path,
    *,
    too_long: TooLong = TooLong.DROP,
    held_out: int = 10,
    seed: int = 0,
    progress: Callable[[Iterable[Conversation], str], Iterable[Conversation]] | None = None,
) -> tuple[list[PackedSplit], Counts]:
    """Pack conversations into `output`/train and `output`/held_out/LANGUAGE; return what each holds, train first.

    Each becomes one example: the family's prompt with all its turns, packed whole beside others that it does not see
    (`pack_examples`), the loss on responses alone (`PromptEncoder.encode`). Of conversations that render to the same
    text the first is kept. Every `held_out`-th one of each language is held out (0: none), and written to
    `output`/held_out.jsonl as messages. The same conversations and seed give the same bytes.

    Memory: 16 bytes a conversation for its digest and what the set of digests takes, about 200 bytes in all, beside one
    window of `pack_examples` and one file; the tokens wait on the disk, in `output`.

    All or nothing: `output` appears when everything is written. Raises DataError if it exists and is not empty, for
    text that the tokenizer turns into the end of text or does not give back (a sample is decoded again), and if no
    example is left to train on.
    """
    output = Path(output)
    check_new_folder(output)
    if held_out:
        check_held_out(held_out)
    loaded = load_tokenizer(tokenizer)
    encoder = PromptEncoder(loaded, end_of_text_id(loaded, tokenizer))
    counts = Counts()
    watched = progress(conversations, "reading") if progress else conversations
    packed = []
    with whole_folder(output) as hidden:
        waiting = hidden / "waiting"
        waiting.mkdir()
        splits = _collect(watched, encoder, max_sequence_length, hidden, waiting, too_long, held_out, counts)
        for name, split in splits.items():
            rows = pack_examples(split.store, max_sequence_length, encoder.eos_id, seed=seed)
            metadata = DataParameters(
                vocab_size=vocabulary_size(loaded),
                eos_id=encoder.eos_id,
                pad_id=encoder.eos_id,
                tokenizer=str(tokenizer),
                output_dir=name,
                source="conversations",
                documents=len(split.store),
                raw_bytes=split.n_bytes,
                raw_characters=split.characters,
                mode="finetuning",
            )
            per_file = max(1, min(SAMPLES_PER_FILE, _POSITIONS_PER_FILE // max_sequence_length))
            write_hdf5(hidden / name, rows, metadata=metadata, samples_per_file=per_file)
            packed.append(PackedSplit(name, output / name, len(split.store), split.n_bytes, rows.report))
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
) -> dict[str, _Split]:
    """Encode all conversations into stores, one for each split, train first; write those held out."""
    splits = {_TRAIN: _Split(TokenStore(waiting / "0"))}
    shortest = 0
    with (folder / HELD_OUT_FILE).open("w", encoding="utf-8", newline="\n") as kept:
        unique = _unique(conversations, counts)
        for batch, examples in _encoded(batches(unique, lambda read: read.characters), encoder):
            for number, ((conversation, rendered, n_bytes, characters), example) in enumerate(
                zip(batch, examples, strict=True)
            ):
                if encoder.eos_id in example.ids[:-1] or number < DECODED_AGAIN:
                    check_example(encoder.tokenizer, conversation, rendered.text, example.ids[:-1], encoder.eos_id)
                split = _split_of(conversation, held_out, counts, splits, waiting)
                fitted = _fit(conversation, example, encoder, max_sequence_length, too_long, counts)
                if fitted is None:
                    shortest = min(shortest or len(example.ids), len(example.ids))
                    continue
                if split is not splits[_TRAIN]:
                    _write(kept, conversation)
                split.store.append(*fitted)
                split.n_bytes += n_bytes
                split.characters += characters
    for split in splits.values():
        split.store.close()
    if not len(splits[_TRAIN].store):
        raise DataError(_nothing_left(counts, shortest, max_sequence_length))
    if not held_out:
        (folder / HELD_OUT_FILE).unlink()
    return {name: split for name, split in splits.items() if len(split.store)}


def _unique(conversations: Iterable[Conversation], counts: Counts) -> Iterator[_Read]:
    seen: set[bytes] = set()
    for conversation in conversations:
        counts.read += 1
        rendered = render(conversation.messages, conversation.language)
        text = rendered.text
        encoded = text.encode("utf-8")
        digest = blake2b(encoded, digest_size=16).digest()
        if digest in seen:
            counts.duplicates += 1
            continue
        seen.add(digest)
        yield _Read(conversation, rendered, len(encoded), len(text))


def _encoded(batches: Iterable[list[_Read]], encoder: PromptEncoder) -> Iterator[tuple[list[_Read], list[Example]]]:
    """Yield batches with their examples; one batch is encoded while the next is read and rendered."""
    with ThreadPoolExecutor(1) as thread:
        before = None
        for batch in batches:
            encoding = thread.submit(lambda batch: list(encoder.encode([read.rendered for read in batch])), batch)
            if before is not None:
                yield before[0], before[1].result()
            before = batch, encoding
        if before is not None:
            yield before[0], before[1].result()


def _split_of(
    conversation: Conversation, held_out: int, counts: Counts, splits: dict[str, _Split], waiting: Path
) -> _Split:
    """The split of the next conversation: every `held_out`-th of a language is held out, by order alone."""
    counts.by_language[conversation.language] += 1
    if not held_out or counts.by_language[conversation.language] % held_out:
        return splits[_TRAIN]
    name = f"held_out/{conversation.language}"
    if name not in splits:
        splits[name] = _Split(TokenStore(waiting / str(len(splits))))
    return splits[name]


def _fit(
    conversation: Conversation,
    example: Example,
    encoder: PromptEncoder,
    max_sequence_length: int,
    too_long: TooLong,
    counts: Counts,
) -> Example | None:
    """An example that a row takes, cut by the rule where it is longer; None where it is left out."""
    if len(example.ids) - 1 <= max_sequence_length:
        return example
    if too_long is TooLong.CUT_RESPONSE and (cut := cut_response(example, max_sequence_length)):
        counts.cut_responses += 1
        return cut
    shorter = without_oldest_turn(conversation) if too_long is TooLong.CUT_TURNS else None
    while shorter is not None:
        (example,) = encoder.encode([render(shorter.messages, shorter.language)])
        if len(example.ids) - 1 <= max_sequence_length:
            counts.cut_turns += 1
            return example
        shorter = without_oldest_turn(shorter)
    counts.too_long += 1
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
            f"no example fits {max_sequence_length} positions, prompt and response together: the shortest has "
            f"{shortest} tokens; give --max-sequence-length {shortest - 1} or more, or a tokenizer with more entries"
        )
    return "no conversation is left to train on; give more, or a larger --held-out"
