"""The real Model Zoo trains both stages of a transferred checkpoint.

Contract: it loads the checkpoint by the YAML of stage 1, with the backbone frozen, and stage 1's last by that of stage
2; every loss is that of the reference path from the same start; in stage 1 the backbone keeps its bits, and the rows of
the new tokens change; in stage 2 every matrix changes. What it leaves becomes a plain LlamaForCausalLM.
"""

import numpy as np
import pytest
import torch

from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.model.load import load_model
from checkpoint_convert.convert import convert_to_hf
from tests import tolerances
from tests.cerebras_jais.model.examples import llama_section
from tests.cerebras_jais.modelzoo.runs import last_checkpoint, require_modelzoo, weights_of, zoo, zoo_losses
from tests.cerebras_jais.train.examples import train, trainer_section, write_data, write_yaml
from tests.cerebras_jais.vocabulary.embeddings.examples import run_transfer, size_of, write_pair

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

STEPS, LENGTH = 4, 24
BACKBONE = [r"transformer_decoder\.", r"ln_f\."]


def stage(folder, name, section, start):
    """The trainer of one stage, which begins with the weights of a checkpoint alone."""
    found = trainer_section(
        folder,
        section,
        model_dir=str(folder / name),
        loop={"max_steps": STEPS},
        checkpoint={"steps": STEPS},
        callbacks=[{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}],
    )
    del found["fit"]["val_dataloader"]
    found["fit"]["ckpt_path"] = str(start)
    return found


def trained_by_both(folder, trainer):
    """The weights before and after the Model Zoo's run of a stage, whose losses are those of the reference path."""
    name = trainer["init"]["model_dir"].rsplit("/", 1)[1]
    losses = zoo_losses(zoo(folder, "fit", write_yaml(folder / f"{name}.yaml", trainer).name))
    assert sorted(losses) == list(range(1, STEPS + 1))
    result = train(parse_trainer(trainer), model_dir=folder / "ours" / name)
    for step, loss in losses.items():
        assert abs(result.losses[step - 1] - loss) <= tolerances.MODELZOO_LOSS_CURVE, f"{name}, step {step}"
    return weights_of(trainer["fit"]["ckpt_path"]), weights_of(last_checkpoint(folder / name))


def test_the_model_zoo_trains_both_stages_of_a_transferred_checkpoint(tmp_path):
    require_modelzoo()
    pair = write_pair(tmp_path, name="jais_adapted")
    rows, kept = size_of(pair.extended), size_of(pair.base.parent / "tokenizer")
    section = llama_section(name="jais_adapted", vocab_size=rows)
    write_data(tmp_path / "train", length=LENGTH, vocabulary=rows)
    (tmp_path / "model").mkdir()
    extended = tmp_path / "model" / "extended.mdl"
    first = stage(tmp_path, "stage-1", {**section, "frozen_parameters": BACKBONE}, extended)
    run_transfer(pair.base, pair.donor, pair.extended, extended, config=write_yaml(tmp_path / "stage-1.yaml", first))

    before, after = trained_by_both(tmp_path, first)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if "word_embeddings" in name or "lm_head" in name:
            assert not np.array_equal(after[name][kept:], tensor[kept:]), name
        else:
            assert after[name].tobytes() == tensor.tobytes(), name

    before, after = trained_by_both(
        tmp_path, stage(tmp_path, "stage-2", section, last_checkpoint(tmp_path / "stage-1"))
    )
    for name, tensor in before.items():
        assert not np.array_equal(after[name], tensor), name

    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = last_checkpoint(tmp_path / "stage-2")
    convert_to_hf(trained, tmp_path / "release", tokenizer=pair.extended)
    release = AutoModelForCausalLM.from_pretrained(tmp_path / "release").eval()
    assert type(release).__name__ == "LlamaForCausalLM"
    assert len(AutoTokenizer.from_pretrained(tmp_path / "release")) == rows
    ids = torch.tensor([[1, kept, 5, rows - 1, kept + 1]])
    with torch.no_grad():
        np.testing.assert_allclose(
            load_model(trained).logits(ids), release(ids).logits, rtol=0, atol=tolerances.RELEASE_LOGITS
        )
