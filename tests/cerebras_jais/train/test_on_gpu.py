"""Steps on a GPU are those of a CPU."""

import pytest

from cerebras_jais.config.trainer import parse_trainer
from tests import tolerances
from tests.cerebras_jais.train.examples import JAIS, LLAMA, train, trainer_section, write_data

pytestmark = pytest.mark.gpu


def config_on(folder, packed, model=JAIS, **init):
    """A config with its data."""
    for name in ("train", "held_out"):
        write_data(folder / name, packed=packed)
    section = trainer_section(folder, model, **init)
    for loader in section["fit"].values():
        loader["use_vsl"] = packed
    return parse_trainer(section)


@pytest.mark.parametrize("model", [JAIS, LLAMA], ids=["jais", "llama"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_run_that_goes_on_on_a_gpu_has_the_losses_of_a_cpu(tmp_path, model, packed):
    config = config_on(tmp_path, packed, model)
    start = train(config, max_steps=3).checkpoint_path
    losses = [
        train(config, model_dir=tmp_path / backend, checkpoint=start, backend=backend).losses
        for backend in ("cpu", "gpu")
    ]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], abs=tolerances.LOSS_ACROSS_PROCESSES)


def test_a_run_in_bfloat16_learns(tmp_path):
    precision = {"enabled": True, "fp16_type": "bfloat16", "max_gradient_norm": 1.0}
    result = train(
        config_on(tmp_path, True, loop={"max_steps": 30, "eval_frequency": None}, precision=precision), backend="gpu"
    )
    assert result.last_loss < 0.7 * result.first_loss
