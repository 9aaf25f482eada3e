"""Steps in float32 and in 16 bits stand side by side, from one state on one order of batches.

Contract: both columns are those of `run_step`, the difference is what rounding makes, and a table has a line each.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.cirh import compare
from cerebras_jais.cirh.program import ProgramError, read_program
from cerebras_jais.errors import UserError
from tests.cerebras_jais.cirh.text import REGRESSION, regression


class Samples:
    """In place of the training data: the same random batch of an index every time."""

    def __init__(self, **keys):
        assert keys == {"data_dir": "data"}

    def batch(self, index):
        rng = np.random.default_rng(index)
        return {name: rng.normal(size=(4, n)).astype(np.float32) for name, n in (("x", 3), ("y", 2))}


@pytest.fixture
def config(monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "HDF5Samples", Samples)
    weights = {"model.w": np.full((3, 2), 0.3, np.float32), "model.frozen": np.ones(2, np.float32)}
    save_checkpoint(tmp_path / "initial.mdl", {"model": weights})
    loader = SimpleNamespace(reader_keys=lambda: {"data_dir": "data"})
    return SimpleNamespace(
        source="a.yaml", init=SimpleNamespace(precision=None), fit=SimpleNamespace(train_dataloader=loader)
    )


def compared(config, folder, text, steps=4):
    return list(compare.compare_types(read_program(text), config, steps, folder / "initial.mdl"))


def test_both_runs_begin_alike_and_part_by_rounding(config, tmp_path):
    found = compared(config, tmp_path, REGRESSION)
    assert [each.step for each in found] == [1, 2, 3, 4]
    for each in found:
        assert each.rounded_loss == pytest.approx(each.loss, rel=0.02)
        assert each.rounded_loss != each.loss
        assert (each.loss_scale, each.skipped) == (None, 0)
    other = compared(config, tmp_path, regression(half="bfloat16"))
    assert [each.loss for each in other] == [each.loss for each in found]
    assert [each.rounded_loss for each in other] != [each.rounded_loss for each in found]


def test_a_table_has_a_heading_and_a_line_for_each_step(config, tmp_path):
    found = compared(config, tmp_path, REGRESSION)
    lines = list(compare.table(iter(found)))
    assert len(lines) == 5
    assert lines[0].split()[0] == "step"
    number, exact, rounded, apart, skipped = lines[2].split()
    assert (int(number), int(skipped)) == (2, 0)
    assert float(exact) == pytest.approx(found[1].loss, abs=1e-6)
    assert float(apart) == pytest.approx(float(rounded) - float(exact), abs=2e-6)


def test_a_config_without_data_is_refused(config):
    config.fit = None
    with pytest.raises(UserError, match=r"a.yaml: has no trainer.fit"):
        next(compare.compare_types(read_program(REGRESSION), config, 1))


@pytest.mark.parametrize(
    ("argument", "result", "message"),
    [
        ("tensor<f32>", 'tensor<f32> {cs.output_name = "output_metric"}', 'has no result "loss" of one number'),
        ("tensor<2x1xf32>", 'tensor<2x1xf32> {cs.output_name = "output_loss"}', 'has no result "loss" of one number'),
        (
            'tensor<2xf32> {tf.resource_name = "state.grad_scaler.0.loss_scale"}, %arg1: tensor<f32>',
            'tensor<f32> {cs.output_name = "output_loss"}',
            r"grad_scaler.0.loss_scale is tensor<2xf32>, and must be one number",
        ),
    ],
)
def test_a_program_without_a_loss_of_one_number_is_refused(config, argument, result, message):
    returned = "%arg1" if "%arg1" in argument else "%arg0"
    text = f"func @graph(%arg0: {argument}) -> ({result}) {{\n  return {returned} : {result.split(' ')[0]}\n}}"
    with pytest.raises(ProgramError, match=message):
        next(compare.compare_types(read_program(text), config, 1))
