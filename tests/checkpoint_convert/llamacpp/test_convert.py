"""GGUF files of checkpoints and releases, read by the package gguf.

Contract: a file has the tensors of the model under llama.cpp's names, muP's factors multiplied in, in the element type
asked for, equal to the package's own arithmetic on the reference path's weights; the same from a checkpoint and from
its release, in bands of any size; an interrupted conversion goes on to the same bytes; what llama.cpp cannot compute
is refused in one line, and nothing is left over. (test_llamacpp.py runs the files in llama.cpp.)
"""

import gguf
import numpy as np
import pytest

import checkpoint_convert.streaming.run
from cerebras_jais.errors import UserError
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.formats.safetensors import open_model
from checkpoint_convert.llamacpp.convert import convert_to_gguf
from checkpoint_convert.mapping.rules import rules
from tests.attacks.kills import Moment, steps_of, subjects, trial
from tests.chat_tokenizers import TOKENIZERS, write_tokenizer
from tests.checkpoint_convert.examples import (
    DTYPES,
    jais_section,
    listing,
    llama_section,
    random_model,
    state_of,
    write_checkpoint,
)
from tests.marks import slow_except
from tests.published import OF_30B, UP_TO_13B

SET_A = dict(zip(("embeddings_scale", "output_logits_alpha"), OF_30B, strict=True))
SET_B = dict(zip(("embeddings_scale", "output_logits_alpha"), UP_TO_13B, strict=True))
SIZES = {"vocab_size": 704}
MODELS = {
    "jais-12": jais_section(hidden_size=96, **SIZES, **SET_B),
    "jais-20-untied": jais_section(
        num_heads=20, hidden_size=80, **SIZES, **{**SET_A, "share_embedding_weights": False}
    ),
    "jais-40": jais_section(num_heads=40, hidden_size=160, **SIZES, **SET_B),
    "jais-56": jais_section(num_heads=56, hidden_size=224, **SIZES, **SET_A),
    "llama-12": llama_section(hidden_size=96, **SIZES),
    "llama-20-tied": llama_section(num_heads=20, hidden_size=80, share_embedding_weights=True, **SIZES),
    "llama-40-grouped": llama_section(num_heads=40, hidden_size=160, kv_groups=8, **SIZES),
    "llama-56-grouped-biases": llama_section(
        num_heads=56,
        hidden_size=224,
        kv_groups=7,
        use_ffn_bias=True,
        use_projection_bias_in_attention=True,
        use_ffn_bias_in_attention=True,
        pos_scaling_factor=4.0,
        **SIZES,
    ),
}
SOME = ["jais-20-untied", "llama-40-grouped"]


def made(directory, section, dtype="float32", **options):
    """A checkpoint of random weights, a tokenizer, and the release of both."""
    family = "jais" if section["position_embedding_type"] == "alibi" else "llama"
    model = random_model(section)
    checkpoint = write_checkpoint(directory / "c.mdl", section, state_of(model, DTYPES[dtype]))
    tokenizer = write_tokenizer(family, directory / "tokenizer")
    convert_to_hf(checkpoint, directory / "release", tokenizer=tokenizer, **options)
    return checkpoint, tokenizer, directory / "release", model


def read(path):
    """Name -> (element type, float32 values in the order of torch), by the package gguf."""
    return {
        tensor.name: (tensor.tensor_type.name, gguf.dequantize(tensor.data, tensor.tensor_type))
        for tensor in gguf.GGUFReader(path).tensors
    }


def keys_of(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def expected(model):
    """Name -> the float32 values that llama.cpp computes with, from the weights of the reference path.

    Both keep [out, in] and rotate neighbours, q above k above v in one matrix of Jais. The products are float32.
    """
    config = model.config
    state = {name.removeprefix("model."): tensor.numpy() for name, tensor in model.state_dict().items()}
    names = {"token_embd.weight": config.embeddings_scale, "output.weight": config.logits_scale}
    found = {}
    for rule in rules(config):
        for name in rule.gguf:
            values = np.concatenate([state[part] for part in rule.cerebras])
            found[name] = values * np.float32(names.get(name, 1.0))
    return found


@pytest.mark.parametrize("name", slow_except(SOME, MODELS))
def test_a_file_has_the_weights_of_the_reference_path_with_mups_factors_in_them(tmp_path, name):
    checkpoint, tokenizer, release, model = made(tmp_path, MODELS[name])
    convert_to_gguf(release, tmp_path / "a.gguf", type_="f32")
    convert_to_gguf(checkpoint, tmp_path / "release.gguf", type_="f32", tokenizer=tokenizer)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "release.gguf").read_bytes()
    found, wanted = read(tmp_path / "a.gguf"), expected(model)
    assert found.keys() == wanted.keys()
    for tensor, values in wanted.items():
        assert found[tensor][0] == "F32"
        np.testing.assert_array_equal(found[tensor][1], values)


@pytest.mark.parametrize("name", slow_except(SOME, MODELS))
def test_a_tensor_has_the_name_that_the_package_gguf_gives_it(name):
    section = MODELS[name]
    config = random_model(section).config
    arch = gguf.MODEL_ARCH.JAIS if config.position_embedding_type == "alibi" else gguf.MODEL_ARCH.LLAMA
    mapped = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for rule in rules(config):
        if rule.gguf:
            assert rule.gguf == (mapped.get_name(rule.hugging_face[0], try_suffixes=(".weight", ".bias")),)


@pytest.mark.parametrize("type_", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", slow_except(["jais-12"], ["jais-12", "jais-20-untied", "llama-40-grouped"]))
def test_matrices_are_encoded_as_the_package_gguf_does_and_the_rest_stays_float32(tmp_path, name, type_):
    _, _, release, model = made(tmp_path, MODELS[name])
    convert_to_gguf(release, tmp_path / "a.gguf", type_=type_)
    wanted = expected(model)
    for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors:
        values, kind = wanted[tensor.name], "F32"
        if values.ndim == 2:
            kind = "Q8_0" if (type_, tensor.name) == ("q4_0", "output.weight") else type_.upper()
            if kind in ("Q8_0", "Q4_0") and values.shape[1] % 32:
                kind = "F16"  # as llama.cpp's script has it
        assert tensor.tensor_type.name == kind
        assert tensor.data.tobytes() == gguf.quantize(values, tensor.tensor_type).tobytes()


@pytest.mark.parametrize("name", slow_except(["jais-40"], ["jais-40", "llama-40-grouped"]))
def test_a_file_is_the_same_in_bands_of_any_size(tmp_path, monkeypatch, name):
    _, _, release, _ = made(tmp_path, MODELS[name], "bfloat16")
    convert_to_gguf(release, tmp_path / "a.gguf", type_="q8_0")
    monkeypatch.setattr(checkpoint_convert.streaming.run, "BAND_BYTES", 30_000)
    convert_to_gguf(release, tmp_path / "b.gguf", type_="q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_metadata_is_what_llama_cpp_asks_for(tmp_path):
    _, _, release, model = made(tmp_path, MODELS["jais-12"], chat=True)
    card = release / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1))
    convert_to_gguf(release, tmp_path / "a.gguf", type_="q8_0")
    keys = keys_of(tmp_path / "a.gguf")
    assert keys["general.architecture"] == "jais"
    assert (keys["general.name"], keys["general.license"]) == ("release", "apache-2.0")
    assert keys["general.file_type"] == int(gguf.LlamaFileType.MOSTLY_Q8_0)
    assert keys["jais.context_length"] == model.config.max_position_embeddings
    assert keys["jais.attention.max_alibi_bias"] == 8
    assert keys["tokenizer.ggml.pre"] == "jais"
    assert keys["tokenizer.chat_template"] == (release / "chat_template.jinja").read_text()
    tokens = TOKENIZERS["jais"]()
    assert keys["tokenizer.ggml.tokens"][: tokens.get_vocab_size()] == [
        tokens.id_to_token(number) for number in range(tokens.get_vocab_size())
    ]
    assert len(keys["tokenizer.ggml.tokens"]) == SIZES["vocab_size"]
    assert keys["tokenizer.ggml.eos_token_id"] == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"pos_scaling_factor": 2.0}, "pos_scaling_factor = 2: GGUF has no place for scaled ALiBi positions"),
        ({"scale_qk_dot_by_d": False}, r"q\.k is multiplied by .* llama\.cpp's jais always uses 1/8"),
    ],
)
def test_what_llama_cpp_cannot_compute_is_refused(tmp_path, change, problem):
    _, _, release, _ = made(tmp_path, {**MODELS["jais-12"], **change})
    with pytest.raises(UserError, match=problem):
        convert_to_gguf(release, tmp_path / "a.gguf")
    assert listing(tmp_path) == ["c.mdl", "release", "tokenizer"]


def test_wrong_input_is_refused_and_nothing_is_left_over(tmp_path):
    checkpoint, tokenizer, release, _ = made(tmp_path, MODELS["jais-12"])
    before = listing(tmp_path)
    with pytest.raises(UserError, match="a checkpoint has no tokenizer"):
        convert_to_gguf(checkpoint, tmp_path / "a.gguf")
    with pytest.raises(UserError, match="already exists"):
        convert_to_gguf(release, tokenizer)
    with pytest.raises(UserError, match="is not a type of GGUF files"):
        convert_to_gguf(release, tmp_path / "a.gguf", type_="q5_k")
    (release / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        convert_to_gguf(release, tmp_path / "a.gguf")
    assert listing(tmp_path) == before


@pytest.mark.parametrize(("type_", "what"), [("f16", 70000.0), ("q8_0", np.nan)])
def test_a_number_that_the_type_cannot_represent_is_refused(tmp_path, type_, what):
    section = MODELS["llama-12"]
    state = state_of(random_model(section))
    name = "model.transformer_decoder.layers.1.ffn.ffn.1.linear_layer.weight"
    state[name] = state[name].copy()
    state[name][3, 5] = what
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state)
    tokenizer = write_tokenizer("llama", tmp_path / "tokenizer")
    with pytest.raises(UserError, match=rf"blk\.1\.ffn_down\.weight has {what:g}, which {type_} cannot represent"):
        convert_to_gguf(checkpoint, tmp_path / "a.gguf", type_=type_, tokenizer=tokenizer)
    assert listing(tmp_path) == ["c.mdl", "tokenizer"]
    convert_to_gguf(checkpoint, tmp_path / "a.gguf", type_="f32", tokenizer=tokenizer)


def test_tied_tensors_that_differ_are_refused(tmp_path):
    _, _, release, _ = made(tmp_path, MODELS["jais-12"])
    head = open_model(release)["lm_head.weight"]
    with open(head.path, "r+b") as file:
        file.seek(head.offset)
        file.write(b"\1\2\3")
    with pytest.raises(UserError, match="must be one tensor but differ"):
        convert_to_gguf(release, tmp_path / "a.gguf")


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return next(found for found in subjects(tmp_path_factory.mktemp("kills")) if found[0] == "to-gguf")


@pytest.mark.slow
def test_a_kill_before_a_system_call_is_gone_on_from(subject, tmp_path):
    name, source, expected_files, output = subject
    for number in range(0, steps_of(name, source, tmp_path / output), 3):
        assert trial(name, source, expected_files, output, [Moment("before", number)]) == ""


@pytest.mark.parametrize("share", slow_except([0.6], [0.01, 0.3, 0.6, 0.99]))
def test_a_kill_while_tensors_move_is_gone_on_from(subject, share):
    moments = [Moment("at", share), Moment("at", share), Moment("after", 0.0)]
    assert trial(*subject[:3], subject[3], moments) == ""


class StoppedError(Exception):
    pass


def test_what_was_finished_is_not_done_again_unless_it_is_damaged(tmp_path):
    _, _, release, _ = made(tmp_path, {**MODELS["jais-12"], "num_hidden_layers": 6})
    done = 0

    def stopping(nbytes, total):
        nonlocal done
        done += nbytes
        if done > 0.8 * total:
            raise StoppedError

    continued = []
    for damaged in (False, True):
        done = 0
        output = tmp_path / f"{damaged}.gguf"
        with pytest.raises(StoppedError):
            convert_to_gguf(release, output, type_="q8_0", progress=stopping)
        if damaged:
            (partial,) = (tmp_path / f".{output.name}.partial" / "files").iterdir()
            content = bytearray(partial.read_bytes())
            for at in range(len(content) // 2, len(content), 500):
                content[at] ^= 1
            partial.write_bytes(content)
        continued.append(convert_to_gguf(release, output, type_="q8_0").continued)
    assert continued[0] > continued[1] > 0
    assert (tmp_path / "False.gguf").read_bytes() == (tmp_path / "True.gguf").read_bytes()
