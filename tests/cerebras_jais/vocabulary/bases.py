"""Small tokenizers to extend and to take tokens from, and real ones for tests marked `realvocab`; not a test itself.

What `sentencepiece` trains is a base where that is installed.
"""

import base64
import io
import json
import os
import random
import struct
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from cerebras_jais.data.documents import Document, read_documents, sample_corpus_path
from cerebras_jais.data.tokenizer import save_tokenizer, train_tokenizer
from cerebras_jais.vocabulary import model_file
from cerebras_jais.vocabulary.bpe import is_byte_piece
from cerebras_jais.vocabulary.model_file import CONTROL, NORMAL, ScoredPiece, read_model_file

UNKNOWN, BYTE = 2, 6
RUN_SCORE = -1e9
RUNS = ("▁▁", "▁▁▁▁", "▁▁▁▁▁▁▁▁", "▁▁▁")
SPECIAL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


@cache
def sample(language):
    """The documents of a language in the sample."""
    return [document for document in read_documents(sample_corpus_path()) if document.language == language]


def shuffled_words(count, seed=0):
    """Texts of Arabic words of the sample in a random order, some with an ending of another."""
    draw = random.Random(seed)
    words = sorted({word for document in sample("ar") for word in document.text.split()})
    for _ in range(count):
        chosen = (draw.choice(words) + (draw.choice(words)[-3:] if draw.random() < 0.2 else "") for _ in range(60))
        yield Document(" ".join(chosen), "ar", "shuffled")


def write_model(path, pieces):
    """A tokenizer.model that normalises nothing, with a space put before a text, as Llama-2's."""
    model = model_file._message()()
    for piece in pieces:
        model.pieces.add(piece=piece.piece, score=piece.score, type=piece.type)
    model.trainer_spec.model_type = 2
    # What the class does not describe: NormalizerSpec (field 3) with the name identity, add_dummy_prefix true,
    # remove_extra_whitespaces false, escape_whitespaces true; and of TrainerSpec (field 2) byte_fallback (35).
    normalizer = b"\x0a\x08identity" + bytes([3 << 3, 1, 4 << 3, 0, 5 << 3, 1])
    trainer = bytes([0x98, 0x02, 1])
    content = model.SerializeToString()
    content += bytes([3 << 3 | 2, len(normalizer)]) + normalizer + bytes([2 << 3 | 2, len(trainer)]) + trainer
    path.write_bytes(content)


def write_llama(folder, pieces, *, model=True, legacy=True):
    """A folder as Llama-2's: each way to spell a piece is a merge, in the order of the scores; the best first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    ids = {piece.piece: number for number, piece in enumerate(pieces)}
    merges = []
    for piece in sorted((p for p in pieces if p.type == NORMAL), key=lambda p: -p.score):
        text = piece.piece
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges += sorted((s for s in splits if s[0] in ids and s[1] in ids), key=lambda s: (ids[s[0]], ids[s[1]]))
    bpe = models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in SPECIAL])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": legacy,
        "model_max_length": 2048,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if model:
        write_model(folder / "tokenizer.model", pieces)
    return folder


@cache
def learned_pieces():
    """The pieces of a small English base with a few Arabic letters, in the order of Llama-2: scores fall with the id,
    runs of ▁ stand among the first and have the score -1e9."""
    from tokenizers import Tokenizer, models, trainers

    tokenizer = Tokenizer(models.BPE())
    words = [f"▁{word}" for document in sample("en") for word in document.text.split(" ")]
    tokenizer.train_from_iterator(words, trainers.BpeTrainer(vocab_size=600, show_progress=False))
    learned = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    names = [*(piece for piece in learned if len(piece) > 1), "ال", "▁ال", "▁م"]
    letters = dict.fromkeys([*(piece for piece in learned if len(piece) == 1), *"▁ابلمنويرتدهسع،"])
    scored = ((name, RUN_SCORE if name == "▁" else float(-number)) for number, name in enumerate([*names, *letters]))
    return layout([ScoredPiece(name, score, NORMAL) for name, score in scored])


def layout(pieces):
    """Normal pieces, with those of Llama-2 before and among them."""
    runs = [ScoredPiece(run, RUN_SCORE, NORMAL) for run in RUNS]
    head = [ScoredPiece("<unk>", 0.0, UNKNOWN), *(ScoredPiece(name, 0.0, CONTROL) for name in SPECIAL[1:])]
    return [*head, *(ScoredPiece(name, 0.0, BYTE) for name in BYTES), runs[0], *pieces[:5], *runs[1:], *pieces[5:]]


def sentencepiece_base(folder):
    """A base that `sentencepiece` has trained itself, without runs of ▁; skips where it is not installed."""
    library = pytest.importorskip("sentencepiece")
    content = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=(line for document in sample("en") for line in document.text.splitlines()),
        model_writer=content,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=[],
        minloglevel=2,
    )
    path = folder.parent / "trained.model"
    path.write_bytes(content.getvalue())
    write_llama(folder, read_model_file(path).pieces, model=False)
    path.rename(folder / "tokenizer.model")
    return folder


def byte_level_base(folder):
    """An English byte-level base."""
    return save_tokenizer(train_tokenizer(sample("en"), 600), folder, 2048)


def arabic_donor(folder, entries=3000):
    """A byte-level donor that has learnt Arabic and English."""
    return save_tokenizer(train_tokenizer([*sample("ar"), *shuffled_words(60), *sample("en")], entries), folder, 2048)


def hard_texts(extension, count=10_000):
    """Arabic text, and joined at random: new pieces, runs of spaces, what is spelled in bytes, English, runs."""
    draw = random.Random(2)
    pieces = [extension.tokenizer.text_of(piece) or "" for piece in extension.added]
    others = [
        " ",
        "  ",
        "   ",
        "\n",
        "\t",
        "é",
        "漢",
        "😀",
        "the",
        "ing ",
        "ه" * 5,
        "لا" * 3,
        "x",
        "ـ",
        "\u200f",
        "<0x0A>",
    ]
    texts = [line for document in [*sample("ar"), *sample("en")] for line in document.text.splitlines()]
    while len(texts) < count:
        texts.append("".join(draw.choice(draw.choice((pieces, others))) for _ in range(draw.randrange(1, 12))))
    return texts


def encodings(extension, text):
    """What the base and the extended tokenizer make of a text."""
    tokenizers = extension.base.tokenizer, extension.tokenizer.tokenizer
    return [tokenizer.encode(text, add_special_tokens=False) for tokenizer in tokenizers]


def assert_decodes_alike(extension, text):
    """The tokens of a text decode to what the base's decode to."""
    base, extended = encodings(extension, text)
    decode = extension.tokenizer.tokenizer.decode
    assert decode(extended.ids, skip_special_tokens=False) == extension.base.tokenizer.decode(
        base.ids, skip_special_tokens=False
    )


def assert_offsets_are_right(extension, text):
    """Offsets rise and cover the text, spaces apart; a token stands for its own text, unless it is part of a character;
    where the base has the same tokens, it has the same offsets. A space put before the text stands where its first
    character does."""
    base, extended = encodings(extension, text)
    for edges in zip(*extended.offsets, strict=True):
        assert list(edges) == sorted(edges)
    covered = {place for start, end in extended.offsets for place in range(start, end)}
    assert covered <= set(range(len(text)))
    assert [char for place, char in enumerate(text) if place not in covered and char not in " ▁"] == []
    for piece, (start, end) in zip(extended.tokens, extended.offsets, strict=True):
        spelled = extension.tokenizer.text_of(piece)
        if spelled is not None and spelled.strip(" ") and not is_byte_piece(piece):
            assert spelled.strip(" ") == text[start:end].replace("▁", " ").strip(" ")
    offsets = [dict(zip(_places(each), each.offsets, strict=True)) for each in (base, extended)]
    for token in offsets[0].keys() & offsets[1].keys():
        assert offsets[0][token] == offsets[1][token]


def _places(encoding):
    """Each token with where it begins, and how many of the same there have been from that place on."""
    seen = Counter()
    for token, (start, _) in zip(encoding.tokens, encoding.offsets, strict=True):
        seen[token, start] += 1
        yield token, start, seen[token, start]


# ---- real vocabularies ----------------------------------------------------------------------------------------------


def real_folder():
    """The folder that REAL_VOCABULARIES names; skips where it is not set."""
    folder = os.environ.get("REAL_VOCABULARIES")
    if not folder:
        pytest.skip("REAL_VOCABULARIES is not set")
    return Path(folder)


def real_llama(folder):
    """Llama-2's tokenizer, of the vocabulary in llama.cpp's sources: pieces, scores and types."""
    values = _gguf(real_folder() / "ggml-vocab-llama-spm.gguf")
    names, scores, types = (values[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    pieces = [ScoredPiece(*each) for each in zip(names, scores, types, strict=True)]
    return write_llama(folder, pieces)


def _gguf(path):
    """The keys of a GGUF file, as its specification has them."""
    data, place = path.read_bytes(), 24
    assert data[:4] == b"GGUF"
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def read(kind):
        nonlocal place
        if kind == 8:
            length = read(10)
            place += length
            return data[place - length : place].decode()
        if kind == 9:
            inner, length = read(4), read(10)
            return [read(inner) for _ in range(length)]
        (value,) = struct.unpack_from(f"<{formats[kind]}", data, place)
        place += struct.calcsize(formats[kind])
        return value

    return {read(8): read(read(4)) for _ in range(struct.unpack_from("<Q", data, 16)[0])}


_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
)


def real_o200k(folder):
    """o200k_base: each pair of tokens that spells a token is a merge, in the order of the ranks."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    lines = (real_folder() / "o200k_base.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, _, rank in (line.partition(" ") for line in lines)}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in printable}
    names |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in printable)}
    spelled = {token: "".join(names[byte] for byte in token) for token in ranks}
    merges = []
    for token in ranks:
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(left, right) for left, right in splits if left in ranks and right in ranks]
        merges += [
            (spelled[a], spelled[b]) for a, b in sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        ]
    tokenizer = Tokenizer(models.BPE(vocab={spelled[token]: rank for token, rank in ranks.items()}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("|".join(_O200K)), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
