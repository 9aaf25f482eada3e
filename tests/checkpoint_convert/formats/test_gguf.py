"""GGUF headers, against the package gguf, and hostile ones.

Contract: what is written is byte for byte what the package's own writer makes of the same keys and tensors; what is
read is what its reader reads; each lie in a header is one ConversionError, found without reading the data and in
bounded time and memory.
"""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest

from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.gguf import (
    GgufTensor,
    create_file,
    decode,
    encode,
    header,
    read_gguf,
    shown_value,
    stored_tensors,
)

KEYS = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["<s>", "ا", "b"],
    "tokenizer.ggml.scores": [0.0, -1.5, -2.0],
    "tokenizer.ggml.token_type": [3, 1, 1],
}
TENSORS = (
    GgufTensor("a.weight", (3, 64), "F32"),
    GgufTensor("b.weight", (5, 64), "F16"),
    GgufTensor("c.weight", (4, 64), "Q8_0"),
    GgufTensor("d.weight", (7, 32), "Q4_0"),
    GgufTensor("d.bias", (7,), "F32"),
)


def by_package(path, values):
    """The same file by the package's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    for key in ("tokens", "scores", "token_type"):
        writer.add_array(f"tokenizer.ggml.{key}", KEYS[f"tokenizer.ggml.{key}"])
    for tensor in TENSORS:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        writer.add_tensor(tensor.name, gguf.quantize(values[tensor.name], kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write(path, values):
    create_file(path, KEYS, TENSORS)
    with open(path, "r+b") as file:
        for name, stored in stored_tensors(path, KEYS, TENSORS).items():
            tensor = next(tensor for tensor in TENSORS if tensor.name == name)
            file.seek(stored.offset)
            file.write(encode(values[name], tensor.kind).tobytes())
    return path


@pytest.fixture
def values():
    draw = np.random.default_rng(0)
    return {tensor.name: draw.standard_normal(tensor.shape).astype(np.float32) for tensor in TENSORS}


def test_a_file_is_what_the_packages_writer_makes(tmp_path, values):
    assert write(tmp_path / "a.gguf", values).read_bytes() == by_package(tmp_path / "b.gguf", values).read_bytes()


def test_what_is_read_is_what_the_packages_reader_reads(tmp_path, values):
    path = by_package(tmp_path / "b.gguf", values)
    found, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert list(found.tensors.values()) == list(TENSORS)
    for tensor in theirs.tensors:
        stored = found.stored[tensor.name].read()
        assert stored.tobytes() == tensor.data.tobytes()
        kind = found.tensors[tensor.name].kind
        again = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(decode(stored, kind).reshape(again.shape), again)
    shown = {key: shown_value(value) for key, value in found.metadata.items()}
    assert shown["general.architecture"] == "'llama'"
    assert (shown["llama.block_count"], shown["tokenizer.ggml.add_bos_token"]) == ("2", "True")
    assert shown["tokenizer.ggml.tokens"] == "an array of 3"


def whole(keys=None, tensors=TENSORS):
    content = header(KEYS if keys is None else keys, tensors)
    return bytearray(content + bytes(sum(-(-tensor.nbytes // 32) * 32 for tensor in tensors)))


def number(content, at, value, width=8):
    content[at : at + width] = value.to_bytes(width, "little")
    return content


def after(content, text, skip=0):
    """The place behind a text in the content."""
    return content.index(text) + len(text) + skip


LIES = {
    "magic": (lambda c: number(c, 0, 0x11111111, 4), "is not a GGUF file"),
    "version": (lambda c: number(c, 4, 2, 4), "is GGUF of version 2 or of another byte order"),
    "byte order": (lambda c: number(c, 4, 3 << 24, 4), "of another byte order"),
    "tensors": (lambda c: number(c, 8, 1 << 60), "the file is damaged"),
    "keys": (lambda c: number(c, 16, 1 << 60), "the file is damaged"),
    "key": (lambda c: number(c, 24, 1 << 62), "a key of"),
    "no key": (lambda c: number(c, 24, 0), "a key of 0 bytes"),
    "value type": (lambda c: number(c, after(c, b"llama.block_count"), 99, 4), "a value of the unknown type 99"),
    "text": (lambda c: number(c, after(c, b"general.architecture", 4), 1 << 63), "ends inside its header"),
    "array of arrays": (lambda c: number(c, after(c, b"ggml.tokens", 4), 9, 4), "an array of arrays"),
    "array": (lambda c: number(c, after(c, b"ggml.scores", 8), 1 << 50), "an array of 1,125,899"),
    "long array": (lambda c: number(c, after(c, b"ggml.scores", 8), 3_999_999), "ends inside its header"),
    "texts": (lambda c: number(c, after(c, b"ggml.tokens", 8), 3_999_999), "ends inside its header"),
    "text of an array": (lambda c: number(c, after(c, b"ggml.tokens", 16), (1 << 64) - 9), "ends inside its header"),
    "truth": (lambda c: number(c, after(c, b"add_bos_token", 4), 2, 1), "a truth value that is none"),
    "name": (lambda c: number(c, c.index(b"a.weight") - 8, 64), "a tensor's name of 64 bytes"),
    "bad name": (lambda c: number(c, c.index(b"a.weight"), 0xFF, 1), "a tensor's name that is not UTF-8"),
    "twice": (lambda c: number(c, c.index(b"b.weight"), ord("a"), 1), "the tensor 'a.weight' twice"),
    "axes": (lambda c: number(c, after(c, b"a.weight"), 1 << 31, 4), "axes for the tensor 'a.weight'"),
    "size": (lambda c: number(c, after(c, b"a.weight", 4), 1 << 61), "that no file can hold"),
    "no size": (lambda c: number(c, after(c, b"a.weight", 4), 0), "that no file can hold"),
    "half blocks": (lambda c: number(c, after(c, b"c.weight", 4), 48), "no whole blocks of Q8_0"),
    "element type": (lambda c: number(c, after(c, b"a.weight", 20), 12, 4), "has GGUF's element type 12"),
    "offset": (lambda c: number(c, after(c, b"b.weight", 24), 32), "overlaps another or leaves a gap"),
    "shape": (lambda c: number(c, after(c, b"d.bias", 4), 70), "it is truncated or damaged"),
    "cut": (lambda c: c[:-64], "it is truncated or damaged"),
    "longer": (lambda c: c + bytes(32), "it is truncated or damaged"),
    "header alone": (lambda c: c[:300], "ends inside its header"),
    "empty": (lambda c: c[:0], "ends inside its header"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_the_header_is_one_error(tmp_path, lie):
    change, problem = LIES[lie]
    path = tmp_path / "a.gguf"
    path.write_bytes(change(whole()))
    with pytest.raises(ConversionError, match=problem) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("alignment", [0, 1, 24, 1 << 20])
def test_an_alignment_that_is_none_is_refused(tmp_path, alignment):
    path = tmp_path / "a.gguf"
    path.write_bytes(whole({**KEYS, "general.alignment": alignment}))
    with pytest.raises(ConversionError, match="an alignment that is no power of two"):
        read_gguf(path)


def test_a_file_without_padding_at_its_end_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(whole()[:-4])  # the last tensor has 28 of 32 bytes
    assert list(read_gguf(path).tensors.values()) == list(TENSORS)


def test_a_million_texts_are_passed_in_little_memory(tmp_path):
    """Only a header of 64 MiB at most is read, however large the file is; texts are not kept as objects."""
    start = header({}, ())[:16] + struct.pack("<Q", 1)
    array = struct.pack("<IIQ", 9, 8, 1_000_000) + bytes(8 * 1_000_000)
    path = tmp_path / "a.gguf"
    with open(path, "wb") as file:
        file.write(start)
        file.write(struct.pack("<Q", 1) + b"x" + array)
        file.truncate(1 << 36)
    tracemalloc.start()
    with pytest.raises(ConversionError, match="truncated or damaged"):
        read_gguf(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 << 20


def test_a_header_beyond_the_limit_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    with open(path, "wb") as file:
        file.write(header({}, ())[:16] + struct.pack("<QQ", 1, 1) + b"x" + struct.pack("<IQ", 8, 1 << 30))
        file.truncate(1 << 31)
    with pytest.raises(ConversionError, match="its header is larger than 64 MiB, the limit"):
        read_gguf(path)
