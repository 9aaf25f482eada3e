"""A checkpoint becomes a release and comes back bit for bit, and the release computes what the checkpoint computes.

Contract: both families, head counts 12, 20, 40 and 56, grouped queries, tied and untied, fp32 and bf16: all tensors
identical after the round trip, the `model:` section equal, logits of transformers equal to the reference path's.
What is refused: test_refused_conversions.py.
"""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from checkpoint_convert.configs.trainer_yaml import read_model_section
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.formats.safetensors import open_model
from checkpoint_convert.open_model import cerebras_tensors
from checkpoint_convert.release import CODE_FILES
from checkpoint_convert.streaming import run as stream
from checkpoint_convert.verify.compare import compare
from tests import tolerances
from tests.checkpoint_convert.examples import (
    DTYPES,
    VARIANTS,
    jais_checkpoint,
    jais_section,
    listing,
    llama_section,
    random_model,
    state_of,
    write_checkpoint,
)


def load_release(directory):
    from transformers import AutoModelForCausalLM

    own_code = json.loads((directory / "config.json").read_text())["model_type"] == "jais"
    keys = {"trust_remote_code": True} if own_code else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, torch_dtype=torch.float32, output_loading_info=True, **keys
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("jais", "JAISModel"),
        ("llama", "LlamaModel"),
        ("gpt2", "Gpt2Model"),
        ("jais_family", "JaisFamilyModel"),
        ("jais_adapted", "JaisAdaptedModel"),
    ],
)
def test_a_release_taken_back_is_labelled_as_a_trainer_of_its_model_labels_it(tmp_path, name, class_name):
    section = (llama_section if name in ("llama", "jais_adapted") else jais_section)(name=name)
    checkpoint = write_checkpoint(tmp_path / "there.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, tmp_path / "release")
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    with open_checkpoint(tmp_path / "back.mdl") as back:
        assert back.metadata[-1]["model_name"] == class_name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_comes_back_bit_for_bit(tmp_path, name, dtype):
    section = VARIANTS[name]
    state = state_of(random_model(section), DTYPES[dtype])
    checkpoint = write_checkpoint(tmp_path / "there.mdl", section, state)
    convert_to_hf(checkpoint, tmp_path / "release", max_shard_size=20_000)
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")

    with open_checkpoint(tmp_path / "back.mdl") as back:
        came = {key: tensor.read() for key, tensor in back.tree["model"].items()}
        assert back.metadata[-1]["version"] == "2.10.0"
        assert back.metadata[-1]["params"]["trainer"]["init"]["model"] == section
    assert came.keys() == state.keys()
    for key, values in state.items():
        assert (came[key].dtype, came[key].shape) == (values.dtype, values.shape)
        assert came[key].tobytes() == values.tobytes(), key
    assert read_model_section(tmp_path / "back.yaml") == section
    for pair in (("there.mdl", "back.mdl"), ("there.mdl", "release"), ("release", "back.mdl")):
        result = compare(*(tmp_path / path for path in pair))
        assert result.identical == result.tensors
        assert result.tensors == len({tensor.data_ptr() for tensor in random_model(section).state_dict().values()})
    assert listing(tmp_path) == ["back.manifest.json", "back.mdl", "back.yaml", "release", "there.mdl"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_tensors_of_several_bands_come_out_as_those_of_one(tmp_path, monkeypatch, dtype):
    """Matrices of several tiles, in bands of a tile's rows: the same files as in one band and as from packed files."""
    checkpoint = jais_checkpoint(tmp_path, hidden_size=12 * 56, num_heads=12, filter_size=900, vocab_size=700)

    def made(name, band):
        monkeypatch.setattr(stream, "BAND_BYTES", band)
        there, back, packed = (tmp_path / f"{name}-{kind}" for kind in ("release", "back.mdl", "packed.mdl"))
        convert_to_hf(checkpoint, there, dtype=dtype)
        convert_to_cerebras(there, back)
        convert_to_cerebras(there, packed, compression="lz4")
        convert_to_hf(packed, tmp_path / f"{name}-again")
        again, shards = (
            [p.read_bytes() for p in sorted(d.glob("*.safetensors"))] for d in (tmp_path / f"{name}-again", there)
        )
        assert again == shards
        with open_checkpoint(back) as opened:
            return shards, {key: tensor.read().tobytes() for key, tensor in opened.tree["model"].items()}

    assert made("narrow", 1) == made("whole", 1 << 30)
    if dtype is None:
        assert compare(checkpoint, tmp_path / "narrow-back.mdl").same


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_computes_the_logits_of_the_reference_path(tmp_path, name):
    model = random_model(VARIANTS[name])
    checkpoint = write_checkpoint(tmp_path / "c.mdl", VARIANTS[name], state_of(model))
    convert_to_hf(checkpoint, tmp_path / "release")
    loaded = load_release(tmp_path / "release")
    expected_class = "JAISLMHeadModel" if name.startswith("jais") else "LlamaForCausalLM"
    assert type(loaded).__name__ == expected_class
    ids = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (loaded(ids).logits - model.logits(ids)).abs().max() < tolerances.RELEASE_LOGITS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jais-12-heads", "llama-12-heads", "llama-20-heads-tied"])
def test_what_transformers_saves_comes_back(tmp_path, name):
    """save_pretrained drops tied heads and rewrites config.json; both must still give the checkpoint."""
    section = VARIANTS[name]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, tmp_path / "release")
    load_release(tmp_path / "release").save_pretrained(tmp_path / "saved")
    convert_to_cerebras(tmp_path / "saved", tmp_path / "back.mdl")
    result = compare(checkpoint, tmp_path / "back.mdl")
    assert result.identical == result.tensors
    assert read_model_section(tmp_path / "back.yaml") == section
    assert not compare(checkpoint, tmp_path / "saved").differences


def test_a_converted_release_loads_into_the_reference_model(tmp_path):
    section = llama_section(kv_groups=4)
    model = random_model(section)
    convert_to_hf(write_checkpoint(tmp_path / "c.mdl", section, state_of(model)), tmp_path / "release")
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    fresh = LanguageModel(DecoderConfig.from_section(read_model_section(tmp_path / "back.yaml"))).eval()
    with open_checkpoint(tmp_path / "back.mdl") as back:
        fresh.load_state_dict({key: torch.from_numpy(tensor.read()) for key, tensor in back.tree["model"].items()})
    ids = torch.arange(20)[None]
    assert torch.equal(fresh.logits(ids), model.logits(ids))


@pytest.mark.slow
def test_the_release_is_complete_and_loads_as_other_loaders_expect(tmp_path):
    convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release", max_shard_size=30_000)
    names = listing(tmp_path / "release")
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        *CODE_FILES,
        "README.md",
    } <= set(names)
    assert any(name.startswith("model-00002-of-") for name in names)
    tensors = open_model(tmp_path / "release")
    assert tensors["lm_head.weight"].shape == (97, 48)
    assert tensors["transformer.relative_pe.slopes"].shape == (12, 1)
    config = json.loads((tmp_path / "release" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_jais.JAISLMHeadModel"
    assert config["torch_dtype"] == "float32"


def test_training_state_is_left_out_and_said_so(tmp_path):
    report = convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release")
    assert any("optimizer" in note and "global_step" in note for note in report.notes)
    assert report.parameters == 61436


def test_a_checkpoint_without_the_leading_name_and_without_tied_names_converts(tmp_path):
    section = jais_section()
    state = state_of(random_model(section))
    bare = {k.removeprefix("model."): v for k, v in state.items() if not k.startswith(("model.ln_f", "model.lm_head"))}
    checkpoint = write_checkpoint(tmp_path / "bare.mdl", section, bare, with_metadata=False)
    convert_to_hf(checkpoint, tmp_path / "release", config=section)
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    with open_checkpoint(tmp_path / "back.mdl") as back:
        assert {k: t.read().tobytes() for k, t in back.tree["model"].items()} == {
            k: v.tobytes() for k, v in state.items()
        }


def test_the_config_of_a_yaml_comes_before_the_checkpoints_own(tmp_path):
    checkpoint = jais_checkpoint(tmp_path)
    (tmp_path / "c.yaml").write_text(json.dumps({"trainer": {"init": {"model": jais_section(pos_scaling_factor=2.0)}}}))
    convert_to_hf(checkpoint, tmp_path / "release", config=tmp_path / "c.yaml")
    assert json.loads((tmp_path / "release" / "config.json").read_text())["alibi_scaling"]["factor"] == 2.0


def test_float16_and_mixed_types_keep_their_types(tmp_path):
    section = llama_section()
    state = state_of(random_model(section), torch.float16)
    key = "model.transformer_decoder.layers.0.norm1.weight"
    state[key] = state[key].astype(np.float32)
    convert_to_hf(write_checkpoint(tmp_path / "c.mdl", section, state), tmp_path / "release")
    types = {name: tensor.dtype for name, tensor in open_model(tmp_path / "release").items()}
    assert types.pop("model.layers.0.input_layernorm.weight") == "float32"
    assert set(types.values()) == {"float16"}


# ---- compare ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_flipped_bit_is_found(tmp_path, dtype):
    section = jais_section()
    state = state_of(random_model(section), DTYPES[dtype])
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state)
    convert_to_hf(checkpoint, tmp_path / "release")
    key = "model.transformer_decoder.layers.1.self_attn.proj_v_dense_layer.weight"
    values = state[key].copy()
    values.reshape(-1).view(np.uint8)[17] ^= 1
    changed = write_checkpoint(tmp_path / "changed.mdl", section, state | {key: values})

    for other in (checkpoint, tmp_path / "release"):
        result = compare(changed, other)
        assert result.differences == {key.removeprefix("model."): "other values"}
        assert (result.identical, result.tensors) == (39, 40)


def test_missing_names_and_other_types_are_differences(tmp_path):
    section = llama_section()
    state = state_of(random_model(section))
    one = write_checkpoint(tmp_path / "one.mdl", section, state)
    two = {k: v for k, v in state.items() if k != "model.lm_head.weight"}
    two["model.ln_f.weight"] = two["model.ln_f.weight"].astype(ml_dtypes.bfloat16)
    other = write_checkpoint(tmp_path / "two.mdl", section, two)
    assert compare(one, other).differences == {
        "lm_head.weight": f"lm_head.weight missing in {other}",
        "ln_f.weight": f"not transformer_decoder.norm.weight, the same tensor under another name, in {other}",
    }


# ---- the core stays light --------------------------------------------------------------------------------------------


def test_conversion_imports_neither_torch_nor_transformers(tmp_path):
    checkpoint = jais_checkpoint(tmp_path)
    script = (
        "import sys\n"
        "from checkpoint_convert.verify.compare import compare\n"
        "from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf\n"
        f"convert_to_hf({str(checkpoint)!r}, {str(tmp_path / 'r')!r})\n"
        f"convert_to_cerebras({str(tmp_path / 'r')!r}, {str(tmp_path / 'b.mdl')!r})\n"
        f"assert not compare({str(checkpoint)!r}, {str(tmp_path / 'b.mdl')!r}).differences\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.modelzoo
@pytest.mark.parametrize("name", ["jais-12-heads", "jais-20-heads-untied", "llama-56-heads-grouped-tied"])
def test_the_model_zoo_loads_a_converted_checkpoint_with_the_same_loss(tmp_path, name):
    pytest.importorskip("cerebras.modelzoo")
    import cerebras.pytorch as cstorch

    from tests.cerebras_jais.model.examples import batch_of
    from tests.cerebras_jais.model.test_against_modelzoo import modelzoo_model

    model = random_model(VARIANTS[name])
    convert_to_hf(write_checkpoint(tmp_path / "c.mdl", VARIANTS[name], state_of(model)), tmp_path / "release")
    convert_to_cerebras(tmp_path / "release", tmp_path / "back.mdl")
    theirs = modelzoo_model(read_model_section(tmp_path / "back.yaml")).eval()
    theirs.load_state_dict(cstorch.load(tmp_path / "back.mdl")["model"])
    batch = batch_of(model.config, packed=False)
    with torch.no_grad():
        assert abs(float(theirs(batch)) - float(model(batch))) < tolerances.MODELZOO_LOSS


def test_tensors_of_a_checkpoint_lose_their_leading_name(tmp_path):
    with open_checkpoint(jais_checkpoint(tmp_path)) as opened:
        assert "embedding_layer.word_embeddings.weight" in cerebras_tensors(opened)


@pytest.mark.parametrize("name", ["jais-12-heads", "llama-12-heads"])
def test_a_bfloat16_release_computes_in_bfloat16(tmp_path, name):
    from transformers import AutoModelForCausalLM

    state = state_of(random_model(VARIANTS[name]), torch.bfloat16)
    convert_to_hf(write_checkpoint(tmp_path / "c.mdl", VARIANTS[name], state), tmp_path / "release")
    ids = torch.randint(0, 97, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = load_release(tmp_path / "release")(ids).logits
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "release", torch_dtype=torch.bfloat16, trust_remote_code=name.startswith("jais")
    ).eval()
    result = model(ids).logits
    assert result.dtype == torch.bfloat16
    assert result.isfinite().all()
    bound = tolerances.RELEASE_LOGITS_BFLOAT16 * expected.abs().max()
    assert (result.float() - expected).abs().max() < bound
