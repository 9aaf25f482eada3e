"""Text comes piece by piece as the tokenizer decodes it whole, and ends before a stop string.

Contract: 3,000 sequences of random ids, and real text, give what the tokenizer decodes, for both kinds; no part of
valid text has a replacement character; a stop string is found wherever tokens are cut.
"""

import random

import pytest

from cerebras_jais.chat.detokenize import Detokenizer, StopStrings, token_bytes
from cerebras_jais.data.documents import read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import vocabulary_size
from cerebras_jais.encoding import encode_texts
from tests.chat_tokenizers import TOKENIZERS


def parts(table, ids):
    detokenizer = Detokenizer(table, at_start=True)
    return [*(detokenizer.add(token) for token in ids), detokenizer.end()]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_3000_sequences_of_random_ids_decode_as_the_tokenizer_decodes_them(family):
    tokenizer = TOKENIZERS[family]()
    table, size, draw = token_bytes(tokenizer), vocabulary_size(tokenizer), random.Random(0)
    for _ in range(3000):
        ids = [draw.randrange(size) for _ in range(draw.randrange(1, 40))]
        assert "".join(parts(table, ids)) == tokenizer.decode(ids), ids


@pytest.mark.parametrize("family", TOKENIZERS)
def test_text_comes_without_replacement_characters(family):
    tokenizer = TOKENIZERS[family]()
    table = token_bytes(tokenizer)
    texts = [document.text for document in read_documents(sample_corpus_path())] + ["مُحَمَّد 👨‍👩‍👧 中文。 é"]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        found = parts(table, ids)
        assert not [part for part in found if "\ufffd" in part]
        assert "".join(found) == tokenizer.decode(ids) == text


def test_a_stop_string_ends_the_text_wherever_it_is_cut():
    draw = random.Random(1)
    for _ in range(3000):
        text = "".join(draw.choice("aab") for _ in range(20))
        stops = ["".join(draw.choice("ab") for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(1, 3))]
        cuts = sorted(draw.sample(range(1, 20), draw.randrange(0, 10)))
        watch, said = StopStrings(stops), ""
        for start, end in zip([0, *cuts], [*cuts, 20], strict=True):
            said += watch.add(text[start:end])
            if watch.stopped:
                break
        said += watch.end()
        first = min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))
        assert said == text[:first] or (watch.stopped and not any(stop in said for stop in stops))
        assert watch.stopped == any(stop in text for stop in stops)
