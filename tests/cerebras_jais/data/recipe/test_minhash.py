"""MinHash signatures and the words they are made of.

Contract: the files of the first stage are those of datatrove, byte for byte, where the words are equal; its second
and third stage find planted near duplicates in them and no others; under different salts nothing meets; texts are
simplified as datatrove's `simplify_text` does.
"""

import random

import numpy as np
import pytest
import xxhash
from datatrove.data import Document
from datatrove.pipeline.dedup import minhash as theirs
from datatrove.utils.text import simplify_text
from hypothesis import given
from hypothesis import strategies as st

from cerebras_jais.data.recipe.minhash import MinHash, Signatures, removed_documents, signatures
from cerebras_jais.data.recipe.words import run_hashes, simplified
from tests.cerebras_jais.data.recipe.runs import documents

SAMPLE = [document.text for document in documents()]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "كلمة", "جملة", "نص"]


class WordsBySpace:
    """In place of spaCy: a simplified text has one space between its words."""

    def word_tokenize(self, text):
        """The words."""
        return text.split()


def write_ours(folder, shards, config):
    """Write the signatures of the texts of each shard."""
    for number, texts in enumerate(shards):
        found = Signatures(config)
        found.add(*signatures([simplified(text) for text in texts], config))
        found.write(folder, number)


def files(folder):
    """The content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.sig")}


@pytest.mark.parametrize("config", [MinHash(), MinHash(words=3, buckets=5, hashes=2)])
def test_the_files_are_those_of_datatrove(tmp_path, monkeypatch, config):
    monkeypatch.setattr(theirs, "load_word_tokenizer", lambda language: WordsBySpace())
    settings = theirs.MinhashConfig(n_grams=config.words, num_buckets=config.buckets, hashes_per_bucket=config.hashes)
    texts = [*SAMPLE, "too short", *SAMPLE[:3], "كلمة " * 200]
    stage = theirs.MinhashDedupSignature(str(tmp_path / "theirs"), config=settings)
    stage._hash_func = lambda run: xxhash.xxh64_intdigest(run.encode())  # datatrove 0.10.1 gives xxhash 4 a str
    stage.run((Document(text=text, id=str(n)) for n, text in enumerate(texts)), rank=2)
    write_ours(tmp_path / "ours", [[], [], texts], config)
    ours = {name: content for name, content in files(tmp_path / "ours").items() if "00002" in name}
    assert ours == files(tmp_path / "theirs")
    assert len(ours) == config.buckets


def test_datatroves_later_stages_find_near_duplicates(tmp_path):
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=300)) for _ in range(60)]
    changed = [text.replace("one two", "one and two", 1) for text in texts[:20]]
    write_ours(tmp_path / "signatures", [texts, [*changed, texts[30]]], MinHash())
    config = theirs.MinhashConfig()
    find = theirs.MinhashDedupBuckets(str(tmp_path / "signatures"), str(tmp_path / "pairs"), config=config)
    for bucket in range(config.num_buckets):
        find.run(None, bucket, config.num_buckets)
    theirs.MinhashDedupCluster(str(tmp_path / "pairs"), str(tmp_path / "clusters"), config=config).run(None, 0, 1)
    removed = [removed_documents(tmp_path / "clusters", shard).tolist() for shard in range(2)]
    assert sorted([*removed[0], *(number if number < 20 else 30 for number in removed[1])]) == [*range(20), 30]


def test_texts_under_different_salts_share_nothing():
    texts = [simplified(text) for text in SAMPLE]
    one, other = (signatures(texts, MinHash(), salt)[0] for salt in (0, 12345))
    assert not (one == other).any()


@given(st.text(st.sampled_from("aB 1,.5٣٫\t\n،؟!«»ـأإآةىمُحَمَّدé\u0301😀\u05b0\U0001e944"), max_size=60))
def test_a_text_is_simplified_as_datatrove_does(text):
    assert simplified(text).split() == simplify_text(text).split()


@given(st.lists(st.sampled_from(["a", "b", "كلمة"]), max_size=30), st.integers(1, 6))
def test_equal_runs_of_words_have_equal_hashes_and_others_do_not(words, length):
    hashes = run_hashes(" ".join(words), length)
    runs = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
    assert len(hashes) == len(runs)
    assert len(np.unique(hashes)) == len(set(runs))
