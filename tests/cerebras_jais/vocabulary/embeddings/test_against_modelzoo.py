"""The real Model Zoo trains stage 1 from a transferred checkpoint.

Contract: it loads the checkpoint by the YAML of stage 1, with the backbone frozen; every loss is that of the reference
path; the backbone keeps its bits, and the rows of the new tokens change.
"""

import numpy as np
import pytest

from cerebras_jais.config.trainer import parse_trainer
from cerebras_jais.vocabulary.embeddings.transfer import transfer
from tests import tolerances
from tests.cerebras_jais.model.examples import llama_section
from tests.cerebras_jais.modelzoo.runs import last_checkpoint, require_modelzoo, weights_of, zoo, zoo_losses
from tests.cerebras_jais.train.examples import train, trainer_section, write_data, write_yaml
from tests.cerebras_jais.vocabulary.embeddings.examples import size_of, write_pair

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

STEPS, LENGTH = 4, 24


def test_the_model_zoo_trains_stage_1_from_a_transferred_checkpoint(tmp_path):
    require_modelzoo()
    pair = write_pair(tmp_path, name="jais_adapted")
    rows, kept = size_of(pair.extended), size_of(pair.base.parent / "tokenizer")
    frozen = [r"transformer_decoder\.", r"ln_f\."]
    section = llama_section(name="jais_adapted", vocab_size=rows, frozen_parameters=frozen)
    write_data(tmp_path / "train", length=LENGTH, vocabulary=rows)
    stage = trainer_section(
        tmp_path,
        section,
        loop={"max_steps": STEPS},
        checkpoint={"steps": STEPS},
        callbacks=[{"LoadCheckpointStates": {"load_checkpoint_states": "model"}}],
    )
    stage["fit"] = {
        "train_dataloader": stage["fit"]["train_dataloader"],
        "ckpt_path": str(tmp_path / "model" / "extended.mdl"),
    }
    (tmp_path / "model").mkdir()
    path = write_yaml(tmp_path / "stage-1.yaml", stage)
    transfer(pair.base, pair.donor, pair.extended, tmp_path / "model" / "extended.mdl", config=path)

    losses = zoo_losses(zoo(tmp_path, "fit", path.name))
    assert sorted(losses) == list(range(1, STEPS + 1))
    result = train(parse_trainer(stage), model_dir=tmp_path / "ours")
    for step, loss in losses.items():
        assert abs(result.losses[step - 1] - loss) <= tolerances.MODELZOO_LOSS_CURVE, f"step {step}"

    before, after = weights_of(tmp_path / "model" / "extended.mdl"), weights_of(last_checkpoint(tmp_path / "run"))
    for name, tensor in before.items():
        if "embedding" not in name and "lm_head" not in name:
            assert after[name].tobytes() == tensor.tobytes(), name
    for name in (name for name in before if "word_embeddings" in name or "lm_head" in name):
        assert not np.array_equal(after[name][kept:], before[name][kept:]), name
