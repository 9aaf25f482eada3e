"""A checkpoint fills a model completely or not at all, and what does not fit is said by layer pattern."""

from collections import OrderedDict

import numpy as np
import pytest
import torch

from cerebras_jais.checkpoint import StoredTensor, open_checkpoint, save_checkpoint
from cerebras_jais.model import load
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.load import WeightsError, describe, load_model
from tests.cerebras_jais.model.examples import jais_section


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LanguageModel(DecoderConfig.from_section(jais_section()))


def write(path, model, *, drop=(), rename=lambda name: name, metadata=True):
    arrays = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    state = {"model": OrderedDict((rename(k), v) for k, v in arrays.items() if k not in drop)}
    if metadata:
        params = {"trainer": {"init": {"model": jais_section()}}}
        state["__metadata__"] = [{"version": "2.10.0", "model_name": "JAISModel", "params": params}]
    save_checkpoint(path, state)
    return path


def same(a, b):
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_a_model_comes_back_by_the_config_its_checkpoint_records(tmp_path, model):
    loaded = load_model(write(tmp_path / "m.mdl", model))
    assert loaded.config == model.config
    assert same(model, loaded)
    assert loaded.model.lm_head.weight is loaded.model.embedding_layer.word_embeddings.weight


def test_names_without_the_leading_model_and_without_the_tied_head_are_read(tmp_path, model):
    path = write(tmp_path / "m.mdl", model, drop={"model.lm_head.weight"}, rename=lambda n: n.removeprefix("model."))
    assert same(model, load_model(path))


def test_slopes_under_the_name_of_release_2_0_are_read(tmp_path, model):
    now, then = "model.embedding_layer.position_embed_helper.slopes", "model.relative_pe_helper.slopes"
    assert same(model, load_model(write(tmp_path / "m.mdl", model, rename=lambda name: then if name == now else name)))


def test_a_tensor_under_an_old_and_a_new_name_is_refused(tmp_path, model):
    lacking = {name.removeprefix("model."): value for name, value in model.state_dict().items()}
    state = {"model.lm_head.weight": model.model.lm_head.weight, **lacking}
    save_checkpoint(tmp_path / "m.mdl", {"model": {name: value.detach().numpy() for name, value in state.items()}})
    with pytest.raises(WeightsError, match=r"has model\.lm_head\.weight twice"):
        load_model(tmp_path / "m.mdl", model.config)


def test_a_checkpoint_without_a_model_is_refused(tmp_path, model):
    save_checkpoint(tmp_path / "m.mdl", {"optimizer": {"step": 1}})
    with pytest.raises(WeightsError, match="holds no model"):
        load_model(tmp_path / "m.mdl", model.config)


def test_a_checkpoint_that_records_no_config_asks_for_one(tmp_path, model):
    path = write(tmp_path / "m.mdl", model, metadata=False)
    with pytest.raises(WeightsError, match="--config"):
        load_model(path)
    assert same(model, load_model(path, model.config))


def test_what_does_not_fit_is_grouped_by_layers(tmp_path, model):
    path = write(tmp_path / "m.mdl", model)
    other = DecoderConfig.from_section(jais_section(num_hidden_layers=4, filter_size=64))
    with pytest.raises(WeightsError) as caught:
        load_model(path, other)
    message = str(caught.value)
    assert "layers.{2-3}.norm1.weight missing" in message
    assert "layers.{0-1}.ffn.ffn.1.linear_layer.weight of another shape ([48, 128] stored, [48, 64]" in message


def test_ranges_of_layers_are_written_shortly():
    names = [f"model.layers.{n}.x" for n in (0, 1, 2, 5)] + ["head"]
    assert describe(names, "missing") == ["head missing", "model.layers.{0-2,5}.x missing"]


def test_a_norm_stored_under_one_of_its_two_names_is_enough(tmp_path, model):
    path = write(tmp_path / "m.mdl", model, drop={"model.ln_f.weight", "model.transformer_decoder.norm.bias"})
    assert same(model, load_model(path))


def test_an_untied_head_is_not_dropped_under_a_tied_config(tmp_path, model):
    untied = LanguageModel(DecoderConfig.from_section(jais_section(share_embedding_weights=False)))
    path = write(tmp_path / "m.mdl", untied)
    with pytest.raises(WeightsError, match="share_embedding_weights: false"):
        load_model(path, model.config)


def test_a_config_that_does_not_fit_is_refused_before_memory_is_taken_for_its_model(tmp_path, model, monkeypatch):
    def taken(*args, **options):
        raise AssertionError("memory was taken")

    path = write(tmp_path / "m.mdl", model, drop={"model.lm_head.weight"})
    monkeypatch.setattr(LanguageModel, "to_empty", taken)
    large = DecoderConfig.from_section(jais_section(hidden_size=7680, num_heads=60, filter_size=20480))
    with pytest.raises(WeightsError, match="of another shape"):
        load_model(path, large)
    with pytest.raises(AssertionError, match="memory was taken"):
        load_model(path)


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_rows_of_a_tensor_are_read_in_bands_that_end_where_what_is_packed_together_does(
    tmp_path, monkeypatch, compression
):
    whole = np.random.default_rng(0).standard_normal((1000, 300), dtype=np.float32)
    save_checkpoint(tmp_path / "a.mdl", {"x": whole}, compression=compression)
    asked = []
    read_rows = StoredTensor.read_rows

    def noting(tensor, start, stop):
        asked.append((start, stop))
        return read_rows(tensor, start, stop)

    monkeypatch.setattr(StoredTensor, "read_rows", noting)
    monkeypatch.setattr(load, "_BAND_BYTES", 300 * 1200)  # 300 rows
    rows = torch.empty(650, 300)
    with open_checkpoint(tmp_path / "a.mdl") as checkpoint:
        load.read_rows_into(rows, checkpoint.tree["x"], 250)
    assert torch.equal(rows, torch.from_numpy(whole[250:900]))
    step = 300 if compression is None else 256
    inner = list(range(step, 900, step))
    assert asked == list(zip([250, *inner], [*inner, 900], strict=True))
