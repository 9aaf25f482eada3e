"""`verify` of a GGUF file and its source.

Contract: a file of any type is the same as the checkpoint and the release that it was made of; one changed number,
type, shape, key of the metadata or token is named; in blocks, what the package gguf decodes may be as far from the
source as rounding leaves it and no farther, also where another program chose the steps. Whatever else is called GGUF is
refused in one line.
"""

import json
import random
from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner

from cerebras_jais.errors import UserError
from checkpoint_convert.cli import cli
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.gguf import GgufTensor, decode, encode, read_gguf, value_bytes
from checkpoint_convert.formats.safetensors import open_model
from checkpoint_convert.formats.tensors import TensorHeader
from checkpoint_convert.llamacpp.compare import compare_gguf, off_by_more
from checkpoint_convert.llamacpp.convert import convert_to_gguf
from checkpoint_convert.llamacpp.model import Encoding
from tests.attacks.gguf_files import FILE, mutate
from tests.checkpoint_convert.llamacpp.test_convert import MODELS, made

TYPES = ("f32", "f16", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def jais(tmp_path_factory):
    directory = tmp_path_factory.mktemp("jais")
    checkpoint, _, release, _ = made(directory, MODELS["jais-12"])
    for type_ in TYPES:
        convert_to_gguf(release, directory / f"{type_}.gguf", type_=type_)
    return directory, checkpoint, release


def changed(path, output, change):
    """A copy of a file after `change` of its content, a bytearray, and its header as read before."""
    content = bytearray(path.read_bytes())
    change(content, read_gguf(path))
    output.write_bytes(content)
    return output


@pytest.mark.parametrize("type_", TYPES)
def test_a_file_is_the_same_as_what_it_was_made_of(jais, type_):
    directory, checkpoint, release = jais
    for source in (checkpoint, release):
        result = compare_gguf(directory / f"{type_}.gguf", source)
        assert result.same and result.identical == 32


@pytest.mark.parametrize("type_", TYPES)
def test_one_changed_number_is_named(jais, tmp_path, type_):
    def change(content, file):
        stored = file.stored["blk.1.ffn_up.weight"]
        at = stored.offset + 3 * stored.shape[1] + 10  # in blocks a number, the step stands before them
        content[at] ^= 0x80 if type_ != "f32" else 1

    directory, checkpoint, _ = jais
    result = compare_gguf(changed(directory / f"{type_}.gguf", tmp_path / "a.gguf", change), checkpoint)
    assert list(result.differences) == ["blk.1.ffn_up.weight"]
    assert result.differences["blk.1.ffn_up.weight"].startswith("1 values differ, by ")


@pytest.mark.parametrize(("type_", "steps", "off"), [("q8_0", 127, 0.5), ("q4_0", 8, 1.0)])
def test_numbers_in_blocks_may_be_off_by_the_rounding_and_no_more(type_, steps, off):
    """What the package's arithmetic makes of numbers of any size passes, and numbers two steps away do not."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal((256, 64)).astype(np.float32) * 10.0 ** draw.integers(-2, 3, (256, 1))
    values = values.astype(np.float32)
    coding = Encoding(TensorHeader("x", (256, 64), "float32"), 1.0, GgufTensor("x", (256, 64), type_.upper()))
    kept = encode(values, type_.upper())
    assert off_by_more(coding, values, kept) == (0, 0.0)
    step = np.abs(values.reshape(-1, 32)).max(axis=1, keepdims=True) / steps
    error = np.abs(decode(kept, type_.upper()).reshape(-1, 32) - values.reshape(-1, 32)) / step
    assert 0.45 * off < error.max() <= off * 1.2
    moved = (values.reshape(-1, 32) + 2 * off * step * np.sign(values.reshape(-1, 32))).reshape(values.shape)
    assert off_by_more(coding, np.float32(1e-6) * values, encode(np.float32(1e-6) * values, type_.upper())) == (0, 0.0)
    assert off_by_more(coding, moved.astype(np.float32), kept)[0] > values.size / 3


def test_metadata_that_llama_cpp_computes_or_cuts_text_with_is_compared(jais, tmp_path):
    directory, _, release = jais

    def change(content, file):
        for key, old, new in (("jais.block_count", 2, 3), ("tokenizer.ggml.eos_token_id", 0, 7)):
            at = content.index(key.encode()) + len(key)
            assert content[at : at + 8] == value_bytes(old)
            content[at : at + 8] = value_bytes(new)

    result = compare_gguf(changed(directory / "f16.gguf", tmp_path / "a.gguf", change), release)
    assert result.config == {"jais.block_count": ("3", "2"), "tokenizer.ggml.eos_token_id": ("7", "0")}
    assert not result.differences and not result.same


def test_a_file_that_scales_positions_which_its_source_does_not_is_named(jais, tmp_path):
    added = "jais.rope.scaling.yarn_scale"

    def change(content, file):
        other = b"general.quantization_version"  # of the same length, and not compared
        at = content.index(other)
        content[at : at + len(other)] = added.encode()

    directory, _, release = jais
    result = compare_gguf(changed(directory / "f16.gguf", tmp_path / "a.gguf", change), release)
    assert result.config == {added: ("2", "none")}
    assert not result.same


def test_another_model_is_another_model(jais, tmp_path):
    directory, _, _ = jais
    _, _, release, _ = made(tmp_path, MODELS["llama-12"])
    result = compare_gguf(directory / "f16.gguf", release)
    assert result.differences["blk.0.attn_q.weight"].startswith("missing in")
    assert result.differences["blk.0.attn_qkv.weight"] == "no part of such a model"
    assert result.config["general.architecture"] == ("'jais'", "'llama'")


def test_verify_takes_the_two_in_either_order_and_says_what_it_needs(jais, tmp_path):
    directory, checkpoint, release = jais
    file = str(directory / "q4_0.gguf")

    def run(*arguments):
        return CliRunner().invoke(cli, ["verify", *map(str, arguments)])

    for pair in ((file, release), (checkpoint, file)):
        done = run(*pair, "--json")
        assert done.exit_code == 0
        assert json.loads(done.output)["compared_as"] == ["q4_0", "q8_0"]
    assert "name it" in run(file).output
    assert "name it" in run(file, file).output
    assert "--logits compares" in run(file, release, "--logits").output
    renamed = tmp_path / "model"
    renamed.write_bytes((directory / "q4_0.gguf").read_bytes())
    assert run(renamed, release).exit_code == 0
    head = open_model(release)["lm_head.weight"]
    content = bytearray(head.path.read_bytes())
    content[head.offset + 3] ^= 0x40
    head.path.write_bytes(content)
    done = run(file, release)
    assert done.exit_code == 1
    assert "output.weight: 1 values differ" in done.output
    content[head.offset + 3] ^= 0x40
    head.path.write_bytes(content)


def test_a_damaged_file_is_refused_or_differs_and_nothing_else_happens(jais, tmp_path):
    """The seed is fixed; tests/attacks/gguf_files.py draws more of them for the reader alone."""
    directory, _, release = jais
    outcomes, refusals = Counter(), []
    for number in range(60):
        draw = random.Random(number)
        (tmp_path / FILE).write_bytes((directory / f"{draw.choice(TYPES)}.gguf").read_bytes())
        mutate(draw, tmp_path)
        try:
            outcomes[compare_gguf(tmp_path / FILE, release).same] += 1
        except ConversionError as error:
            refusals.append(str(error))
    assert all(FILE in refusal and "\n" not in refusal for refusal in refusals)
    assert len(refusals) > 10 and outcomes[False] > 2


def test_no_other_verb_takes_a_gguf_file(jais):
    directory, _, _ = jais
    file = str(directory / "f16.gguf")
    for verb in (["inspect", file], ["to-hf", file, "--output", "x"], ["diff", file, file]):
        with pytest.raises(UserError, match="is a GGUF file, which only `verify` reads"):
            CliRunner().invoke(cli, verb, catch_exceptions=False)
