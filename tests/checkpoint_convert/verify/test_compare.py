"""Two models are the same or it is said what differs; a model is what its manifest says or it is said where not.

Contract: a checkpoint, its release and the checkpoint made of that have equal manifests; one flipped bit is found, in
a comparison and against the manifest; a release in a narrower type is the checkpoint rounded as torch rounds.
"""

import json

import numpy as np
import pytest
import torch

from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.errors import UserError
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.formats.safetensors import open_model
from checkpoint_convert.printing import inspection_text
from checkpoint_convert.verify.compare import check_manifest, compare
from checkpoint_convert.verify.inspect import inspect
from tests.checkpoint_convert.examples import (
    VARIANTS,
    jais_section,
    random_model,
    state_of,
    to_numpy,
    write_checkpoint,
)

QUERY = "model.transformer_decoder.layers.1.self_attn.proj_q_dense_layer.weight"


def checkpoint_of(directory, name="jais-12-heads", file="c.mdl", **changes):
    section = VARIANTS[name] if not changes else jais_section(**changes)
    return write_checkpoint(directory / file, section, state_of(random_model(section)))


def listing(directory):
    return sorted(path.name for path in directory.iterdir())


def digests(path):
    return {name: about["digest"] for name, about in json.loads(path.read_text())["tensors"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jais-40-heads", "llama-40-heads-grouped", "llama-20-heads-tied"])
def test_both_sides_have_one_manifest(tmp_path, name):
    checkpoint = checkpoint_of(tmp_path, name)
    convert_to_hf(checkpoint, tmp_path / "release")
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    of_release = digests(tmp_path / "release" / "manifest.json")
    assert of_release == digests(tmp_path / "back.manifest.json")
    for path in (tmp_path / "release", tmp_path / "back.mdl"):
        result = check_manifest(path)
        assert result.same and set(result.manifests.values()) == {len(of_release)}
    assert compare(checkpoint, tmp_path / "release").same


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_bit_is_found_on_either_side(tmp_path):
    checkpoint = checkpoint_of(tmp_path)
    convert_to_hf(checkpoint, tmp_path / "release")
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    place = open_model(tmp_path / "release")["transformer.h.0.mlp.c_fc.weight"]
    flip(place.path, place.offset + 9)
    with open_checkpoint(tmp_path / "back.mdl") as opened:
        offset = opened.tensors[f"model.{QUERY}"].header.offset
    flip(tmp_path / "back.mdl", offset + 5)
    up = "transformer_decoder.layers.0.ffn.ffn.0.linear_layer.weight"
    assert list(check_manifest(tmp_path / "release").differences) == [up]
    assert list(check_manifest(tmp_path / "back.mdl").differences) == [QUERY.removeprefix("model.")]
    assert list(compare(checkpoint, tmp_path / "release").differences) == [up]
    both = compare(tmp_path / "release", tmp_path / "back.mdl")
    assert set(both.differences) == {up, QUERY.removeprefix("model.")}


@pytest.mark.slow
def test_a_model_without_a_manifest_asks_for_another(tmp_path):
    with pytest.raises(UserError, match="has no manifest"):
        check_manifest(checkpoint_of(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_another_element_type_is_torchs_rounding_but_for_the_slopes(tmp_path, dtype, torch_dtype):
    section = jais_section()
    model = random_model(section)
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(model))
    convert_to_hf(checkpoint, tmp_path / "release", dtype=dtype)
    tensors = open_model(tmp_path / "release")
    assert tensors.pop("transformer.relative_pe.slopes").dtype == "float32"
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    wanted = to_numpy(model.state_dict()["model.embedding_layer.word_embeddings.weight"].to(torch_dtype))
    assert tensors["transformer.wte.weight"].read().tobytes() == wanted.tobytes()
    result = compare(checkpoint, tmp_path / "release")
    assert result.same and result.rounded == (dtype,)
    convert_to_cerebras(tmp_path / "release", tmp_path / "wide.mdl", dtype="float32")
    assert compare(tmp_path / "wide.mdl", tmp_path / "release").same


@pytest.mark.slow
def test_what_float16_cannot_hold_is_refused_by_name(tmp_path):
    section = jais_section()
    state = state_of(random_model(section))
    state[QUERY][3, 4] = 1e5
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state)
    with pytest.raises(UserError, match=r"proj_q_dense_layer.*100000.*bfloat16 or float32"):
        convert_to_hf(checkpoint, tmp_path / "release", dtype="float16")
    assert listing(tmp_path) == ["c.mdl"]


@pytest.mark.slow
def test_a_difference_has_its_size(tmp_path):
    section = jais_section()
    state = state_of(random_model(section))
    one = write_checkpoint(tmp_path / "one.mdl", section, state)
    changed = state[QUERY].copy()
    changed[0, :3] += np.float32(0.5)
    other = write_checkpoint(tmp_path / "two.mdl", section, state | {QUERY: changed})
    convert_to_hf(one, tmp_path / "release")
    for first in (one, tmp_path / "release"):
        (text,) = compare(first, other, magnitudes=True).differences.values()
        assert text.startswith("3 of 2,304 values differ, by 0.5")


@pytest.mark.slow
def test_other_muP_constants_are_a_difference(tmp_path):
    one = checkpoint_of(tmp_path, file="one.mdl", output_logits_alpha=1.0)
    other = checkpoint_of(tmp_path, file="two.mdl", output_logits_alpha=2.0)
    result = compare(one, other)
    assert not result.same and not result.differences
    assert result.config == {"mup_output_alpha": (1.0, 2.0)}


@pytest.mark.slow
def test_a_tied_head_that_is_not_the_embedding_is_a_difference(tmp_path):
    section = jais_section()
    state = state_of(random_model(section))
    one = write_checkpoint(tmp_path / "one.mdl", section, state)
    other = write_checkpoint(
        tmp_path / "two.mdl", section, state | {"model.lm_head.weight": state["model.lm_head.weight"] + 1}
    )
    assert list(compare(one, other).differences) == ["lm_head.weight"]
    with pytest.raises(UserError, match="must be one tensor but differ"):
        convert_to_hf(other, tmp_path / "release", dry_run=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jais-12-heads", "llama-40-heads-grouped"])
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, name):
    checkpoint = checkpoint_of(tmp_path, name)
    planned = convert_to_hf(checkpoint, tmp_path / "release", dry_run=True)
    assert listing(tmp_path) == ["c.mdl"]
    assert any(line.startswith("layers 0-1: ") for line in planned.lines)
    made = convert_to_hf(checkpoint, tmp_path / "release")
    assert (planned.write_bytes, planned.tensors, planned.steps) == (made.write_bytes, made.tensors, made.steps)
    assert made.write_bytes == sum(tensor.nbytes for tensor in open_model(tmp_path / "release").values())
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl", dry_run=True)
    assert listing(tmp_path) == ["c.mdl", "release"]


@pytest.mark.slow
def test_the_slopes_key_of_release_2_0_is_read(tmp_path):
    section = jais_section()
    state = state_of(random_model(section))
    new = "model.embedding_layer.position_embed_helper.slopes"
    old = {name.replace(new, "model.relative_pe_helper.slopes"): values for name, values in state.items()}
    convert_to_hf(write_checkpoint(tmp_path / "old.mdl", section, old), tmp_path / "release")
    assert compare(write_checkpoint(tmp_path / "new.mdl", section, state), tmp_path / "release").same
    both = write_checkpoint(tmp_path / "both.mdl", section, state | old)
    with pytest.raises(UserError, match="two names of one tensor"):
        convert_to_hf(both, tmp_path / "other")


@pytest.mark.slow
def test_pickled_weights_are_read_only_where_that_is_allowed(tmp_path):
    convert_to_hf(checkpoint_of(tmp_path), tmp_path / "release")
    tensors = {name: torch.from_numpy(tensor.read()) for name, tensor in open_model(tmp_path / "release").items()}
    for file in (tmp_path / "release").glob("model*"):
        if "safetensors" in file.name:
            file.unlink()
    torch.save(tensors, tmp_path / "release" / "pytorch_model.bin")
    with pytest.raises(UserError, match="--allow-pickle"):
        convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl", allow_pickle=True)
    assert compare(tmp_path / "c.mdl", tmp_path / "back.mdl").same


@pytest.mark.slow
def test_inspection_says_what_a_file_is(tmp_path):
    checkpoint = checkpoint_of(tmp_path)
    convert_to_hf(checkpoint, tmp_path / "release")
    of_checkpoint, of_release = inspect(checkpoint), inspect(tmp_path / "release")
    assert (of_checkpoint["release"], of_checkpoint["training step"]) == ("2.10.0", 20)
    for found in (of_checkpoint, of_release):
        assert found["parameters"] == 61_436
        assert found["head"] == "tied to the embedding"
        assert found["converts"] == "yes"
        assert json.loads(json.dumps(found)) == found
        assert "JAISLMHeadModel" in inspection_text(found)
    assert (of_checkpoint["manifest"], of_release["manifest"]) == ("none", "40 tensors")


@pytest.mark.slow
def test_inspection_says_why_a_file_does_not_convert(tmp_path):
    section = jais_section()
    state = state_of(random_model(section))
    del state["model.transformer_decoder.layers.0.norm1.bias"]
    found = inspect(write_checkpoint(tmp_path / "c.mdl", section, state))
    assert found["converts"].startswith("no: ") and "layer 0: norm1.bias" in found["converts"]
