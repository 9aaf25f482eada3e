"""What the plugin for vLLM does without vLLM: its config, its slopes by rank, its tensors, its errors.

Contract: slopes of all ranks together are those of the model, interpolated; the keys of old and new files describe one
model; prepared tensors compute, in vLLM's layout and with the filter padded, what the release's own modules compute; a
tensor that is missing, left over, or of another shape or value is refused in one line. Registering imports nothing.
"""

import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.vllm_plugin.release import (
    SLOPES,
    aligned_filter,
    prepared_weights,
    release_config,
    slopes_of_rank,
    target_of,
)
from checkpoint_convert.configs.jais import jais_keys
from checkpoint_convert.mapping.rules import expected_tensors
from tests.cerebras_jais.model.examples import jais_section
from tests.tolerances import SAME_IN_FLOAT32

ROOT = Path(__file__).parents[3]


def keys_of(**changes):
    """The public keys of a small release's config.json; `changes` are to those keys."""
    return {**jais_keys(DecoderConfig.from_section(jais_section())), **changes}


def of_the_release():
    """The module of a release that has its slopes."""
    pytest.importorskip("transformers")
    return importlib.import_module("checkpoint_convert.hf_code.alibi_jais")


def weights_of(config, seed=0):
    """Random tensors as a release stores them, with the slopes of the release's own code."""
    generator = torch.Generator().manual_seed(seed)
    shapes = expected_tensors(config, "hugging_face")
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights[SLOPES] = torch.tensor(of_the_release().alibi_slopes(config.num_heads))[:, None]
    return weights


def prepare(config, weights, ranks=1, **more):
    filter_size = aligned_filter(config.filter_size, ranks)
    return dict(prepared_weights(weights.items(), config, filter_size=filter_size, **{"is_quantised": False, **more}))


def test_an_entry_point_registers_the_plugin_and_imports_nothing_heavy():
    entries = configparser.ConfigParser()
    entries.read(ROOT / "setup.cfg")
    name, _, function = (
        entries["options.entry_points"]["vllm.general_plugins"].strip().partition(" = ")[2].partition(":")
    )
    heavy = ["torch", "transformers", "vllm", "numpy", "pydantic"]
    code = f"import sys, {name} as m; print(callable(m.{function}), m.MODEL, [x for x in {heavy} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    callable_, model, imported = done.stdout.strip().split(" ", 2)
    assert (callable_, imported) == ("True", "[]")
    module, _, class_name = model.partition(":")
    assert f"class {class_name}(" in Path(ROOT, *module.split(".")).with_suffix(".py").read_text()


@pytest.mark.parametrize("heads", [12, 16, 20, 40, 56])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_slopes_of_all_ranks_together_are_those_of_the_model_interpolated(heads, ranks):
    scaling = {"type": "linear", "factor": 4.0}
    config = release_config(keys_of(n_head=heads, n_embd=heads * 4, mup_width_scale=1.0, alibi_scaling=scaling))
    found = [slope for rank in range(ranks) for slope in slopes_of_rank(config, rank, ranks)]
    assert found == pytest.approx([slope / 4 for slope in of_the_release().alibi_slopes(heads)], rel=1e-12)


def test_the_keys_of_the_first_jais_code_describe_the_same_model():
    new = keys_of(mup_embeddings_scale=14.6, mup_output_alpha=2.22, mup_width_scale=1 / 3)
    old = {key: value for key, value in new.items() if not key.startswith("mup_")}
    old |= {"embeddings_scale": 14.6, "width_scale": 2.22 / 3, "scale_qk_dot_by_d": True, "rotary_dim": None}
    for name, value in {"embeddings_scale": 14.6, "attention_scale": 1 / 4, "logits_scale": 2.22 / 3}.items():
        for keys in (new, old):
            assert getattr(release_config(keys), name) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("filter_size", [128, 130])
@pytest.mark.parametrize("ranks", [1, 4])
def test_prepared_tensors_compute_what_the_modules_of_the_release_do(filter_size, ranks):
    config = release_config(keys_of(n_inner=filter_size))
    stored = weights_of(config)
    prepared = prepare(config, stored, ranks)
    x = torch.randn(5, config.hidden_size)

    def conv1d(name, x):  # [in, out], as GPT-2 stores it
        return x @ stored[f"{name}.weight"] + stored[f"{name}.bias"]

    def linear(name, x, parts):
        """A layer of which each rank has some rows; its outputs come together."""
        rows = zip(*(prepared[f"{name}.{kind}"].chunk(parts) for kind in ("weight", "bias")), strict=True)
        return torch.cat([functional.linear(x, weight, bias) for weight, bias in rows], -1)

    h = "transformer.h.0."
    assert torch.allclose(linear(f"{h}attn.c_attn", x, 3), conv1d(f"{h}attn.c_attn", x), atol=SAME_IN_FLOAT32)
    up, gate = linear(f"{h}mlp.c_fc", x, ranks), linear(f"{h}mlp.c_fc2", x, ranks)
    assert up.shape[-1] % (16 * ranks) == 0
    inner = functional.silu(gate) * up
    columns = zip(inner.chunk(ranks, -1), prepared[f"{h}mlp.c_proj.weight"].chunk(ranks, -1), strict=True)
    out = sum(part @ weight.t() for part, weight in columns) + prepared[f"{h}mlp.c_proj.bias"]
    wanted = conv1d(f"{h}mlp.c_proj", conv1d(f"{h}mlp.c_fc", x) * functional.silu(conv1d(f"{h}mlp.c_fc2", x)))
    assert torch.allclose(out, wanted, rtol=1e-5, atol=1e-3)  # sums of 128 products of normal values


def test_the_swiglu_layers_are_two_parts_of_one_with_the_gate_first():
    layer = "transformer.h.3.mlp."
    assert target_of(f"{layer}c_fc2.weight") == (f"{layer}gate_up_proj.weight", 0)
    assert target_of(f"{layer}c_fc.bias") == (f"{layer}gate_up_proj.bias", 1)
    assert target_of("transformer.h.3.attn.c_attn.weight") == ("transformer.h.3.attn.c_attn.weight", None)


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_is_handed_on_once_but_the_slopes_masks_and_a_tied_head(tied):
    config = release_config(keys_of(tie_word_embeddings=tied))
    stored = weights_of(config) | {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        "transformer.h.1.attn.masked_bias": torch.tensor(-1e4),
    }
    wanted = set(expected_tensors(config, "hugging_face")) - {SLOPES} - ({"lm_head.weight"} if tied else set())
    assert prepare(config, stored).keys() == wanted
    del stored[SLOPES]  # they follow from the number of heads
    if tied:
        del stored["lm_head.weight"]
    assert prepare(config, stored).keys() == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_slopes_rounded_to_a_half_precision_are_those_of_the_model(dtype):
    config = release_config(keys_of())
    stored = weights_of(config)
    stored[SLOPES] = stored[SLOPES].to(dtype)
    prepare(config, stored)


def without(name):
    return lambda stored: stored.pop(name)


def with_value(name, value):
    return lambda stored: stored.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("transformer.h.1.mlp.c_fc2.bias"), "the weights lack layer 1: mlp.c_fc2.bias; fetch it again"),
        (without("transformer.ln_f.weight"), "the weights lack transformer.ln_f.weight; fetch it again"),
        (
            without("lm_head.weight"),
            "the weights lack lm_head.weight; set tie_word_embeddings: true if the head is the embedding",
        ),
        (
            with_value("transformer.h.2.ln_1.bias", torch.zeros(48)),
            "transformer.h.2.ln_1.bias: is not part of the model that config.json describes; check n_layer",
        ),
        (
            with_value("transformer.wte.weight", torch.zeros(98, 48)),
            "transformer.wte.weight: has shape [98, 48], but [97, 48] follows from config.json; give the config.json "
            "that belongs to the weights",
        ),
        (
            with_value(SLOPES, torch.full((12, 1), 0.5)),
            "transformer.relative_pe.slopes: are not the slopes of ALiBi for 12 heads, and vLLM has no others; remove "
            "the tensor if it is damaged (they follow from n_head)",
        ),
    ],
)
def test_weights_of_another_model_are_refused_in_one_line(change, message):
    config = release_config(keys_of(tie_word_embeddings=False))
    stored = weights_of(config)
    change(stored)
    with pytest.raises(UserError) as error:
        prepare(config, stored)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"position_embedding_type": "learned"}, "position_embedding_type is 'learned'"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"alibi_trainable_slopes": True}, "alibi_trainable_slopes is True"),
        ({"alibi_scaling": {"type": "linear", "train_seq_len": 2048}}, "vLLM has fixed slopes"),
        ({"n_head": 7}, "num_heads"),
    ],
)
def test_a_config_of_another_model_is_refused_in_one_line(changes, said):
    with pytest.raises(UserError) as error:
        release_config(keys_of(**changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_process_of_pipeline_parallel_asks_for_the_tensors_of_its_own_layers_alone():
    config = release_config(keys_of())
    stored = {name: tensor for name, tensor in weights_of(config).items() if ".h.1." not in name}
    prepare(config, stored, is_elsewhere=lambda parameter: ".h.1." in parameter)
    with pytest.raises(UserError, match=r"the weights lack layer 1: ln_1\.weight"):
        prepare(config, stored, is_elsewhere=lambda parameter: ".h.0." in parameter)


def test_a_release_quantised_in_advance_passes_as_it_is_stored():
    config = release_config(keys_of())
    stored = weights_of(config)
    module = "transformer.h.0.attn.c_attn"
    del stored[f"{module}.weight"]
    packed = {f"{module}.{part}": torch.ones(2, 2, dtype=torch.int32) for part in ("qweight", "scales")}
    prepared = prepare(config, stored | packed, is_quantised=True)
    assert all(prepared[name] is tensor for name, tensor in packed.items())
    with pytest.raises(UserError, match=r"c_attn\.qweight: is not part of the model"):
        prepare(config, stored | packed)


def test_a_filter_size_that_is_null_is_four_times_the_hidden_size():
    keys = keys_of(n_inner=None)
    assert release_config(keys).filter_size == 4 * keys["n_embd"]
