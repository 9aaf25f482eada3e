"""A tokenizer extended by a donor's tokens.

Contract: the base's ids stay, and its tokens of every text without a character of the script, code and runs of spaces
among them; a text decodes to what the base gives; tokens stand where their text stands; every new id is reached; the
number of new ids is the one asked for; time grows with the length of a text; new merges stand before the base's runs of
▁; the base's scores are copied; tokenizer.model, if `sentencepiece` is there, gives the same ids; AutoTokenizer loads
the same. With a corpus those it uses most are taken. Other tokenizers are refused.
"""

import json
import random
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from cerebras_jais.data.documents import Document
from cerebras_jais.encoding import HARD_TEXTS, encode_texts
from cerebras_jais.vocabulary.bpe import Symbols, read_bpe
from cerebras_jais.vocabulary.choose import count_runs, tokens_of_script, uses
from cerebras_jais.vocabulary.errors import VocabularyError
from cerebras_jais.vocabulary.extend import extend, write_extension
from cerebras_jais.vocabulary.model_file import NORMAL, ScoredPiece, read_model_file
from cerebras_jais.vocabulary.scripts import scripts_of
from cerebras_jais.vocabulary.splice import Reason
from tests.cerebras_jais.data.clean.corpora import every_corpus, texts_of
from tests.cerebras_jais.vocabulary.bases import (
    RUN_SCORE,
    arabic_donor,
    assert_decodes_alike,
    assert_offsets_are_right,
    byte_level_base,
    hard_texts,
    learned_pieces,
    sample,
    sentencepiece_base,
    shuffled_words,
    write_llama,
)
from tests.marks import slow_except

ARABIC = scripts_of(["arabic"])
ROOM = 700
BASES = {
    "llama": lambda folder: write_llama(folder, learned_pieces()),
    "sentencepiece": sentencepiece_base,
    "byte-level": byte_level_base,
}
CODE = "def f(x):\n\tif x  !=   0:\n        return {'a': [1, 2.5e-3]}  # done\n\n\n"


@pytest.fixture(scope="module")
def donor(tmp_path_factory):
    return read_bpe(arabic_donor(tmp_path_factory.mktemp("donor") / "donor"))


@pytest.fixture(scope="module", params=slow_except(["llama"], BASES))
def extension(request, tmp_path_factory, donor):
    base = read_bpe(BASES[request.param](tmp_path_factory.mktemp("base") / "base"), to_extend=True)
    return extend(base, tokens_of_script(donor, base, ARABIC), ROOM)


@pytest.fixture(scope="module")
def written(extension, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "extended"
    write_extension(extension, folder, {})
    return folder


def both(extension, texts):
    """The ids by the base and by the extended tokenizer."""
    pair = (extension.base.tokenizer, extension.tokenizer.tokenizer)
    return zip(*(encode_texts(tokenizer, texts) for tokenizer in pair), strict=True)


def without_script(text):
    return "".join(char for char in text if not any(char in piece for piece in LETTERS))


LETTERS = {chr(code) for low, high in ((0x600, 0x700), (0x750, 0x780), (0x8A0, 0x900)) for code in range(low, high)}


def test_exactly_so_many_ids_are_new_and_each_is_reached_from_its_own_text(extension):
    assert extension.tokenizer.entries == extension.base.entries + ROOM == extension.base.entries + len(extension.added)
    assert extension.unreachable == []
    assert extension.count(Reason.TOKEN) > ROOM / 2
    ids = extension.tokenizer.vocabulary
    assert [ids[piece] for piece in extension.added] == list(range(extension.base.entries, extension.tokenizer.entries))
    assert {piece: ids[piece] for piece in extension.base.vocabulary} == extension.base.vocabulary


@given(st.text(max_size=60))
@example(CODE)
def test_a_text_decodes_to_what_the_base_gives_and_without_the_script_has_its_ids(extension, text):
    assert_decodes_alike(extension, text)
    plain = without_script(text)
    ((before, after),) = both(extension, [plain])
    assert before == after


def test_texts_of_the_base_keep_their_ids(extension):
    draw = random.Random(1)
    texts = [document.text for document in [*sample("en"), *sample("code")]]
    texts = [without_script(text) for text in [*texts, *HARD_TEXTS]]
    texts += ["".join(draw.choices(string.printable, k=draw.randrange(1, 40))) for _ in range(10_000)]
    texts += [f"{' ' * n}x{' ' * n}\n{' ' * n}" for n in range(40)]
    assert [text for text, (before, after) in zip(texts, both(extension, texts), strict=True) if before != after] == []


@given(st.text(max_size=60) | st.text("السلامعليكم ‏؟،\n\tab<>é漢🙂", max_size=40))
@example("é السلام  عليكم\n؟")
@example(HARD_TEXTS[6])
@example(HARD_TEXTS[7])
def test_tokens_stand_where_their_text_stands(extension, text):
    assert_offsets_are_right(extension, text)


@pytest.mark.slow
@every_corpus
def test_real_text_keeps_its_ids_in_english_its_decoding_and_its_offsets(extension, corpus):
    english = [without_script(text) for text in texts_of(corpus, "en")]
    before, after = zip(*both(extension, english), strict=True)
    assert before == after
    for text in texts_of(corpus):
        assert_decodes_alike(extension, text)
        assert_offsets_are_right(extension, text)


@pytest.mark.slow
def test_a_text_of_100_000_letters_is_tokenised_without_a_break(extension):
    """The tokens of a text twice as long are twice as many; a square of the time would take minutes here."""
    word = "".join(sorted(sample("ar")[0].text.split(), key=len)[-20:])
    text = (word * (100_000 // len(word) + 1))[:100_000]
    (half, whole) = encode_texts(extension.tokenizer.tokenizer, [text[:50_000], text])
    assert len(whole) == pytest.approx(2 * len(half), rel=0.01)


def test_arabic_takes_fewer_tokens_and_words_of_letters_as_few_as_the_donors(extension, donor):
    words = [f" {word}" for word in " ".join(d.text for d in sample("ar")).split() if word.isalpha()]
    before, after, by_donor = (
        sum(map(len, tokenizer.segment(words))) for tokenizer in (extension.base, extension.tokenizer, donor)
    )
    assert after < before / 2
    assert by_donor < before / 2


def test_words_take_as_many_tokens_as_with_the_donor_where_all_its_tokens_are_taken(tmp_path, donor):
    base = read_bpe(BASES["llama"](tmp_path / "base"), to_extend=True)
    tokens = tokens_of_script(donor, base, ARABIC)
    with pytest.raises(VocabularyError, match=r"by [0-9]+ entries") as refused:
        extend(base, tokens, 50_000)
    most = int(str(refused.value).split(" entries")[0].split()[-1])
    extension = extend(base, tokens, most)
    words = [f" {word}" for word in " ".join(d.text for d in sample("ar")).split() if word.isalpha()]
    after, by_donor = (sum(map(len, tokenizer.segment(words))) for tokenizer in (extension.tokenizer, donor))
    assert after == pytest.approx(by_donor, rel=0.005)
    with pytest.raises(VocabularyError, match=f"give --add {most}, or a donor with more"):
        extend(base, tokens, most + 1)


def test_new_merges_stand_before_the_bases_runs_of_spaces_and_its_scores_are_copied(tmp_path, donor):
    base = read_bpe(BASES["llama"](tmp_path / "base"), to_extend=True)
    extension = extend(base, tokens_of_script(donor, base, ARABIC), 50)
    write_extension(extension, tmp_path / "extended", {})
    runs = sum(1 for merge in base.merges if not "".join(merge).strip("▁"))
    assert runs > 3
    assert extension.tokenizer.merges[-runs:] == base.merges[-runs:]
    assert extension.tokenizer.merges[: len(base.merges) - runs] == base.merges[:-runs]
    before = read_model_file(tmp_path / "base" / "tokenizer.model").pieces
    after = read_model_file(tmp_path / "extended" / "tokenizer.model").pieces
    assert after[: len(before)] == before
    new = [piece.score for piece in after[len(before) :]]
    assert new == sorted(new, reverse=True)
    assert len(set(new)) == 50
    assert RUN_SCORE < new[-1] < new[0] < min(p.score for p in before if p.type == NORMAL and p.score > RUN_SCORE)
    assert [piece.piece for piece in after[len(before) :]] == list(extension.added)


def test_tokenizer_model_gives_the_ids_of_tokenizer_json(written, extension):
    """On 10,000 texts: Arabic, pieces joined at random, runs of spaces, characters that are spelled in bytes."""
    library = pytest.importorskip("sentencepiece")
    if extension.base.symbols is Symbols.BYTES:
        pytest.skip("a byte-level base has no tokenizer.model")
    processor = library.SentencePieceProcessor(model_file=str(written / "tokenizer.model"))
    texts = hard_texts(extension)
    assert len(texts) >= 10_000
    ids = encode_texts(extension.tokenizer.tokenizer, texts)
    assert [text for text, a, b in zip(texts, ids, processor.encode(texts), strict=True) if a != b] == []


def test_auto_tokenizer_loads_the_same(written, extension):
    transformers = pytest.importorskip("transformers")
    loaded = transformers.AutoTokenizer.from_pretrained(written)
    assert len(loaded) == extension.tokenizer.entries
    texts = [*hard_texts(extension, 300), "  two spaces first", CODE]
    assert loaded(texts, add_special_tokens=False)["input_ids"] == encode_texts(
        Tokenizer.from_file(str(written / "tokenizer.json")), texts
    )
    assert set(loaded("a")) == {"input_ids", "attention_mask"}
    assert loaded.eos_token_id == extension.base.tokenizer.token_to_id(loaded.eos_token)


def test_the_tokens_that_a_corpus_uses_most_make_it_shorter_than_the_donors_first(tmp_path, donor):
    base = read_bpe(BASES["llama"](tmp_path / "base"), to_extend=True)
    tokens = tokens_of_script(donor, base, ARABIC)
    words = count_runs(sample("ar")[9:12], tokens)
    chosen, first = extend(base, tokens, 200, words), extend(base, tokens, 200)
    counts, others = (uses(extension.tokenizer, words) for extension in (chosen, first))
    assert sum(counts.values()) < sum(others.values())
    unused = [sum(not counts[piece.replace("▁", " ")] for piece in extension.added)
              for extension, counts in ((chosen, counts), (first, others))]  # fmt: skip
    assert unused[0] < unused[1]
    assert len(chosen.added) == 200
    assert chosen.unreachable == []


def test_the_work_told_is_all_of_it(tmp_path, donor):
    base = read_bpe(BASES["llama"](tmp_path / "base"), to_extend=True)
    looked_at, dropped = [], []
    tokens = tokens_of_script(donor, base, ARABIC, progress=lambda *told: looked_at.append(told))
    words = count_runs(sample("ar")[9:12], tokens)
    extend(base, tokens, 200, words, lambda *told: dropped.append(told))
    assert len(dropped) > 2
    for told in (looked_at, dropped):
        assert {total for _, total in told} == {told[0][1]}
    assert sum(done for done, _ in looked_at) == looked_at[0][1] == len(donor.vocabulary)
    assert sum(done for done, _ in dropped) >= dropped[0][1]  # the last round may drop one more than it must


def test_an_added_token_of_the_base_keeps_its_id_and_has_a_place_in_the_model(tmp_path, donor):
    """Chat models often have a token for padding behind the vocabulary, in tokenizer.json alone."""
    folder = BASES["llama"](tmp_path / "base")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    base = read_bpe(folder, to_extend=True)
    extension = extend(base, tokens_of_script(donor, base, ARABIC), 10)
    write_extension(extension, tmp_path / "extended", {})
    assert extension.tokenizer.tokenizer.token_to_id("<pad>") == first
    pieces = read_model_file(tmp_path / "extended" / "tokenizer.model").pieces
    assert pieces[first] == ScoredPiece("<pad>", 0.0, 3)
    assert pieces[first + 1].piece == next(iter(extension.added))


# ---- what is refused ------------------------------------------------------------------------------------------------


def saved(folder, tokenizer):
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, True), "is a Unigram tokenizer: it chooses"),
        (lambda: models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"), "is a WordPiece tokenizer"),
        (lambda: models.BPE({"a": 0, "b": 1}, []), "neither byte-level nor in the way of SentencePiece"),
        (lambda: models.BPE({"a": 0, "▁": 1}, []), "has no byte fallback"),
        (lambda: models.BPE({"a": 0, "▁": 1}, [], end_of_word_suffix="</w>"), "marks the parts of words"),
    ],
    ids=["unigram", "wordpiece", "plain characters", "no byte fallback", "suffix"],
)
def test_other_tokenizers_are_refused_as_a_base(tmp_path, model, said):
    with pytest.raises(VocabularyError, match=said) as refused:
        read_bpe(saved(tmp_path / "t", Tokenizer(model())), to_extend=True)
    assert str(tmp_path / "t" / "tokenizer.json") in str(refused.value)


def test_a_folder_with_tokenizer_model_alone_is_refused_with_the_way_to_make_the_other(tmp_path):
    folder = BASES["llama"](tmp_path / "base")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(VocabularyError, match="save_pretrained"):
        read_bpe(folder, to_extend=True)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x08", "no model of SentencePiece, or damaged"),
        (b"", "has no pieces"),
        (bytes([1 << 3 | 2, 3, 1 << 3 | 2, 1, 97]), "is no model of byte-pair encoding"),
        (bytes([1 << 3 | 2, 3, 1 << 3 | 2, 1, 97, 2 << 3 | 2, 2, 3 << 3, 2]), "its entry 0 is 'a', which has the id"),
    ],
    ids=["damaged", "empty", "unigram", "another's"],
)
def test_a_tokenizer_model_that_does_not_fit_is_refused(tmp_path, donor, content, said):
    folder = BASES["llama"](tmp_path / "base")
    (folder / "tokenizer.model").write_bytes(content)
    base = read_bpe(folder, to_extend=True)
    with pytest.raises(VocabularyError, match=said) as refused:
        extend(base, tokens_of_script(donor, base, ARABIC), 10)
    assert str(folder / "tokenizer.model") in str(refused.value)


def test_more_entries_than_a_model_can_have_are_refused(tmp_path, donor):
    base = read_bpe(BASES["llama"](tmp_path / "base"), to_extend=True)
    with pytest.raises(VocabularyError, match="a model can have 512,000"):
        extend(base, [], 511_999)


def test_a_config_that_is_no_object_is_refused_and_nothing_is_left(tmp_path, donor):
    folder = BASES["llama"](tmp_path / "base")
    (folder / "tokenizer_config.json").write_text(json.dumps([1]))
    base = read_bpe(folder, to_extend=True)
    extension = extend(base, tokens_of_script(donor, base, ARABIC), 10)
    with pytest.raises(VocabularyError, match="is no object of JSON"):
        write_extension(extension, tmp_path / "extended", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_the_rarest_words_are_dropped_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr("cerebras_jais.vocabulary.choose.MOST_WORDS", 5)
    documents = [Document("اب اب اب " + " ".join(f"ا{'ب' * n}" for n in range(2, 20)), "ar", "x")]
    assert count_runs(documents, ["اب"]) == {" اب": 3}


def test_shuffled_words_are_the_same_each_time():
    assert list(shuffled_words(2)) == list(shuffled_words(2))
