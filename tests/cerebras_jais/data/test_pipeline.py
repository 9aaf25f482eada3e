"""Contract: the verbs turn text into a tokenizer and packed data that decodes back to that text, all or nothing."""

import itertools
import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebras_jais.commands.data import data
from cerebras_jais.data.dataset import DataParameters, HDF5Samples
from cerebras_jais.data.documents import DataError, Document, read_documents, sample_corpus_path, split_held_out
from cerebras_jais.data.mixture import Source, mix
from cerebras_jais.data.pipeline import held_out_documents, pack_documents, pack_store
from cerebras_jais.data.shards import recorded_vocabulary
from cerebras_jais.data.show import END_SIGN, open_rows, read_rows
from cerebras_jais.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from tests.cerebras_jais.data.chat.examples import with_gap
from tests.cerebras_jais.data.stores import store_of


@pytest.fixture(scope="module")
def documents():
    return list(read_documents(sample_corpus_path()))


@pytest.fixture(scope="module")
def tokenizer_dir(documents, tmp_path_factory):
    return save_tokenizer(train_tokenizer(documents, 600), tmp_path_factory.mktemp("tokenizer"), 64)


def run(*arguments):
    return CliRunner().invoke(data, [str(argument) for argument in arguments], catch_exceptions=False)


def texts_of(directory, tokenizer, use_vsl):
    """The documents of packed data, put together again from its rows."""
    samples = HDF5Samples(directory, 1, use_vsl=use_vsl)
    rows = samples.read(np.arange(len(samples)))
    if not use_vsl:
        used = rows["attention_mask"] == 1
        stream = [int(rows["input_ids"][0, 0]), *rows["labels"][used].tolist()]
        ends = [i for i, token in enumerate(stream) if token == 0]
        return [tokenizer.decode(stream[a:b]) for a, b in zip([0, *[e + 1 for e in ends]], ends, strict=False)]
    texts = []
    for ids, mask, position in zip(rows["input_ids"], rows["attention_mask"], rows["position_ids"], strict=True):
        starts = [*np.flatnonzero((position == 0) & (mask == 1)).tolist(), int(mask.sum())]
        texts += [tokenizer.decode(ids[a:b].tolist()) for a, b in itertools.pairwise(starts)]
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("vsl", [False, True])
def test_packed_data_holds_every_document(documents, tokenizer_dir, tmp_path, vsl):
    splits = pack_documents(documents, tokenizer_dir, 2048, tmp_path / "packed", vsl=vsl, held_out=10)
    assert [split.name for split in splits] == ["train", "held_out/ar", "held_out/en"]
    training, held_out = split_held_out(documents, 10)
    tokenizer = load_tokenizer(tokenizer_dir)
    assert sorted(texts_of(tmp_path / "packed/train", tokenizer, vsl)) == sorted(d.text for d in training)
    for split in splits[1:]:
        own = [d.text for d in held_out if d.language == split.name[-2:]]
        assert sorted(texts_of(split.directory, tokenizer, vsl)) == sorted(own)
        assert (split.documents, split.n_bytes) == (len(own), sum(len(t.encode()) for t in own))
    assert [p.name for p in tmp_path.iterdir()] == ["packed"]
    params = json.loads((tmp_path / "packed/train/data_params.json").read_text(encoding="utf-8"))
    assert params["setup"]["output_dir"] == "train"
    assert params["setup"]["data"]["source"] == sample_corpus_path().name


@pytest.mark.parametrize("vsl", [False, True])
def test_an_end_of_text_written_in_documents_ends_none_of_them(tokenizer_dir, tmp_path, vsl):
    documents = [Document(f"<|endoftext|>{number}<|endoftext|>\n<|endoftext|>", "en", "here") for number in range(30)]
    pack_documents(documents, tokenizer_dir, 64, tmp_path / "packed", vsl=vsl, held_out=0)
    samples = HDF5Samples(tmp_path / "packed/train", 1, use_vsl=vsl)
    rows = samples.read(np.arange(len(samples)))
    assert (rows["labels"][rows["attention_mask"] == 1] == 0).sum() == 30
    assert sorted(texts_of(tmp_path / "packed/train", load_tokenizer(tokenizer_dir), vsl)) == sorted(
        d.text for d in documents
    )


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["<|endoftext|>", "</s>", "سلام", "مُحمّد", " a", "\n", "😀", "\u200c"]),
            min_size=1,
            max_size=8,
        ),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([2, 5, 400]),
    st.booleans(),
)
def test_texts_come_out_of_the_rows_as_they_went_in(tokenizer_dir, tmp_path_factory, texts, length, vsl):
    folder = tmp_path_factory.mktemp("packed")
    documents = [Document("".join(parts), "en", f"here:{number}") for number, parts in enumerate(texts)]
    pack_documents(documents, tokenizer_dir, 400 if vsl else length, folder / "p", vsl=vsl, held_out=0)
    found = texts_of(folder / "p/train", load_tokenizer(tokenizer_dir), vsl)
    assert sorted(found) == sorted(document.text for document in documents)


def test_the_same_text_gives_the_same_bytes_wherever_it_is_packed(documents, tokenizer_dir, tmp_path):
    for name in ("a", "elsewhere/b"):
        pack_documents(iter(documents), tokenizer_dir, 64, tmp_path / name, vsl=True)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("a", "elsewhere/b")
    )
    assert first == second
    assert str(tmp_path).encode() not in b"".join(first.values())


@pytest.mark.parametrize("vsl", [False, True])
def test_a_store_too_large_to_be_read_in_any_order_gives_the_same_files(tmp_path, monkeypatch, vsl):
    rng = np.random.default_rng(0)
    store = store_of([rng.integers(1, 50, size=n).tolist() for n in rng.integers(1, 40, size=60)], 0)
    mixture = mix([Source("a", store, 1.0)], tokens=2 * store.tokens)
    metadata = DataParameters(vocab_size=50, eos_id=0, pad_id=0, output_dir=".", mixture=mixture.record())
    for name, most in (("read", 10**9), ("written", 0)):
        monkeypatch.setattr("cerebras_jais.data.pipeline.ORDERED_ABOVE", most)
        pack_store(mixture.store, mixture.order, 64, tmp_path / name, metadata, scratch=tmp_path, vsl=vsl)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("read", "written"))
    assert first == second
    assert {path.name for path in tmp_path.iterdir()} == {"read", "written"}
    (part,) = json.loads(first["data_params.json"])["dataset"]["mixture"]
    assert (part["source"], part["documents"], part["documents_there"]) == ("a", 120, 60)


def test_a_text_of_which_the_normaliser_leaves_nothing_is_counted(tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 1}, []))
    tokenizer.normalizer = normalizers.Strip()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    (tmp_path / "t").mkdir()
    tokenizer.save(str(tmp_path / "t/tokenizer.json"))
    documents = [Document(text, "en", "here") for text in ("aa", "\u3000", "a ")]
    (split,) = pack_documents(documents, tmp_path / "t", 8, tmp_path / "p", held_out=0)
    assert (split.documents, split.report.documents) == (2, 2)
    counts = json.loads((tmp_path / "p/train/data_params.json").read_text())["post-process"]
    assert (counts["processed_files"], counts["successful_files"], counts["discarded_files"]) == (3, 2, 1)


def test_text_that_a_tokenizer_loses_is_not_packed(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    lossy = Tokenizer(models.WordLevel({"<|endoftext|>": 0, "<unk>": 1, "one": 2}, unk_token="<unk>"))
    lossy.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "lossy").mkdir()
    lossy.save(str(tmp_path / "lossy/tokenizer.json"))
    with pytest.raises(DataError, match="second: its tokens do not decode"):
        pack_documents(
            [Document("one", "en", "first"), Document("other", "en", "second")],
            tmp_path / "lossy",
            8,
            tmp_path / "packed",
            held_out=0,
        )
    assert not (tmp_path / "packed").exists()


def test_training_documents_of_all_languages_are_mixed(documents, tokenizer_dir, tmp_path):
    pack_documents(documents, tokenizer_dir, 64, tmp_path / "packed")
    texts = texts_of(tmp_path / "packed/train", load_tokenizer(tokenizer_dir), False)
    language = {d.text: d.language for d in documents}
    changes = sum(language[a] != language[b] for a, b in itertools.pairwise(texts))
    assert changes > 10


def test_the_two_verbs_make_usable_data(tmp_path):
    result = run("tokenizer", "--vocab-size", 500, "--output", tmp_path / "t")
    assert result.exit_code == 0
    assert "500 entries" in result.output
    assert "ar: " in result.output
    text = tmp_path / "mine.txt"
    text.write_text("هذا نصٌّ قصير. And a short one. " * 30, encoding="utf-8")
    common = ("--tokenizer", tmp_path / "t", "--max-sequence-length", 32)
    result = run("pack", *common, "--text", text, "--text", sample_corpus_path(), "--output", tmp_path / "p", "--vsl")
    assert result.exit_code == 0
    assert "train: " in result.output
    samples = HDF5Samples([tmp_path / "p/held_out/ar", tmp_path / "p/held_out/en"], 1, use_vsl=True)
    samples.check_vocabulary(500)
    assert samples.sequence_length == 32


def test_text_comes_from_standard_input_too(tokenizer_dir, tmp_path):
    text = "نصٌّ from a pipe\n"
    words = ["pack", "--text", "-", "--tokenizer", str(tokenizer_dir), "--max-sequence-length", "32", "--held-out", "0"]
    done = CliRunner().invoke(data, [*words, "--output", str(tmp_path / "p")], input=text, catch_exceptions=False)
    assert done.exit_code == 0
    assert texts_of(tmp_path / "p/train", load_tokenizer(tokenizer_dir), False) == [text]


def test_a_tokenizer_is_not_replaced_unasked(tmp_path, tokenizer_dir):
    with pytest.raises(DataError, match="--overwrite"):
        run("tokenizer", "--vocab-size", 500, "--output", tokenizer_dir)


def test_failed_packing_leaves_nothing(tmp_path, tokenizer_dir):
    one = [Document("x", "en", "here")] * 3
    with pytest.raises(DataError, match="no such file"):
        pack_documents(one, tmp_path / "none", 8, tmp_path / "p")
    with pytest.raises(DataError, match="no document is left"):
        pack_documents([], tokenizer_dir, 8, tmp_path / "p")

    def broken(documents, name):
        yield from documents
        raise DataError("broken off")

    with pytest.raises(DataError, match="broken off"):
        pack_documents(one, tokenizer_dir, 8, tmp_path / "p", progress=broken)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "kept").touch()
    with pytest.raises(DataError, match="not an empty folder"):
        pack_documents(one, tokenizer_dir, 8, tmp_path / "p")
    assert [p.name for p in (tmp_path / "p").iterdir()] == ["kept"]


def test_help_teaches():
    for verb in ((), ("tokenizer",), ("pack",)):
        assert run(*verb, "--help").exit_code == 0
    assert "--held-out" in run("pack", "--help").output


@pytest.mark.parametrize("vsl", [False, True])
def test_the_text_of_held_out_documents_is_left_beside_the_packed_data(tokenizer_dir, tmp_path, vsl):
    awkward = 'first\u2028line\nsecond\ttab "quoted" \\ نصٌّ\r\n \x00 end\n\n'
    documents = [Document(f"{number} {awkward}", "ar" if number % 3 else "code", "here") for number in range(40)]
    pack_documents(documents, tokenizer_dir, 64, tmp_path / "p", vsl=vsl, held_out=10)
    left = held_out_documents(tmp_path / "p")
    training, held_out = split_held_out(documents, 10)
    assert [(d.text, d.language) for d in left] == [(d.text, d.language) for d in held_out]
    assert {d.language for d in left} == {"ar", "code"}
    assert not {d.text for d in left} & {d.text for d in training}
    tokenizer = load_tokenizer(tokenizer_dir)
    packed = [text for lang in ("ar", "code") for text in texts_of(tmp_path / f"p/held_out/{lang}", tokenizer, vsl)]
    assert sorted(packed) == sorted(d.text for d in left)


def test_a_folder_without_held_out_documents_is_refused(tokenizer_dir, tmp_path):
    pack_documents([Document("one text", "en", "here")] * 12, tokenizer_dir, 8, tmp_path / "p", held_out=0)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["train"]
    with pytest.raises(DataError, match=r"p: has no held_out\.jsonl, .*without --held-out 0"):
        held_out_documents(tmp_path / "p")


def test_ids_of_a_tokenizer_may_have_gaps(tmp_path):
    folder = with_gap(tmp_path / "tokenizer")
    pack_documents([Document("xaxax a", "en", "x")], folder, 8, tmp_path / "data", held_out=0)
    assert recorded_vocabulary(tmp_path / "data/train") == 5001
    source = open_rows(tmp_path / "data")
    ((piece,),) = (row.pieces for row in read_rows(source, [0], load_tokenizer(folder), 0))
    assert "".join(run.text for run in piece.runs) == f"xaxax a{END_SIGN}"
