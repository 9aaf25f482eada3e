"""The reference path on a GPU computes what it computes on a CPU, in memory linear in the length.

Contract: loss and gradients are those of a CPU in float32, and those of the path with a mask of every pair; in bfloat16
the loss is near that of float32; the memory of a step grows as the length does.
"""

import pytest
import torch

from cerebras_jais.model import decoder
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.precision import forward_precision
from tests import tolerances
from tests.cerebras_jais.model.examples import batch_of, jais_section, llama_section, sharp_model
from tests.cerebras_jais.model.kernels.masked import documents

pytestmark = pytest.mark.gpu
FAMILIES = pytest.mark.parametrize("section", [jais_section, lambda **s: llama_section(4, **s)], ids=["jais", "llama"])
PACKED = pytest.mark.parametrize("packed", [False, True])
LENGTHS = pytest.mark.parametrize("length", [512, 2048])


def rows_of(config, packed):
    """A batch; packed rows have documents of half the length, of one token, and of lengths between."""
    batch, length = batch_of(config, packed=False, batch=2), config.max_position_embeddings
    if packed:
        sizes = [length // 2, 1, 1, length // 5]
        sizes += [1] * (length - sum(sizes))
        batch["attention_span"] = documents(sizes, length).expand(2, -1)
        batch["position_ids"] = torch.cat([torch.arange(size) for size in sizes]).expand(2, -1)
    return batch


def on_gpu(batch):
    return {name: rows.to("cuda") for name, rows in batch.items()}


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(batch)
    loss.backward()
    return [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]


def assert_same(found, expected):
    for after, before in zip(found, expected, strict=True):
        torch.testing.assert_close(after, before, atol=tolerances.SAME_IN_FLOAT32, rtol=0)


@FAMILIES
@PACKED
def test_a_gpu_computes_what_a_cpu_computes(section, packed):
    model = sharp_model(section(max_position_embeddings=300))
    batch = rows_of(model.config, packed)
    expected = loss_and_gradients(model, batch)
    assert_same(loss_and_gradients(model.to("cuda"), on_gpu(batch)), expected)


@FAMILIES
@PACKED
@LENGTHS
def test_the_kernel_computes_what_the_mask_does(monkeypatch, section, packed, length):
    model = sharp_model(section(max_position_embeddings=length)).to("cuda")
    batch = on_gpu(rows_of(model.config, packed))
    found = loss_and_gradients(model, batch)
    monkeypatch.setattr(decoder, "flex_serves", lambda device, dtype: False)
    assert_same(found, loss_and_gradients(model, batch))


@FAMILIES
@PACKED
@LENGTHS
def test_the_loss_of_bfloat16_is_near(section, packed, length):
    model = sharp_model(section(max_position_embeddings=length)).to("cuda")
    batch = on_gpu(rows_of(model.config, packed))
    with forward_precision("cuda", torch.bfloat16):
        loss = model(batch)
        loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert loss.item() == pytest.approx(model.mean_loss(batch), rel=tolerances.SAME_IN_BFLOAT16)


@PACKED
def test_the_memory_of_a_step_grows_as_the_length_does(packed):
    peaks = []
    for length in (4096, 16384):
        section = jais_section(hidden_size=768, filter_size=2048, max_position_embeddings=length)
        with torch.device("cuda"):
            model = LanguageModel(DecoderConfig.from_section(section))
        batch = on_gpu(rows_of(model.config, packed))
        for _ in range(2):  # the second step has its kernels, and gradients of the weights, from the first
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with forward_precision("cuda", torch.bfloat16):
                loss = model(batch)
            loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= 4.5 * peaks[0]
