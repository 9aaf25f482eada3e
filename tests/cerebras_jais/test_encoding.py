"""Contract: both engines give the ids of `tokenizers` with text as data; one that differs stops the run at the text;
where the fast one is not installed, or does not know a tokenizer, the other does its work."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.encoding import COMPARED_EVERY, HARD_TEXTS, Encoder, Engine, encode_texts
from cerebras_jais.errors import UserError
from tests.chat_tokenizers import TOKENIZERS
from tests.fast_engine import stand_in

TEXTS = st.lists(
    st.text(st.sampled_from("ab لاإُّـ١\n\t  <|>/s▁é😀中'٪") | st.characters(exclude_categories=["Cs"]), max_size=40)
    | st.sampled_from(["<|endoftext|>", "</s>", "<s> x", *HARD_TEXTS]),
    max_size=6,
)


@pytest.fixture(params=[Engine.TOKENIZERS, Engine.FASTOKENS])
def engine(request):
    if request.param is Engine.FASTOKENS:
        pytest.importorskip("fastokens")
    return request.param


@pytest.mark.parametrize("family", TOKENIZERS)
def test_both_engines_give_the_ids_of_tokenizers(engine, family):
    encoder = Encoder(TOKENIZERS[family](), engine)
    assert encoder.engine is engine

    @settings(max_examples=150, deadline=None)
    @given(TEXTS)
    def agrees(texts):
        found = encoder.encode(texts)
        assert (found.ids.dtype, found.ends.dtype) == (np.uint32, np.int64)
        assert [ids.tolist() for ids in found.split()] == encode_texts(TOKENIZERS[family](), texts)

    agrees()


def test_what_the_file_stores_and_text_spells_has_no_effect(engine):
    from tokenizers import Tokenizer

    plain = TOKENIZERS["jais"]()
    stored = Tokenizer.from_str(plain.to_str())
    stored.enable_truncation(3)
    stored.enable_padding(length=64, pad_token="<|endoftext|>")
    stored.model.dropout = 0.9
    texts = ["a<|endoftext|>b" * 9, "", "سلام عليكم"]
    found = Encoder(Tokenizer.from_str(stored.to_str()), engine).encode(texts)
    assert 0 not in found.ids
    decoded = [plain.decode(ids.tolist(), skip_special_tokens=False) for ids in found.split()]
    assert decoded == texts


def test_an_engine_that_gets_a_hard_text_wrong_is_refused_before_the_start(monkeypatch):
    stand_in(monkeypatch, lambda text, ids: ids[:-1] if "\u200c" in text else ids)
    with pytest.raises(UserError, match=r"before the start: fastokens gives .*--engine tokenizers"):
        Encoder(TOKENIZERS["jais"]())
    assert Encoder(TOKENIZERS["jais"](), Engine.TOKENIZERS).encode(["a"]).ids.tolist()


def test_a_difference_later_stops_the_run_at_the_text_that_is_compared(monkeypatch):
    stand_in(monkeypatch, lambda text, ids: [*ids, 5] if text == "wrong" else ids)
    encoder = Encoder(TOKENIZERS["jais"]())
    assert encoder.engine is Engine.FASTOKENS
    with pytest.raises(UserError, match=r"^file 0: fastokens"):
        encoder.encode(["wrong"], "file {}".format)
    encoder.encode(["right", *["wrong"] * (COMPARED_EVERY - 2)])
    encoder.encode(["wrong"])
    with pytest.raises(UserError, match=r"^file 0: fastokens gives \d+ token ids for 'wrong'"):
        encoder.encode(["wrong", "right"], "file {}".format)
    encoder = Encoder(TOKENIZERS["jais"]())
    encoder.encode(["right"] * 7)
    with pytest.raises(UserError, match=rf"^file {COMPARED_EVERY - 7}: "):
        encoder.encode([*["right"] * (COMPARED_EVERY - 7), "wrong"], "file {}".format)


def test_without_the_fast_engine_the_other_one_encodes(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert Encoder(TOKENIZERS["jais"]()).engine is Engine.TOKENIZERS
    with pytest.raises(UserError, match=r"not installed; pip install 'cerebras-jais\[pipeline\]'"):
        Encoder(TOKENIZERS["jais"](), Engine.FASTOKENS)


def test_a_tokenizer_that_the_fast_engine_does_not_know_is_encoded_by_the_other():
    pytest.importorskip("fastokens")
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"one": 0}, unk_token="one"))
    assert Encoder(words).engine is Engine.TOKENIZERS
    with pytest.raises(UserError, match=r"fastokens cannot read this tokenizer \(.*WordLevel"):
        Encoder(words, Engine.FASTOKENS)
