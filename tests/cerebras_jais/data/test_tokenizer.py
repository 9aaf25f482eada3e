"""Contract: the tokenizer spells every text back exactly, adds nothing, has end of text as token 0, and loads with
transformers as what it is."""

import json
import math

import pytest

from cerebras_jais.data.text import DataError, Document, read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import (
    bits_per_byte,
    end_of_text_id,
    load_tokenizer,
    save_tokenizer,
    tokens_per_word,
    train_tokenizer,
)

HARD_TEXTS = [
    "بِسْمِ اللَّهِ الرَّحْمَٰنِ",
    "ٱلْكِتَـٰبُ ﷺ ﻻ ـــ",
    "من ٠١٢٣٤٥٦٧٨٩ إلى 0123456789",
    "family 👨‍👩‍👧‍👦 and 🇸🇦 flags",
    "نص with خليط of كلمات.",
    "  leading, \t tabs\r\n\n\n and trailing  ",
    "مي\u200cخواهم \u200f\u202bbidi\u202c \ufeff",
    "e\u0301 é 漢字 \U0001f9ff \x00",
    "I'll don't we've , . don't ?",
]


@pytest.fixture(scope="module")
def documents():
    return list(read_documents(sample_corpus_path()))


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_tokenizer(documents, 2000)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_every_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert 0 not in ids


def test_corpus_round_trips_and_nothing_is_normalised(tokenizer, documents):
    for document in documents:
        assert tokenizer.decode(tokenizer.encode(document.text).ids) == document.text
    assert tokenizer.encode("كتَب").ids != tokenizer.encode("كتب").ids


def test_end_of_text_is_token_0_and_parsed_in_text(tokenizer):
    assert tokenizer.get_vocab_size() == 2000
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert tokenizer.encode("a<|endoftext|>b").ids.count(0) == 1


def test_training_is_deterministic(documents, tokenizer):
    assert train_tokenizer(documents, 2000).to_str() == tokenizer.to_str()


def test_too_small_a_vocabulary_is_refused(documents):
    with pytest.raises(DataError, match="257"):
        train_tokenizer(documents, 256)
    assert train_tokenizer(documents[:1], 257).get_vocab_size() == 257


@pytest.mark.parametrize("model_type", [None, "llama", "gpt2"])
def test_auto_tokenizer_gives_the_same_ids(tokenizer, tmp_path, model_type):
    """Also beside the config.json of a model whose own tokenizer class differs."""
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path, model_max_length=512)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id) == (0, 0, 0, 0)
    assert loaded.model_max_length == 512
    assert len(loaded) == 2000
    for text in HARD_TEXTS:
        ids = tokenizer.encode(text).ids
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids) == text


def test_saved_tokenizer_loads_without_transformers(tokenizer, tmp_path):
    assert sorted(p.name for p in save_tokenizer(tokenizer, tmp_path / "t", 128).iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert load_tokenizer(tmp_path / "t").to_str() == tokenizer.to_str()
    assert end_of_text_id(tokenizer, tmp_path / "t") == 0
    (tmp_path / "t" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="not a readable tokenizer"):
        load_tokenizer(tmp_path / "t")
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(tmp_path)


def test_fertility_counts_tokens_over_words(tokenizer):
    document = Document("كتاب book", None, "")
    assert tokens_per_word(tokenizer, [document]) == len(tokenizer.encode("كتاب book").ids) / 2
    assert math.isnan(tokens_per_word(tokenizer, []))


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_8():
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)
