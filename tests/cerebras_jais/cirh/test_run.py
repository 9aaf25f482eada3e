"""Steps of a program written by hand are those of the same step in PyTorch.

Contract: in float32 loss, weights, momentum and counters of five steps are those of autograd; in 16 bits the product
is that of rounded operands, rounded; a run begins from a checkpoint, and what that lacks begins as in a new run; a
tensor that is missing or of another shape is named.
"""

import pytest
import torch

from cerebras_jais.checkpoint import open_checkpoint, save_checkpoint
from cerebras_jais.cirh.program import ProgramError, read_program
from cerebras_jais.cirh.rounding import to_cbfloat16, types_of
from cerebras_jais.cirh.run import initial_state, run_step, run_steps
from tests.cerebras_jais.cirh.text import REGRESSION


@pytest.fixture
def program():
    return read_program(REGRESSION)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    weights = {"model.w": torch.randn(3, 2).numpy(), "model.frozen": torch.ones(2).numpy()}
    save_checkpoint(tmp_path / "initial.mdl", {"model": weights, "global_step": 7})
    with open_checkpoint(tmp_path / "initial.mdl") as opened:
        yield opened


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        yield {"x": torch.randn(4, 3, generator=generator), "y": torch.randn(4, 2, generator=generator)}


def test_a_new_run_has_no_moments_and_the_first_power_of_beta(program, checkpoint):
    state = initial_state(program, checkpoint.leaves)
    assert torch.equal(state["model.model.w"], torch.from_numpy(checkpoint.leaves["model.model.w"].read()))
    assert not state["optimizer.state.0.momentum"].any()
    assert state["schedulers.0.last_epoch"].item() == 0
    assert state["schedulers.0.last_epoch"].dtype == torch.int64
    assert state["optimizer.state.0.power"].item() == pytest.approx(0.9)


def test_states_are_taken_from_a_checkpoint_as_far_as_they_are_asked_for(program, tmp_path):
    state = {
        "model": {"model.w": torch.ones(3, 2).numpy(), "model.frozen": torch.ones(2).numpy()},
        "optimizer": {"state": {0: {"momentum": torch.full((3, 2), 2.0).numpy()}}},
        "schedulers": [{"last_epoch": 9}],
    }
    save_checkpoint(tmp_path / "a.mdl", state)
    with open_checkpoint(tmp_path / "a.mdl") as checkpoint:
        whole = initial_state(program, checkpoint.leaves)
        fresh = initial_state(program, checkpoint.leaves, {"model", "optimizer"})
    assert whole["optimizer.state.0.momentum"].eq(2).all()
    assert whole["schedulers.0.last_epoch"].item() == 9
    assert fresh["optimizer.state.0.momentum"].eq(2).all()
    assert fresh["schedulers.0.last_epoch"].item() == 0


def test_five_steps_are_those_of_autograd(program, checkpoint):
    state = initial_state(program, checkpoint.leaves)
    w, momentum = state["model.model.w"].clone(), torch.zeros(3, 2)
    results = run_steps(program, state, batches(5))
    for epoch, (batch, result) in enumerate(zip(batches(5), results, strict=True)):
        w.requires_grad_()
        loss = (batch["x"] @ w - batch["y"]).square().sum() / 8
        (gradient,) = torch.autograd.grad(loss, w)
        momentum = 0.5 * momentum + gradient
        w = w.detach() - momentum / (2 + epoch)
        assert result.loss == pytest.approx(loss.item(), rel=1e-6)
        torch.testing.assert_close(result.state["model.model.w"], w)
        torch.testing.assert_close(result.state["optimizer.state.0.momentum"], momentum)
        assert result.state["schedulers.0.last_epoch"].item() == epoch + 1
        assert result.state["model.model.frozen"].eq(1).all()


def test_a_product_in_16_bits_is_that_of_rounded_operands_rounded(program, checkpoint):
    state, (batch,) = initial_state(program, checkpoint.leaves), batches(1)
    exact = run_step(program, state, batch)
    rounded = run_step(program, state, batch, types=types_of(program))
    product = to_cbfloat16(to_cbfloat16(batch["x"]) @ to_cbfloat16(state["model.model.w"]))
    assert rounded.loss == ((product - batch["y"]).square().sum() / 8).item()
    assert rounded.loss == pytest.approx(exact.loss, rel=1e-2)
    assert rounded.loss != exact.loss


def test_float64_is_used_where_it_is_asked_for(program, checkpoint):
    (batch,) = batches(1)
    result = run_step(program, initial_state(program, checkpoint.leaves), batch, floats=torch.float64)
    assert result.outputs["loss"].dtype == torch.float64


def test_the_given_state_is_left_as_it_is(program, checkpoint):
    state, (batch,) = initial_state(program, checkpoint.leaves), batches(1)
    before = {name: value.clone() for name, value in state.items()}
    run_step(program, state, batch)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_what_is_missing_or_of_another_shape_is_named(program, checkpoint, tmp_path):
    state, (batch,) = initial_state(program, checkpoint.leaves), batches(1)
    with pytest.raises(ProgramError, match=r"the batch has no y, which the program takes as tensor<4x2xf32>"):
        run_step(program, state, {"x": batch["x"]})
    with pytest.raises(ProgramError, match=r"x is \[5, 3\], the program takes it as tensor<4x3xf32>"):
        run_step(program, state, {**batch, "x": torch.zeros(5, 3)})
    with pytest.raises(ProgramError, match=r"the state has no model.model.w"):
        run_step(program, {}, batch)
    save_checkpoint(tmp_path / "other.mdl", {"model": {"model.v": torch.ones(2).numpy()}})
    with open_checkpoint(tmp_path / "other.mdl") as other, pytest.raises(ProgramError, match=r"has no model.model.w"):
        initial_state(program, other.leaves)


def test_a_state_that_the_memory_cannot_hold_is_refused_by_name():
    head = f'%arg0: tensor<{10**17}x{10**17}xf32> {{tf.resource_name = "state.optimizer.m"}}, %arg1: tensor<f32>'
    program = read_program(f"func @graph({head}) -> tensor<f32> {{\n  return %arg1 : tensor<f32>\n}}")
    with pytest.raises(ProgramError, match=r"optimizer.m is tensor<.*>, for which the memory does not suffice"):
        initial_state(program, {})
