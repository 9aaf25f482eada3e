"""Checkpoints go between this trainer and the Model Zoo's in both directions, and the runs go on as one.

Contract: what the Model Zoo trainer 2.10 wrote after k steps on the CPU continues here, and what was written here
continues there, each with the loss and learning rate that the trainer that wrote it would have had at the next step.
"""

import copy

import numpy as np
import pytest

from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.config.trainer import parse_trainer
from tests import tolerances
from tests.cerebras_jais.train.examples import JAIS, LLAMA, train, trainer_section, write_data
from tests.cerebras_jais.train.modelzoo_fit import modelzoo_fit

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]


def rates(path):
    with open_checkpoint(path) as checkpoint:
        return [float(group["lr"].read()) for group in checkpoint.tree["optimizer"]["param_groups"]]


@pytest.mark.parametrize("model", [JAIS, LLAMA], ids=["jais", "llama"])
def test_each_trainer_continues_what_the_other_wrote(tmp_path, model):
    pytest.importorskip("cerebras.modelzoo")
    write_data(tmp_path / "train")
    section = trainer_section(tmp_path, model)
    del section["fit"]["val_dataloader"]
    section["init"]["checkpoint"] = {"steps": 3, "save_initial_checkpoint": True}

    theirs = modelzoo_fit(tmp_path, section, "theirs")
    assert sorted(theirs) == [1, 2, 3, 4, 5, 6]
    config = parse_trainer(copy.deepcopy(section))
    ours = train(config, model_dir=tmp_path / "ours", checkpoint=tmp_path / "run" / "checkpoint_3.mdl")
    assert ours.start_step == 3
    expected = [theirs[step] for step in (4, 5, 6)]
    np.testing.assert_allclose(ours.losses, expected, atol=tolerances.EXCHANGED_FIRST_LOSS, rtol=0)
    np.testing.assert_allclose(
        rates(ours.checkpoint_path),
        rates(tmp_path / "run" / "checkpoint_6.mdl"),
        rtol=tolerances.LEARNING_RATE_RELATIVE,
    )

    whole = train(config, model_dir=tmp_path / "there", checkpoint=tmp_path / "run" / "checkpoint_0.mdl")
    for file in (tmp_path / "there").glob("checkpoint_6*.mdl"):
        file.unlink()
    # The Model Zoo's trainer takes up our last checkpoint by itself.
    section["init"]["model_dir"] = str(tmp_path / "there")
    continued = modelzoo_fit(tmp_path, section, "continued")
    assert sorted(continued) == [4, 5, 6]
    np.testing.assert_allclose(
        [continued[step] for step in (4, 5, 6)], whole.losses[3:], atol=tolerances.EXCHANGED_FIRST_LOSS, rtol=0
    )
    np.testing.assert_allclose(
        rates(tmp_path / "there" / "checkpoint_6.mdl"),
        rates(ours.checkpoint_path),
        rtol=tolerances.LEARNING_RATE_RELATIVE,
    )
