"""Checkpoints of the real Model Zoo trainer convert, and what comes back trains on in it.

Contract: a checkpoint that the trainer of release 2.10 wrote becomes a release whose logits in transformers are those
of the Model Zoo's own model on that checkpoint, within 1e-5 in float32, the logit scale included that the Model Zoo's
own converter drops. The checkpoint made of the release, trained on with the YAML beside it, gives the Model Zoo's
trainer the losses that the first checkpoint gives. What is written, packed or not, `cerebras.pytorch.load` reads bit
for bit. For muP Jais, tied and untied, with head counts that are no power of two, and Llama, grouped queries and tied.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from checkpoint_convert.hf_code.configuration_jais import JAISConfig
from checkpoint_convert.hf_code.modeling_jais import JAISLMHeadModel
from tests import tolerances
from tests.cerebras_jais.model.examples import jais_section, llama_section
from tests.cerebras_jais.model.test_against_modelzoo import modelzoo_model
from tests.cerebras_jais.train.examples import LENGTH, VOCABULARY, trainer_section, write_data
from tests.cerebras_jais.train.modelzoo_fit import modelzoo_fits
from tests.process import PATIENCE

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

_SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH}
VARIANTS = {
    "jais-12-heads": jais_section(num_heads=12, hidden_size=48, **_SIZES),
    "jais-20-heads-untied": jais_section(num_heads=20, hidden_size=80, share_embedding_weights=False, **_SIZES),
    "jais-40-heads-untied": jais_section(num_heads=40, hidden_size=80, share_embedding_weights=False, **_SIZES),
    "jais-56-heads-untied": jais_section(num_heads=56, hidden_size=112, share_embedding_weights=False, **_SIZES),
    "llama-grouped": llama_section(num_heads=12, hidden_size=48, kv_groups=4, **_SIZES),
    "llama-tied": llama_section(num_heads=12, hidden_size=48, share_embedding_weights=True, **_SIZES),
}
STEPS = 4


@dataclass(frozen=True)
class Exchanged:
    """One variant on its way: what the Model Zoo's trainer wrote, its release and what was made of that."""

    section: dict[str, Any]
    yaml: Path
    checkpoint: Path
    release: Path
    back: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all of it lies; `train` holds the data."""
    pytest.importorskip("cerebras.modelzoo")
    path = tmp_path_factory.mktemp("modelzoo")
    write_data(path / "train")
    return path


@pytest.fixture(scope="module")
def exchanged(folder) -> dict[str, Exchanged]:
    """Every variant trained for a few steps by the Model Zoo's trainer, released, and taken back."""
    trainers = {}
    for name, section in VARIANTS.items():
        trainers[name] = trainer_section(folder, section, model_dir=str(folder / name), loop={"max_steps": STEPS})
        trainers[name]["init"]["checkpoint"] = {"steps": STEPS}
        del trainers[name]["fit"]["val_dataloader"]
    losses = modelzoo_fits(folder, trainers)
    assert all(sorted(run) == list(range(1, STEPS + 1)) for run in losses.values())
    found = {}
    for name, section in VARIANTS.items():
        checkpoint, release, back = folder / name / f"checkpoint_{STEPS}.mdl", folder / f"{name}-hf", folder / "back"
        back.mkdir(exist_ok=True)
        convert_to_hf(checkpoint, release)
        convert_to_cerebras(release, back / f"{name}.mdl")
        found[name] = Exchanged(section, folder / f"{name}.yaml", checkpoint, release, back / f"{name}.mdl")
    return found


@pytest.fixture(scope="module")
def continued(folder, exchanged) -> dict[str, tuple[dict[int, float], dict[int, float]]]:
    """Losses by step of the runs that start from the trainer's own checkpoint and from the one that was taken back.

    Both run the YAML that the converter wrote, with the data filled in.
    """
    trainers = {}
    for name, variant in exchanged.items():
        for which, checkpoint in (("own", variant.checkpoint), ("back", variant.back)):
            trainer = yaml.safe_load(variant.back.with_suffix(".yaml").read_text())["trainer"]
            assert trainer["fit"]["ckpt_path"] == variant.back.name
            trainer["fit"]["ckpt_path"] = str(checkpoint)
            trainer["fit"]["train_dataloader"].update(data_dir=str(folder / "train"), batch_size=4)
            del trainer["fit"]["val_dataloader"]
            trainer["init"] |= {
                "model_dir": str(folder / "on" / which / name),
                "loop": {"max_steps": STEPS},
                "checkpoint": {"steps": STEPS},
                "logging": {"log_steps": 1},
            }
            if which == "own":  # its optimizer and its place in the data are left behind: the weights are compared
                trainer["init"]["callbacks"] = [{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}]
            trainers[f"{name}-from-{which}"] = trainer
    losses = modelzoo_fits(folder, trainers)
    return {name: (losses[f"{name}-from-own"], losses[f"{name}-from-back"]) for name in exchanged}


def stored_model(path) -> dict[str, torch.Tensor]:
    import cerebras.pytorch as cstorch

    return {name: cstorch.from_numpy(cstorch.to_numpy(value)) for name, value in cstorch.load(path)["model"].items()}


def token_ids(seed=0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def modelzoo_logits(section, checkpoint, ids) -> torch.Tensor:
    """Of the Model Zoo's own model with the weights of a checkpoint."""
    model = modelzoo_model(section).eval()
    model.load_state_dict(stored_model(checkpoint), strict=True)
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        return model(batch, output_logits=True)[1].float()


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_a_release_are_those_of_the_model_zoos_model(exchanged, name):
    from transformers import AutoModelForCausalLM

    variant, ids = exchanged[name], token_ids()
    released = AutoModelForCausalLM.from_pretrained(variant.release, trust_remote_code=True, dtype=torch.float32).eval()
    expected = modelzoo_logits(variant.section, variant.checkpoint, ids)
    with torch.no_grad():
        logits = released(ids.long()).logits
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(logits, expected, atol=tolerances.MODELZOO_RELEASE_LOGITS, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_checkpoint_taken_back_gives_the_model_zoos_trainer_the_same_losses(continued, name):
    own, ours = continued[name]
    assert sorted(own) == sorted(ours) == list(range(1, STEPS + 1))
    for step, loss in own.items():
        assert abs(ours[step] - loss) <= tolerances.MODELZOO_LOSS, f"step {step}"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("compression", [None, "lz4"], ids=["contiguous", "lz4"])
def test_cerebras_pytorch_loads_what_was_taken_back_bit_for_bit(tmp_path, exchanged, name, compression):
    variant, path = exchanged[name], tmp_path / "back.mdl"
    convert_to_cerebras(variant.release, path, compression=compression)
    first, back = stored_model(variant.checkpoint), stored_model(path)
    assert first.keys() == back.keys()
    for key, tensor in first.items():
        assert tensor.dtype == back[key].dtype
        assert torch.equal(tensor, back[key]), key


def modelzoo_converter(*arguments) -> None:
    command = [sys.executable, "-m", "cerebras.modelzoo.tools.convert_checkpoint", "convert", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


@pytest.mark.parametrize("name", ["jais-12-heads", "jais-20-heads-untied"])
def test_the_model_zoos_own_converter_drops_the_logit_scale_and_this_one_keeps_it(tmp_path, exchanged, name):
    variant, ids = exchanged[name], token_ids()
    modelzoo_converter(
        "--model", "jais", "--src-fmt", "cs-2.9", "--tgt-fmt", "hf", "--export-safetensors", "--no-progress-bar",
        "--config", variant.yaml, "--output-dir", tmp_path, variant.checkpoint,
    )  # fmt: skip
    export = tmp_path / f"{variant.checkpoint.stem}_to_hf"
    config = json.loads((export / "config.json").read_text())
    theirs = JAISLMHeadModel(JAISConfig(**config)).eval()
    weights = {}
    for file in export.glob("*.safetensors"):
        weights |= load_file(file)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    ours = json.loads((variant.release / "config.json").read_text())
    scale = ours["mup_output_alpha"] * ours["mup_width_scale"]
    section = variant.section
    assert scale == pytest.approx(
        section["output_logits_alpha"] * section["mup_base_hidden_size"] / section["hidden_size"],
        rel=tolerances.ROUNDING,
    )

    expected = modelzoo_logits(section, variant.checkpoint, ids)
    with torch.no_grad():
        logits = theirs(ids.long()).logits
    # Off by a factor, and by nothing else: the weights are right.
    assert (logits - expected).abs().max() > expected.abs().max()
    torch.testing.assert_close(logits * scale, expected, atol=tolerances.MODELZOO_RELEASE_LOGITS, rtol=0)
