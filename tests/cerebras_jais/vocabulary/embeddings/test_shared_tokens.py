"""Tokens of a byte-level and of a SentencePiece-style tokenizer are found by their text.

Contract: a segmentation without a banned token is that of `tokenizers` where none is banned; special tokens, halves of
letters and control characters are shared with nothing; each refusal is one line that names the file.
"""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from cerebras_jais.vocabulary.embeddings.shared_tokens import new_tokens, read_vocabulary, shared_tokens, sources_of
from cerebras_jais.vocabulary.errors import VocabularyError
from tests.cerebras_jais.vocabulary.embeddings.examples import (
    write_base_tokenizer,
    write_donor_tokenizer,
    write_extended,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    base = write_base_tokenizer(folder / "base")
    return {
        "base": base,
        "donor": write_donor_tokenizer(folder / "donor"),
        "extended": write_extended(folder / "extended", base, ["السلام", " the سلام", " the"]),
    }


@pytest.fixture(scope="module")
def vocabularies(folders):
    return {name: read_vocabulary(folder) for name, folder in folders.items()}


@pytest.mark.parametrize("name", ["base", "donor"])
@given(text=st.text(max_size=20) | st.sampled_from(["the following", "السلام عليكم", " in  the"]))
def test_a_segmentation_is_that_of_the_library(folders, vocabularies, name, text):
    text = text.encode("utf-8", errors="ignore").decode()
    bare = Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    spelled = text.replace(" ", "▁")
    if name == "donor":
        spelled = "".join(piece for piece, _ in bare.pre_tokenizer.pre_tokenize_str(text))
        bare.pre_tokenizer = None
    bare.normalizer = None
    expected = [token.id for token in bare.model.tokenize(spelled)] if spelled else []
    assert list(vocabularies[name].segment(text.encode())) == expected


def test_shared_tokens_decode_to_one_text(folders, vocabularies):
    base, donor = vocabularies["base"], vocabularies["donor"]
    base_ids, donor_ids = shared_tokens(base, donor)
    assert len(base_ids) > 200
    assert len(set(base_ids.tolist())) == len(base_ids) == len(set(donor_ids.tolist()))
    decoders = {name: Tokenizer.from_file(str(folders[name] / "tokenizer.json")) for name in ("base", "donor")}
    for own, other in zip(base_ids.tolist(), donor_ids.tolist(), strict=True):
        text = decoders["donor"].decode([other], skip_special_tokens=False)
        spelled = decoders["base"].id_to_token(own)
        assert text.replace(" ", "▁") == spelled or spelled == f"<0x{ord(text):02X}>"


def test_what_no_text_trains_is_not_shared(vocabularies):
    base, donor = vocabularies["base"], vocabularies["donor"]
    shared = set(shared_tokens(base, donor)[0].tolist())
    assert base.pieces["<0x0A>"] in shared  # Llama-2 has no other line end
    assert not shared & {base.pieces[piece] for piece in ("<s>", "</s>", "<unk>", "<0x00>", "<0xD8>", "<0x61>")}


def test_a_banned_token_is_spelled_by_smaller_ones(vocabularies):
    base = vocabularies["base"]
    the = base.pieces["▁the"]
    assert base.segment(b" the") == (the,)
    pieces = base.segment(b" the", without=the)
    assert the not in pieces
    assert b"".join(base.texts[number] for number in pieces) == b" the"
    assert base.segment(b"a", without=base.pieces["a"]) == (base.pieces["<0x61>"],)
    donor = vocabularies["donor"]
    assert donor.segment(b"a", without=donor.pieces["a"]) == ()


def test_new_tokens_come_from_the_token_with_their_text_or_from_their_pieces(vocabularies):
    base, donor, extended = (vocabularies[name] for name in ("base", "donor", "extended"))
    new = new_tokens(base, extended)
    assert new == list(range(base.size, base.size + 2))  # the base has " the"
    found = sources_of(new, extended, donor)
    assert [b"".join(donor.texts[number] for number in pieces) for pieces in found.values()] == [
        "السلام".encode(),
        " the سلام".encode(),
    ]


def test_an_extended_tokenizer_keeps_the_ids_of_the_base(folders, vocabularies, tmp_path):
    content = json.loads((folders["extended"] / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = content["model"]["vocab"]
    pieces["▁the"], pieces["السلام"] = pieces["السلام"], pieces["▁the"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(VocabularyError, match=r"tokenizer\.json: the token '▁the' has the id \d+, but \d+ in"):
        new_tokens(vocabularies["base"], read_vocabulary(tmp_path))
    with pytest.raises(VocabularyError, match="has no token beyond those of"):
        new_tokens(vocabularies["base"], vocabularies["base"])


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (
            Tokenizer(models.Unigram([("a", -1.0)])),
            r"is a Unigram tokenizer: .* only byte-pair encoding \(BPE\) will do",
        ),
        (Tokenizer(models.BPE({"a": 0}, [])), "neither byte-level nor in the way of SentencePiece"),
    ],
    ids=["unigram", "neither"],
)
def test_other_tokenizers_are_refused(tmp_path, tokenizer, said):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(VocabularyError, match=said):
        read_vocabulary(tmp_path)


def test_a_token_of_endless_text_has_no_counterpart(folders, tmp_path):
    extended = write_extended(tmp_path / "long", folders["base"], ["ب" * 100_000])
    vocabulary = read_vocabulary(extended)
    (number,) = new_tokens(read_vocabulary(folders["base"]), vocabulary)
    assert sources_of([number], vocabulary, read_vocabulary(folders["donor"])) == {number: ()}


def test_ids_are_int64(vocabularies):
    assert all(ids.dtype == np.int64 for ids in shared_tokens(vocabularies["base"], vocabularies["donor"]))
