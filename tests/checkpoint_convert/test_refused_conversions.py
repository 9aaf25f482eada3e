"""What a conversion refuses, or cannot finish, is one clear error and leaves nothing behind.

Contract: a checkpoint, a config or a release that is damaged or does not fit is named with the reason; an output that
exists is never touched; an interruption, a full disk or a failed write leaves nothing under the name of the output.
"""

import json
import os
import shutil

import h5py
import numpy as np
import pytest

from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.errors import UserError
from checkpoint_convert import outputs as targets
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from tests.checkpoint_convert.examples import (
    VARIANTS,
    jais_checkpoint,
    jais_section,
    listing,
    random_model,
    state_of,
    write_checkpoint,
)


def without(key):
    return lambda state: state.pop(key)


def also(key):
    return lambda state: state.update({key: np.zeros(3, np.float32)})


def with_values(key, change):
    return lambda state: state.update({key: change(state[key].copy())})


def other_head(values):
    values[0, 0] += 1
    return values


LAYER = "model.transformer_decoder.layers"


def without_glu_bias(state):
    for layer in (0, 1):
        del state[f"{LAYER}.{layer}.ffn.ffn.0.linear_layer_for_glu.bias"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without(f"{LAYER}.1.norm1.weight"), r"missing: layer 1: norm1\.weight"),
        (without_glu_bias, r"missing: layers 0-1: ffn\.ffn\.0\.linear_layer_for_glu\.bias"),
        (without("model.embedding_layer.position_embed_helper.slopes"), "missing: embedding_layer.position_embed"),
        (also(f"{LAYER}.2.norm1.weight"), r"not in such a model: layer 2: norm1\.weight"),
        (also("model.extra"), "not in such a model: extra"),
        (with_values("model.lm_head.weight", other_head), "share_embedding_weights: false"),
        (with_values("model.ln_f.bias", lambda v: v + 1), "ln_f.bias and transformer_decoder.norm.bias"),
        (with_values("model.embedding_layer.position_embed_helper.slopes", lambda v: v[::-1]), "ALiBi's slopes"),
        (with_values("model.embedding_layer.position_embed_helper.slopes", lambda v: v * np.nan), "ALiBi's slopes"),
        (with_values(f"{LAYER}.0.self_attn.proj_q_dense_layer.bias", lambda v: v[:-1]), r"\[47\] where .* \[48\]"),
        (
            with_values(f"{LAYER}.0.self_attn.proj_q_dense_layer.bias", lambda v: v.astype(np.float16)),
            "several types",
        ),
        (with_values("model.ln_f.bias", lambda v: v.astype(np.int32)), r"float64; ln_f\.bias: int32"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_config_is_one_error_and_leaves_nothing(tmp_path, damage, said):
    section = jais_section()
    state = state_of(random_model(section))
    damage(state)
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state)
    with pytest.raises(UserError, match=said) as caught:
        convert_to_hf(checkpoint, tmp_path / "release")
    assert "\n" not in str(caught.value)
    assert listing(tmp_path) == ["c.mdl"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 3}, "missing: layer 2: "),
        ({"num_hidden_layers": 1}, "not in such a model: layer 1: "),
        ({"vocab_size": 100}, r"\[97, 48\] where the config demands \[100, 48\]"),
        ({"filter_size": 64}, r"layers 0-1: .*\[128, 48\] where the config demands \[64, 48\]"),
        ({"num_heads": 8}, r"\[12, 1\] where the config demands \[8, 1\]"),
        ({"hidden_sise": 48}, "hidden_sise"),
    ],
)
def test_a_config_that_does_not_fit_the_checkpoint_is_one_error_and_leaves_nothing(tmp_path, changes, said):
    checkpoint = jais_checkpoint(tmp_path)
    with pytest.raises(UserError, match=said):
        convert_to_hf(checkpoint, tmp_path / "release", config=jais_section(**changes))
    assert listing(tmp_path) == ["c.mdl"]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.999])
def test_a_truncated_checkpoint_is_one_error_and_leaves_nothing(tmp_path, share):
    checkpoint = jais_checkpoint(tmp_path)
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"c\.mdl"):
        convert_to_hf(checkpoint, tmp_path / "release")
    assert listing(tmp_path) == ["c.mdl"]


def test_a_checkpoint_that_says_nothing_of_its_config_asks_for_it(tmp_path):
    section = jais_section()
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)), with_metadata=False)
    with pytest.raises(UserError, match="--config"):
        convert_to_hf(checkpoint, tmp_path / "release")


@pytest.mark.parametrize(
    ("layers", "refusal"),
    [(1000, "its config has 1000 layers .* tensors in all")]
    + [
        (layers, f"num_hidden_layers.* must be a whole number from 1 to 1024 .got {layers}.")
        for layers in (1025, 1 << 62)
    ],
)
def test_more_layers_than_tensors_are_refused_without_naming_them_all(tmp_path, layers, refusal):
    section = VARIANTS["llama-20-heads-tied"]
    checkpoint, release = tmp_path / "c.mdl", tmp_path / "release"
    write_checkpoint(checkpoint, section, state_of(random_model(section)))
    convert_to_hf(checkpoint, release)
    with pytest.raises(UserError, match=refusal):
        convert_to_hf(checkpoint, tmp_path / "other", config={**section, "num_hidden_layers": layers})
    config = json.loads((release / "config.json").read_text())
    config = {key: value for key, value in config.items() if key != "cerebras"} | {"num_hidden_layers": layers}
    (release / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"release.*: .*{refusal}"):
        convert_to_cerebras(release, tmp_path / "back.mdl")


def test_a_file_without_a_model_is_refused(tmp_path):
    save_checkpoint(tmp_path / "c.mdl", {"optimizer": {"step": 1}})
    with pytest.raises(UserError, match="no model"):
        convert_to_hf(tmp_path / "c.mdl", tmp_path / "release", config=jais_section())


def test_an_existing_output_is_never_touched(tmp_path):
    checkpoint = jais_checkpoint(tmp_path)
    convert_to_hf(checkpoint, tmp_path / "release")
    before = (tmp_path / "release" / "config.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="exists"):
        convert_to_hf(checkpoint, tmp_path / "release")
    assert (tmp_path / "release" / "config.json").stat().st_mtime_ns == before
    (tmp_path / "back.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"back\.yaml: already exists"):
        convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    assert (tmp_path / "back.yaml").read_text() == "mine"
    (tmp_path / "other.mdl").write_text("mine")
    with pytest.raises(UserError, match=r"other\.mdl: already exists"):
        convert_to_cerebras(tmp_path / "release", tmp_path / "other.mdl")
    assert listing(tmp_path) == ["back.yaml", "c.mdl", "other.mdl", "release"]


def test_an_output_in_a_directory_that_is_not_there_is_refused(tmp_path):
    checkpoint = jais_checkpoint(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        convert_to_hf(checkpoint, tmp_path / "no" / "release")


def test_an_error_while_writing_leaves_nothing(tmp_path):
    checkpoint = jais_checkpoint(tmp_path)

    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_to_hf(checkpoint, tmp_path / "release", progress=interrupted)
    assert listing(tmp_path) == ["c.mdl"]
    convert_to_hf(checkpoint, tmp_path / "release")
    with pytest.raises(KeyboardInterrupt):
        convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl", progress=interrupted)
    assert listing(tmp_path) == ["c.mdl", "release"]


def test_a_full_disk_is_refused_before_writing(tmp_path, monkeypatch):
    checkpoint = jais_checkpoint(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="make room"):
        convert_to_hf(checkpoint, tmp_path / "release")
    assert listing(tmp_path) == ["c.mdl"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: (d / "model-00001-of-00001.safetensors").unlink(), "model-00001"),
        (lambda d: (d / "model.safetensors.index.json").unlink(), "neither"),
        (lambda d: os.truncate(d / "model-00001-of-00001.safetensors", 5000), "truncated"),
    ],
)
def test_a_damaged_release_is_one_error_and_leaves_nothing(tmp_path, damage, said):
    convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release")
    damage(tmp_path / "release")
    with pytest.raises(UserError, match=said):
        convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    assert listing(tmp_path) == ["c.mdl", "release"]


def test_a_config_json_that_describes_no_model_is_named_once(tmp_path):
    convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release")
    path = tmp_path / "release" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": None}))
    with pytest.raises(UserError) as refused:
        convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    assert str(refused.value).startswith(f"{path}: n_layer must be")


def pickled(path, key):
    """The checkpoint with one leaf declared to be a pickled object."""
    with h5py.File(path, "r+") as file:
        record = json.loads(file.attrs[f"{key}.__metadata__"])
        record[f"{key}.__metadata__"] = {"__TYPE__": "ObjectSerializer", "__BYTES__": True}
        file.attrs[f"{key}.__metadata__"] = json.dumps(record)
    return path


def test_an_object_that_is_not_read_is_named(tmp_path):
    report = convert_to_hf(pickled(jais_checkpoint(tmp_path), "global_step"), tmp_path / "release")
    assert any(note.startswith("not read") and "global_step" in note for note in report.notes)


def test_a_pickled_weight_is_refused_with_the_reason(tmp_path):
    checkpoint = pickled(jais_checkpoint(tmp_path), "model.model.ln_f.bias")
    with pytest.raises(UserError, match=r"'model\.model\.ln_f\.bias' is a pickled Python object"):
        convert_to_hf(checkpoint, tmp_path / "release")
    assert listing(tmp_path) == ["c.mdl"]


def test_a_yaml_that_cannot_be_written_leaves_no_checkpoint_under_its_name(tmp_path, monkeypatch):
    convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release")

    def failing(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(targets, "write_text", failing)
    with pytest.raises(UserError, match=r"back\.mdl: cannot be written"):
        convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    assert listing(tmp_path) == [".back.mdl.partial", "c.mdl", "release"]
    monkeypatch.undo()
    assert convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl").continued > 10
    assert listing(tmp_path) == ["back.manifest.json", "back.mdl", "back.yaml", "c.mdl", "release"]
