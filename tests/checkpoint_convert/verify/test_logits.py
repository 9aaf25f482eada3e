"""Layer by layer: a release computes what its checkpoint computes, and the first layer that does not is named.

Contract: the places are those of transformers' own hidden states; an untouched pair departs nowhere, rounded weights
stay within the tolerance of their element type; whatever is changed on one side is found at the place that computes
with it and not before; no more of a model is in memory than one module's weights.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from cerebras_jais.model.decoder import LanguageModel
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.open_model import opening
from checkpoint_convert.verify.logits import compare_logits
from checkpoint_convert.verify.streamed_weights import find_weights, stream_weights
from tests.checkpoint_convert.examples import VARIANTS, random_model, state_of, write_checkpoint

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture(params=["jais-12-heads", "llama-40-heads-grouped"])
def pair(request, tmp_path):
    section = VARIANTS[request.param]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, tmp_path / "release")
    return checkpoint, tmp_path / "release"


def change_weight(release, part):
    """Add to the one tensor of the release whose name has this part."""
    tensors = load_file(release / SHARD)
    (name,) = [name for name in tensors if part in name]
    tensors[name] = tensors[name] + np.float32(0.5) * np.arange(tensors[name].size).reshape(tensors[name].shape) % 3
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, release / SHARD, {"format": "pt"})


def change_config(release, **changes):
    path = release / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_an_untouched_pair_departs_nowhere(tmp_path, name):
    section = VARIANTS[name]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, tmp_path / "release")
    report = compare_logits(checkpoint, tmp_path / "release")
    layers = [f"layer {index}" for index in range(section["num_hidden_layers"])]
    assert [layer.name for layer in report.layers] == ["embedding", *layers, "final norm", "logits"]
    assert report.first_departure is None and report.rounded_to == "float32"
    assert report.same_choice == report.positions == report.prompts * min(64, section["max_position_embeddings"])
    assert report.layers[-1].largest_magnitude > 1


def test_a_changed_weight_is_found_at_its_layer_and_not_before(pair):
    checkpoint, release = pair
    is_jais = (release / "modeling_jais.py").exists()
    change_weight(release, "h.1.ln_2.weight" if is_jais else "layers.1.post_attention_layernorm.weight")
    report = compare_logits(checkpoint, release)
    assert report.first_departure == "layer 1"
    assert [layer.departs for layer in report.layers[:2]] == [False, False]


@pytest.mark.slow
def test_a_lost_logit_scale_departs_at_the_logits(tmp_path):
    section = VARIANTS["jais-12-heads"]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, tmp_path / "release")
    change_config(tmp_path / "release", mup_output_alpha=1.0, mup_width_scale=1.0)
    report = compare_logits(checkpoint, tmp_path / "release")
    assert report.first_departure == "logits"
    # A scale changes no choice, so agreement of choices alone would not have found it.
    assert report.same_choice == report.positions


@pytest.mark.slow
def test_a_lost_embedding_scale_departs_at_the_embedding(tmp_path):
    section = VARIANTS["jais-12-heads"]
    checkpoint = write_checkpoint(tmp_path / "c.mdl", section, state_of(random_model(section)))
    convert_to_hf(checkpoint, tmp_path / "release")
    change_config(tmp_path / "release", mup_embeddings_scale=1.0)
    assert compare_logits(checkpoint, tmp_path / "release").first_departure == "embedding"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_stay_within_the_tolerance_of_their_type(pair, tmp_path, dtype):
    checkpoint, _ = pair
    convert_to_hf(checkpoint, tmp_path / "rounded", dtype=dtype)
    report = compare_logits(checkpoint, tmp_path / "rounded")
    assert report.rounded_to == dtype and report.first_departure is None
    assert report.largest_difference > 0


def test_models_of_other_sizes_are_refused(pair, tmp_path):
    _, release = pair
    name = "jais-20-heads-untied" if (release / "modeling_jais.py").exists() else "llama-one-group"
    section = VARIANTS[name]
    other = write_checkpoint(tmp_path / "other.mdl", section, state_of(random_model(section)))
    with pytest.raises(ConversionError, match=r"release: (has|its tensors)"):
        compare_logits(other, release)


@pytest.mark.slow
def test_no_more_than_one_modules_weights_are_in_memory(pair):
    checkpoint, _ = pair
    held = []
    with opening(checkpoint, config=None) as opened, torch.inference_mode():
        with torch.device("meta"):
            model = LanguageModel(opened.config).eval()
        stored = {f"model.{name}": tensor for name, tensor in opened.tensors.items()}
        if "model.lm_head.weight" not in stored and opened.config.share_embedding_weights:
            stored["model.lm_head.weight"] = stored["model.embedding_layer.word_embeddings.weight"]
        weights = find_weights(checkpoint, model, stored, {})
        largest = max(
            sum(parameter.nbytes for parameter in module.parameters(recurse=False)) for module in model.modules()
        )

        def count(*_):
            real = {id(p): p.nbytes for p in model.parameters() if p.device.type != "meta"}
            held.append(sum(real.values()))

        stream_weights(model, weights)
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_hook(count)
        # Slopes belong to a module that is never called; they are a number a head.
        if hasattr(model.model.embedding_layer, "position_embed_helper"):
            helper = model.model.embedding_layer.position_embed_helper
            if getattr(helper, "slopes", None) is not None:
                helper.slopes = torch.nn.Parameter(torch.ones(helper.slopes.shape), requires_grad=False)
                largest += helper.slopes.nbytes
        model.logits(torch.arange(8)[None])
    assert len(held) > 10 and max(held) <= largest
