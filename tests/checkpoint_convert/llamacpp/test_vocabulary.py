"""Tokenizers as GGUF describes them.

Contract: GPT-2's, Llama-3's and Qwen-2's ways of splitting get llama.cpp's names for them, and any other is refused;
a tokenizer over characters has the scores of its tokenizer.model, or scores in the order of its merges; special tokens
are control tokens, and ids without a token unused; a damaged tokenizer.model is one error. (test_llamacpp.py has
llama.cpp cut text with them.)
"""

import contextlib
import json
import random
import struct

import pytest

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.llamacpp.sentencepiece import read_sentencepiece
from checkpoint_convert.llamacpp.vocabulary import vocabulary_metadata
from checkpoint_convert.release import read_tokenizer
from tests.chat_tokenizers import write_tokenizer
from tests.checkpoint_convert.examples import jais_section, llama_section

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def split_by(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTES]}


def changed(directory, change):
    path = directory / "tokenizer.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def keys_of(directory, section):
    config = DecoderConfig.from_section(section)
    return vocabulary_metadata(read_tokenizer(directory, config), config, directory)


def test_the_way_of_splitting_has_llama_cpps_name(tmp_path):
    directory = write_tokenizer("jais", tmp_path / "t")
    assert keys_of(directory, jais_section(vocab_size=700))[0]["tokenizer.ggml.pre"] == "jais"
    assert keys_of(directory, llama_section(vocab_size=700))[0]["tokenizer.ggml.pre"] == "gpt-2"
    changed(directory, lambda state: state.update(pre_tokenizer=split_by(LLAMA3)))
    changed(directory, lambda state: state["model"].update(ignore_merges=True))
    assert keys_of(directory, llama_section(vocab_size=700))[0]["tokenizer.ggml.pre"] == "llama-bpe"


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(pre_tokenizer=split_by(r"\w+")),
        lambda state: state.update(pre_tokenizer=split_by(LLAMA3)),  # without ignore_merges
        lambda state: state.update(pre_tokenizer=None),
        lambda state: state["pre_tokenizer"].update(add_prefix_space=True),
        lambda state: state.update(normalizer={"type": "NFC"}),
        lambda state: state["model"].update(type="WordPiece"),
        lambda state: state["model"].update(dropout=0.1),
        lambda state: state["model"].update(merges=[["a"]]),
        lambda state: state["model"].update(merges=7),
        lambda state: state.update(added_tokens=[{"id": 0, "content": 7}]),
        lambda state: state.update(pre_tokenizer=[]),
        lambda state: state.update(post_processor={"processors": 3}),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(tmp_path, change):
    directory = write_tokenizer("jais", tmp_path / "t")
    changed(directory, change)
    with pytest.raises(UserError) as caught:
        keys_of(directory, jais_section(vocab_size=700))
    assert str(directory) in str(caught.value) and "\n" not in str(caught.value)


def test_scores_follow_the_merges_and_special_tokens_are_control_tokens(tmp_path):
    directory = write_tokenizer("llama", tmp_path / "t")
    keys, notes = keys_of(directory, llama_section(vocab_size=720))
    state = json.loads((directory / "tokenizer.json").read_text())
    texts, scores, kinds = (keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    made = [left + right for left, right in state["model"]["merges"]]
    in_order = [scores[texts.index(text)] for text in dict.fromkeys(made)]
    assert in_order == sorted(in_order, reverse=True)
    assert (kinds[0], kinds[1], kinds[texts.index("<0x41>")]) == (2, 3, 6)
    assert (texts[719], kinds[719]) == ("[PAD719]", 5)
    assert keys["tokenizer.ggml.add_bos_token"] and keys["tokenizer.ggml.add_space_prefix"]
    assert "only the pairs of its merges" in notes[0]


def field(number, content):
    """A field of protobuf's wire format: bytes, a number, or a float32."""
    if isinstance(content, bytes):
        return bytes([number << 3 | 2]) + varint(len(content)) + content
    if isinstance(content, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", content)
    return bytes([number << 3]) + varint(content)


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def model_file(pieces, algorithm=2, characters=b"", prefix=1):
    content = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind != 1 else b""))
        for text, score, kind in pieces
    )
    return content + field(2, field(3, algorithm)) + field(3, field(2, characters) + field(3, prefix))


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁a", -1.5, 1), ("ا", -2.0, 1), ("<0x0A>", 0.0, 6)]


def test_a_tokenizer_model_gives_its_scores_and_types(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model_file(PIECES))
    found = read_sentencepiece(path)
    assert [(piece.text, piece.score, piece.kind) for piece in found.pieces] == PIECES and found.adds_space
    keys, _ = keys_of(tmp_path, llama_section(vocab_size=8))
    assert keys["tokenizer.ggml.scores"][:5] == [score for _, score, _ in PIECES]
    assert keys["tokenizer.ggml.token_type"] == [2, 3, 1, 1, 6, 5, 5, 5]
    with pytest.raises(ConversionError, match="has 5 pieces but the model's vocab_size is 4"):
        keys_of(tmp_path, llama_section(vocab_size=4))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (model_file(PIECES, algorithm=1), "llama.cpp cuts text by BPE only"),
        (model_file(PIECES, characters=b"abc"), "normalises text"),
        (b"", "has no pieces"),
        (b"\xff" * 100, "is not a model of SentencePiece, or damaged"),
        (model_file(PIECES)[:-3], "is not a model of SentencePiece, or damaged"),
    ],
)
def test_a_tokenizer_model_that_cannot_be_used_is_refused(tmp_path, content, problem):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ConversionError, match=problem):
        read_sentencepiece(tmp_path / "tokenizer.model")


def test_damage_to_a_tokenizer_model_is_one_error_or_another_model(tmp_path):
    draw, whole = random.Random(0), model_file(PIECES * 20)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 5))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(content)
        with contextlib.suppress(ConversionError):
            read_sentencepiece(tmp_path / "tokenizer.model")
