"""Contract: the tokenizer spells every text back exactly, adds nothing, has end of text as token 0, and loads with
transformers as what it is. Text is data: a special token written in it is spelled out, and what tokenizer.json stores
(truncation, padding, dropout) changes nothing."""

import json
import math
import string

import pytest

from cerebras_jais.data.documents import DataError, Document, read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import (
    bits_per_byte,
    check_round_trip,
    encode_document,
    end_of_text_id,
    load_tokenizer,
    save_tokenizer,
    tokens_per_word,
    train_tokenizer,
)
from cerebras_jais.encoding import encode_texts

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


def test_end_of_text_is_token_0_and_spelled_out_in_text(tokenizer):
    assert tokenizer.get_vocab_size() == 2000
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    (ids,) = encode_texts(tokenizer, ["a<|endoftext|>b"])
    assert 0 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|endoftext|>b"


def llama_tokenizer(directory):
    """A tokenizer.json of Llama-2's kind: BPE with byte fallback, a space put first, `<s>` and `</s>` special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnop<>/"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names[:3]])
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.mark.parametrize("kind", ["metaspace", "prefix space"])
@pytest.mark.parametrize("text", ["  indented", "    code\n", "snake▁case", " one", "plain", "\n", "▁"])
def test_a_space_put_first_or_written_as_a_low_line_loses_no_text(kind, text):
    """SentencePiece tokenizers as transformers 5 saves them, and byte-level ones that put a space first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if kind == "metaspace":
        pieces = {piece: number for number, piece in enumerate(["<unk>", *sorted(set(f"▁ \n{string.ascii_letters}"))])}
        tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        pieces = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
    assert encode_document(tokenizer, Document(text, None, "here"), 9999)
    with pytest.raises(DataError, match="do not decode"):
        check_round_trip(tokenizer, Document(f"{text}x", None, "here"), encode_texts(tokenizer, [text])[0])


@pytest.mark.parametrize("text", ["<s>a</s>", "</s>", "a b </s><unk> ب", " a  b "])
def test_special_tokens_of_llama_are_spelled_out_in_text(tmp_path, text):
    tokenizer = load_tokenizer(llama_tokenizer(tmp_path / "llama"))
    (ids,) = encode_texts(tokenizer, [text])
    assert not {0, 1, 2} & set(ids)
    assert encode_document(tokenizer, Document(text, None, ""), 2) == ids


def test_stored_truncation_padding_and_dropout_change_nothing(tokenizer, documents, tmp_path):
    from tokenizers import Tokenizer

    save_tokenizer(tokenizer, tmp_path, 512)
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    stored.enable_truncation(8)
    stored.enable_padding(length=64, pad_token="<|endoftext|>")
    stored.model.dropout = 0.9
    stored.save(str(tmp_path / "tokenizer.json"))
    texts = [document.text for document in documents]
    assert encode_texts(load_tokenizer(tmp_path), texts) == encode_texts(tokenizer, texts)


def test_text_that_becomes_the_end_of_text_is_refused_by_its_place(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path, 512)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"special": true', '"special": false'), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl:3: .*end-of-text token.*special: true"):
        encode_document(load_tokenizer(tmp_path), Document("a<|endoftext|>b", None, "a.jsonl:3"), 0)


def test_a_tokenizer_that_loses_text_is_refused_where_it_does():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    lossy = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "two": 2, "two²": 3}, unk_token="<unk>"))
    lossy.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(DataError, match=r"here: .*'three' at character 4 becomes '<unk>'"):
        encode_document(lossy, Document("one three", None, "here"), 9)
    assert encode_document(lossy, Document("one two", None, "here"), 9) == [1, 2]
    lossy.normalizer = normalizers.NFKC()  # a text and its normal form count as the same
    lossy.model = models.WordLevel({"<unk>": 0, "one": 1, "two2": 2}, unk_token="<unk>")
    assert encode_document(lossy, Document("one two²", None, "here"), 9) == [1, 2]


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
        assert set(loaded(text)) == {"input_ids", "attention_mask"}  # Llama's `generate` refuses any other
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
