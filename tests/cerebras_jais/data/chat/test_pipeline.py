"""Contract: every conversation is in exactly one row or counted; no attention and no label crosses an example; the
held-out split is by example; the same conversations and seed give the same bytes; all or nothing."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.data.chat.examples import PromptEncoder, TooLong
from cerebras_jais.data.chat.pipeline import pack_conversations
from cerebras_jais.data.chat.prompts import render
from cerebras_jais.data.chat.reading import read_conversations, sample_conversations_path
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.data.documents import DataError
from cerebras_jais.data.packing import pack_vsl
from cerebras_jais.data.shards import recorded_vocabulary
from cerebras_jais.data.token_store import TRAINED, Store
from cerebras_jais.data.tokenizer import end_of_text_id, load_tokenizer
from cerebras_jais.encoding import Encoder, Tokens
from cerebras_jais.errors import UserError
from tests.cerebras_jais.data.chat.examples import byte_level, conversation, conversations, with_gap
from tests.fast_engine import stand_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer"), 2048)


@pytest.fixture(scope="module")
def encoder(folder):
    tokenizer = load_tokenizer(folder)
    return PromptEncoder(Encoder(tokenizer), end_of_text_id(tokenizer, folder))


def examples_in(directory):
    """The examples of packed data, found by position_ids alone: token ids, and which labels count in the loss."""
    samples = HDF5Samples(directory, 1, use_vsl=True)
    batch = samples.read(np.arange(len(samples)))
    for ids, mask, labels, position in zip(
        *(batch[name] for name in ("input_ids", "attention_mask", "labels", "position_ids")), strict=True
    ):
        last = int(np.flatnonzero(mask)[-1]) + 1
        starts = [*np.flatnonzero(position[:last] == 0).tolist(), last]
        for a, b in pairwise(starts):
            assert ids[a + 1 : b].tolist() == labels[a : b - 1].tolist(), "a label is the next token of its example"
            yield (*ids[a:b].tolist(), int(labels[b - 1])), (0, *mask[a:b].tolist())
        assert not (ids[last:].any() or labels[last:].any() or position[last:].any())


def expected(encoder, chats):
    found = encoder.encode([render(chat.messages, chat.language) for chat in chats])
    return [(tuple(ids.tolist()), tuple(trained.astype(int).tolist())) for ids, trained in found]


@settings(max_examples=12, deadline=None)
@given(st.lists(conversations, min_size=1, max_size=12), st.integers(0, 2**32), st.sampled_from([200, 300, 600]))
@pytest.mark.slow
def test_every_example_is_in_one_row_or_counted(encoder, folder, tmp_path_factory, chats, seed, length):
    output = tmp_path_factory.mktemp("packed") / "data"
    texts = [render(chat.messages, chat.language).text for chat in chats]
    unique = [chat for number, chat in enumerate(chats) if texts[number] not in texts[:number]]
    wanted = [example for example in expected(encoder, unique) if len(example[0]) - 1 <= length]
    if not wanted:
        with pytest.raises(DataError, match=f"no example fits {length} positions"):
            pack_conversations(chats, folder, length, output, held_out=0, seed=seed)
        assert not output.exists()
        return
    splits, counts = pack_conversations(chats, folder, length, output, held_out=0, seed=seed)
    assert Counter(examples_in(output / "train")) == Counter(wanted)
    assert counts.read == len(chats)
    assert counts.duplicates == len(chats) - len(unique)
    assert counts.too_long == len(unique) - len(wanted)
    report = splits[0].report
    assert (report.documents, report.tokens) == (len(wanted), sum(len(ids) for ids, _ in wanted))
    assert report.filled_positions == report.tokens - report.documents
    assert report.trained_positions == sum(sum(mask) for _, mask in wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 13), min_size=1, max_size=40),
    st.integers(0, 2**32),
    st.sampled_from([3, 10, 100]),
)
def test_no_attention_and_no_label_crosses_an_example(lengths, seed, window):
    """The mask, built from attention_span as the Model Zoo defines it, against what the tokens say."""
    bounds = np.cumsum([0, *lengths]) + 10

    ids = np.arange(bounds[0], bounds[-1], dtype=np.uint32)
    ids[bounds[1:] - bounds[0] - 1] |= TRAINED  # the last of each
    store = Store([Tokens(ids, bounds[1:] - bounds[0])])
    rows = list(pack_vsl(store, 12, 0, marked=True, seed=seed, window=window))
    owner_of = {
        token: number for number, _ in enumerate(lengths) for token in range(bounds[number], bounds[number + 1])
    }
    seen_tokens = []
    for ids, mask, labels, span, position in rows:
        filled = ids > 0
        owner = np.array([owner_of.get(token, -1 - place) for place, token in enumerate(ids.tolist())])
        q, k = np.indices((12, 12))
        assert np.array_equal((q >= k) & (q - k <= span[k]), (q >= k) & (owner[q] == owner[k]))
        assert [owner_of[label] for label in labels[filled].tolist()] == owner[filled].tolist()
        assert (labels[filled] == ids[filled] + 1).all()
        assert np.array_equal(mask == 1, filled & np.isin(labels + 1, bounds[1:]))
        assert not (labels[~filled].any() or span[~filled].any() or position[~filled].any())
        seen_tokens += ids[filled].tolist()
    assert sorted(seen_tokens) == sorted(set(owner_of) - set((bounds[1:] - 1).tolist()))


def files_in(folder):
    """The content of every file; of an HDF5 file its data, since its bytes depend on the library's version."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def test_an_engine_that_gives_other_ids_stops_the_run_at_the_conversation(folder, tmp_path, monkeypatch):
    stand_in(monkeypatch, lambda text, ids: [*ids, 5] if "wrong" in text else ids)
    monkeypatch.setattr("cerebras_jais.encoding.COMPARED_EVERY", 1)
    lines = [{"prompt": "a", "response": word} for word in ("right", "wrong")]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"chats\.jsonl:2: fastokens gives \d+ token ids for ' wrong'"):
        pack_conversations(read_conversations(file), folder, 512, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["chats.jsonl"]


def test_one_seed_gives_the_same_bytes_and_another_another_order(folder, tmp_path):
    chats = list(read_conversations(sample_conversations_path()))
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        pack_conversations(chats, folder, 512, tmp_path / name, seed=seed)
    a, b, c = (files_in(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a["held_out.jsonl"] == c["held_out.jsonl"]
    assert a["train/output_chunk_000000.h5"] != c["train/output_chunk_000000.h5"]
    assert sorted(examples_in(tmp_path / "a/train")) == sorted(examples_in(tmp_path / "c/train"))


def test_every_fifth_example_of_a_language_is_held_out_once_equal_ones_are_gone(encoder, folder, tmp_path):
    chats = list(read_conversations(sample_conversations_path()))
    splits, counts = pack_conversations([*chats, *chats], folder, 512, tmp_path / "data", held_out=5)
    assert counts.duplicates == 40
    assert [split.name for split in splits] == ["train", "held_out/ar", "held_out/en"]
    for language in ("ar", "en"):
        own = [chat for chat in chats if chat.language == language][4::5]
        assert sorted(examples_in(tmp_path / "data/held_out" / language)) == sorted(expected(encoder, own))
    kept = list(read_conversations(tmp_path / "data/held_out.jsonl"))
    assert [(chat.messages, chat.language) for chat in kept] == [
        (chat.messages, chat.language)
        for number, chat in enumerate(chats)
        if sum(other.language == chat.language for other in chats[: number + 1]) % 5 == 0
    ]
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"train", "held_out", "held_out.jsonl"}
    params = json.loads((tmp_path / "data/train/data_params.json").read_text())
    assert params["setup"]["mode"] == "finetuning"
    assert params["dataset"]["use_vsl"] is True


def fitting(encoder, chat):
    return len(expected(encoder, [chat])[0][0]) - 1


@pytest.mark.parametrize("rule", [TooLong.DROP, TooLong.CUT_TURNS])
def test_an_example_that_is_too_long_is_left_out_or_loses_its_oldest_turns(encoder, folder, tmp_path, rule):
    short = conversation("Hi", "Hello")
    long = conversation("First?", "one " * 40, "Second?", "two " * 10, "Third?", "three " * 10)
    two = conversation("Second?", "two " * 10, "Third?", "three " * 10)
    length = fitting(encoder, two)
    assert length < fitting(encoder, long)
    _, counts = pack_conversations([short, long], folder, length, tmp_path / "data", too_long=rule, held_out=0)
    found = sorted(examples_in(tmp_path / "data/train"))
    if rule is TooLong.DROP:
        assert found == expected(encoder, [short])
        assert (counts.too_long, counts.cut_turns, counts.cut_responses) == (1, 0, 0)
    else:
        assert found == sorted(expected(encoder, [short, two]))
        assert (counts.too_long, counts.cut_turns, counts.cut_responses) == (0, 1, 0)


def test_conversations_that_are_equal_once_cut_are_one_and_held_out_as_they_were_cut(encoder, folder, tmp_path):
    end = ["Last?", "two " * 10]
    chats = [conversation(f"First {number}?", "one " * 40, *end) for number in range(3)]
    others = [conversation(f"Begin {number}?", "one " * 40, f"End {number}?", "two " * 10) for number in range(2)]
    kept = [chats[0], *others]
    cut = [conversation(*(message.content for message in chat.messages[2:])) for chat in kept]
    length = max(fitting(encoder, chat) for chat in cut)
    everything = [chats[0], others[0], chats[1], conversation(*end), others[1], chats[2]]
    splits, counts = pack_conversations(
        everything, folder, length, tmp_path / "data", too_long=TooLong.CUT_TURNS, held_out=2
    )
    assert (counts.read, counts.duplicates, counts.too_long) == (6, 3, 0)
    found = [example for split in splits for example in examples_in(tmp_path / "data" / split.name)]
    assert sorted(found) == sorted(expected(encoder, cut))
    written = list(read_conversations(tmp_path / "data/held_out.jsonl"))
    assert written
    assert sorted(examples_in(tmp_path / "data/held_out/en")) == sorted(expected(encoder, written))
    assert sum(split.n_bytes for split in splits) == sum(
        len(render(chat.messages, chat.language).text.encode()) for chat in cut
    )


def test_responses_that_are_equal_once_cut_are_one(encoder, folder, tmp_path):
    chats = [conversation("Count.", "one two three four five six " + last) for last in ("seven eight", "ten eleven")]
    length = fitting(encoder, conversation("Count.", "one two three"))
    _, counts = pack_conversations(chats, folder, length, tmp_path / "data", too_long=TooLong.CUT_RESPONSE, held_out=0)
    assert (counts.duplicates, counts.cut_responses) == (1, 1)
    assert len(list(examples_in(tmp_path / "data/train"))) == 1


def test_a_response_is_cut_where_the_row_ends(encoder, folder, tmp_path):
    chat = conversation("Count.", "one two three four five six seven eight nine ten")
    whole = expected(encoder, [chat])[0]
    length = len(whole[0]) - 4
    _, counts = pack_conversations([chat], folder, length, tmp_path / "data", too_long=TooLong.CUT_RESPONSE, held_out=0)
    assert list(examples_in(tmp_path / "data/train")) == [tuple(part[: length + 1] for part in whole)]
    assert counts.cut_responses == 1


def test_nothing_is_left_of_a_run_that_fails(folder, tmp_path):
    def breaking():
        yield conversation("a", "b")
        raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        pack_conversations(breaking(), folder, 512, tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_the_files_have_the_model_zoo_s_layout(folder, tmp_path):
    pack_conversations(read_conversations(sample_conversations_path()), folder, 512, tmp_path / "data")
    with h5py.File(tmp_path / "data/train/output_chunk_000000.h5") as file:
        assert file["data"].shape[1:] == (5, 512)
        assert file["data"].dtype == np.int32
        assert file.attrs["n_examples"] == len(file["data"])


def test_ids_of_a_tokenizer_may_have_gaps(tmp_path):
    folder = with_gap(tmp_path / "tokenizer")
    pack_conversations([conversation("a", "a xaxax")], folder, 512, tmp_path / "data", held_out=0)
    ((ids, _),) = examples_in(tmp_path / "data/train")
    assert max(ids) == 5000
    assert recorded_vocabulary(tmp_path / "data/train") == 5001
