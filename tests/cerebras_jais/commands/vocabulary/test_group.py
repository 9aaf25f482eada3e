"""`cerebras-jais vocab extend` and `cerebras-jais tokens`.

Contract: `extend` writes a folder that can be loaded, with a report, whole or not at all, and says what it holds; wrong
input is one line that names the file or option; `tokens` shows each word with the pieces of each tokenizer in logical
order, each by itself for a terminal that turns Arabic.
"""

import json
from unittest.mock import ANY

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers

from cerebras_jais.cli import cli
from cerebras_jais.data.documents import detect_language
from cerebras_jais.errors import UserError
from cerebras_jais.vocabulary.bpe import read_bpe
from tests.cerebras_jais.vocabulary.bases import arabic_donor, byte_level_base, learned_pieces, write_llama


def said(*words, stdin=None):
    done = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False, input=stdin)
    assert done.exception is None, done.exception
    return done.stdout


def refused(*words, stdin=None):
    done = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False, input=stdin)
    assert isinstance(done.exception, UserError), done.exception
    assert "\n" not in str(done.exception)
    return str(done.exception)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base in the way of Llama-2 and a donor."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return write_llama(folder / "base", learned_pieces()), arabic_donor(folder / "donor")


def extend(folders, output, *words, add=300):
    return ["vocab", "extend", "--base", folders[0], "--donor", folders[1], "--add", add, "--output", output, *words]


def test_extend_writes_a_tokenizer_and_a_report(folders, tmp_path):
    output = tmp_path / "extended"
    shown = said(*extend(folders, output))
    names = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "fertility.md", "fertility.png"}
    assert {path.name for path in output.iterdir()} == names
    entries = [Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() for folder in (folders[0], output)]
    assert entries[1] == entries[0] + 300
    assert f"{entries[1]} entries: {entries[0]} of the base" in shown
    assert "300 of 300" in shown
    assert "  ar: " in shown and "  en: " in shown and "words in arabic letters" in shown
    table = [line.split(" | ") for line in (output / "fertility.md").read_text().splitlines()]
    (arabic,) = [[float(cell.strip(" |")) for cell in row[2:]] for row in table if row[0] == "| ar"]
    assert arabic[1] < arabic[0]
    assert (output / "fertility.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_writes_the_same_bytes(folders, tmp_path):
    for name in ("a", "b"):
        said(*extend(folders, tmp_path / name, add=60))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_corpus_and_a_script_choose_the_tokens(folders, tmp_path):
    donor = read_bpe(folders[1])
    texts = [text for text in map(donor.text_of, donor.vocabulary) if text and text.strip(" ").isalpha()]
    word = max((text for text in texts if detect_language(text) == "ar"), key=len)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(word)
    said(*extend(folders, tmp_path / "extended", "--corpus", corpus, add=60))
    assert read_bpe(tmp_path / "extended").segment([word]) == [[ANY]]
    assert "no token of the script cyrillic" in refused(*extend(folders, tmp_path / "c", "--script", "cyrillic"))
    assert "no character has a Unicode name" in refused(*extend(folders, tmp_path / "c", "--script", "klingon"))
    assert "goes with --script arabic alone" in refused(
        *extend(folders, tmp_path / "c", "--script", "cyrillic", "--only-arabic")
    )
    assert "would change" in refused(*extend(folders, tmp_path / "c", "--script", "latin"))
    assert not (tmp_path / "c").exists()


def test_tokens_with_persian_letters_are_left_out_on_demand(folders, tmp_path):
    """The donor has learnt peh, gaf and Farsi yeh as letters of their own."""
    donor = json.loads((folders[1] / "tokenizer.json").read_text())
    first = max(donor["model"]["vocab"].values()) + 1
    spelled = [pre_tokenizers.ByteLevel(False).pre_tokenize_str(letter)[0][0] for letter in "پگی"]
    donor["model"]["vocab"] |= {piece: first + number for number, piece in enumerate(spelled)}
    donor["model"]["merges"] += [list(piece) for piece in spelled]
    (tmp_path / "donor").mkdir()
    (tmp_path / "donor" / "tokenizer.json").write_text(json.dumps(donor))
    pair = (folders[0], tmp_path / "donor")
    said(*extend(pair, tmp_path / "all"))
    said(*extend(pair, tmp_path / "arabic", "--only-arabic"))
    every, arabic = (
        Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).get_vocab() for name in ("all", "arabic")
    )
    assert {"پ", "گ", "ی"} <= set(every)
    assert not {"پ", "گ", "ی"} & set(arabic)


def test_wrong_input_is_one_line_and_writes_nothing(folders, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("")
    assert f"{taken}: exists and is not an empty folder" in refused(*extend(folders, taken))
    out = tmp_path / "out"
    assert "by 0 entries; give a donor with others" in refused(*extend((folders[0], folders[0]), out))
    assert "can be read once" in refused(*extend(folders, out, "--corpus", "-", "--text", "-"))
    assert "--add 100000: the donor has" in refused(*extend(folders, out, add=100_000))
    assert f"{tmp_path / 'none'}: no such file" in refused(*extend((tmp_path / "none", folders[1]), out))
    unigram = tmp_path / "unigram"
    unigram.mkdir()
    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, True)).save(str(unigram / "tokenizer.json"))
    assert f"{unigram / 'tokenizer.json'}: is a Unigram" in refused(*extend((unigram, folders[1]), out))
    assert f"{unigram / 'tokenizer.json'}: is a Unigram" in refused(*extend((folders[0], unigram), out))
    base = tmp_path / "base"
    write_llama(base, learned_pieces())
    (base / "tokenizer.model").write_bytes(b"\x08")
    assert f"{base / 'tokenizer.model'}: is no model" in refused(*extend((base, folders[1]), out))
    assert "no such file" in refused(*extend(folders, out, "--text", tmp_path / "none.txt"))
    assert not out.exists()
    assert not list(tmp_path.glob(".*"))


def test_tokens_shows_each_word_with_the_pieces_of_each_tokenizer(folders, tmp_path):
    said(*extend(folders, tmp_path / "extended"))
    shown = said("tokens", "السلام hello\t漢", "--tokenizer", folders[0], "--tokenizer", tmp_path / "extended")
    lines = shown.splitlines()
    assert [line for line in lines if line.startswith("\u2068")] == [
        "\u2068السلام\u2069",
        "\u2068hello\u2069",
        "\u2068漢\u2069",
    ]
    assert shown.count("\u2068") == shown.count("\u2069")
    before, after = (int(line.split(": ")[1].split()[0]) for line in lines[-2:])
    assert after < before
    counts = [
        sum(int(line.split()[1]) for line in lines if line.startswith(f"  {name} "))
        for name in map(str, (folders[0], tmp_path / "extended"))
    ]
    assert counts == [before, after]
    assert "<0xE6>" in shown
    assert "\\t" in shown
    assert said("tokens", "-", "--tokenizer", folders[0], stdin="السلام") == said(
        "tokens", "السلام", "--tokenizer", folders[0]
    )


def test_tokens_takes_any_kind_of_tokenizer_and_refuses_an_empty_text(folders, tmp_path):
    Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("ab", -1.5)], 0, False)).save(
        str(tmp_path / "tokenizer.json")
    )
    shown = said("tokens", "abaQ", "--tokenizer", tmp_path)
    assert "\u2068ab\u2069 · \u2068a\u2069 · \u2068Q\u2069" in shown
    assert "TEXT is not UTF-8" in refused("tokens", "a\udcff", "--tokenizer", folders[0])
    assert "TEXT is empty" in refused("tokens", "  ", "--tokenizer", folders[0])
    assert "no such file" in refused("tokens", "a", "--tokenizer", tmp_path / "none")


def test_a_byte_level_base_has_no_tokenizer_model(folders, tmp_path):
    base = byte_level_base(tmp_path / "base")
    assert "no tokenizer.model, as the base has none" in said(*extend((base, folders[1]), tmp_path / "extended"))
