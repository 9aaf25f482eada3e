"""A number is looked at before anything follows from it: gradients before the update, a checkpoint's numbers as read.

Contract: a gradient that is not finite ends the run before it changes a weight, names the step, and leaves the files of
the steps before; a checkpoint with a number that cannot be ends in one line that names the file and the key; models and
runs of any size in the ranges are planned without lists of all their steps.
"""

import copy
import math

import numpy as np
import pytest
import torch

from cerebras_jais.checkpoint import open_checkpoint, save_checkpoint
from cerebras_jais.config.sections import Precision
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.errors import UserError
from cerebras_jais.launch import plan as plan_module
from cerebras_jais.launch.plan import plan_training
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.load import load_model
from cerebras_jais.optimizer.groups import ParameterGroup
from cerebras_jais.optimizer.schedule import learning_rates
from cerebras_jais.train import state as state_module
from tests.cerebras_jais.train.examples import JAIS, LLAMA, config_of, train, write_data
from tests.marks import slow_except

NAN = float("nan")
ARRAYS = [pytest.param(array, marks=pytest.mark.slow) for array in (np.array([1, 2]), np.array(NAN))]


def poison_gradients(monkeypatch, step, value):
    """At one step, a gradient is `value` while the loss is what it was."""
    real, calls = LanguageModel.forward, []

    def forward(self, batch):
        calls.append(1)
        if len(calls) == step:
            self.model.ln_f.weight.register_hook(lambda gradient: torch.full_like(gradient, value))
        return real(self, batch)

    monkeypatch.setattr(LanguageModel, "forward", forward)


@pytest.mark.slow
@pytest.mark.parametrize("value", slow_except([3e38], [NAN, math.inf, 3e38]))  # the last overflows in the norm alone
@pytest.mark.parametrize("clipping", [{}, {"max_gradient_norm": 1.0}, {"max_gradient_value": 1.0}], ids=str)
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_update(folder, monkeypatch, clipping, value):
    config = config_of(folder, precision={"enabled": False, **clipping})
    with monkeypatch.context() as patched:
        poison_gradients(patched, 5, value)
        with pytest.raises(UserError, match=r"norm of the gradients is (inf|nan) at step 5 \(its loss is \d"):
            train(config)
    assert [path.name for path in (folder / "run").glob("*.mdl")] == ["checkpoint_3.mdl"]
    again = train(config)  # the weights of the checkpoint are whole
    assert (again.start_step, again.steps) == (3, 6)
    assert all(map(math.isfinite, again.losses))


@pytest.mark.slow
def test_every_step_reports_the_norm_of_its_gradients_clipped_or_not(folder):
    """Of the first step, against the gradient of the model itself."""
    norms = [train(config_of(folder, precision=p), model_dir=folder / name).gradient_norms for name, p in PRECISIONS]
    config = config_of(folder)
    torch.manual_seed(config.init.seed)
    model = LanguageModel(config.init.model)
    batch = HDF5Samples(**config.fit.train_dataloader.reader_keys()).batch(0)
    model({name: torch.from_numpy(array) for name, array in batch.items()}).backward()
    squares = sum(
        parameter.grad.double().square().sum() for parameter in model.parameters() if parameter.grad is not None
    )
    for found in norms:
        assert len(found) == 6
        assert found[0] == pytest.approx(math.sqrt(squares), rel=1e-5)


PRECISIONS = [
    ("none", None),
    ("norm", {"enabled": False, "max_gradient_norm": 1e-3}),
    ("value", {"enabled": False, "max_gradient_value": 1e-6}),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config that was trained for three steps, and the tree of its checkpoint, its tensors read."""
    folder = tmp_path_factory.mktemp("trained")
    write_data(folder / "train")
    write_data(folder / "held_out", samples=10, seed=1)
    config = config_of(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("cerebras_jais.train.progress.draw_curve", lambda rows, path: None)
        path = train(config, max_steps=3).checkpoint_path
    with open_checkpoint(path) as opened:
        return config, _plain(opened.tree)


@pytest.fixture
def changed_checkpoint(trained, tmp_path):
    """A function that writes the trained checkpoint with its tree changed."""

    def write(change):
        tree = copy.deepcopy(trained[1])
        change(tree)
        save_checkpoint(tmp_path / "changed.mdl", tree, overwrite=True)
        return tmp_path / "changed.mdl"

    return write


@pytest.fixture
def continue_from(trained, tmp_path):
    """A function that continues the training from another checkpoint, in a folder of its own."""

    def run(path):
        return train(trained[0], checkpoint=path, model_dir=tmp_path / "other")

    return run


def _plain(value):
    """A checkpoint's tree with its tensors read."""
    if hasattr(value, "read"):
        return value.read()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def at(tree, path, value):
    *parents, last = path
    for key in parents:
        tree = tree[key]
    tree[last] = value


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [*slow_except([2**62], ["three", NAN, -(2**63), 2**62, 1.5, None, True]), *ARRAYS],
    ids=str,
)
@pytest.mark.parametrize(
    ("path", "key"),
    [
        (("global_step",), "global_step"),
        (("dataloader", "samples_streamed"), "dataloader.samples_streamed"),
        (("schedulers", 0, "last_epoch"), "schedulers.last_epoch"),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_a_number_of_a_checkpoint_that_cannot_be_is_named(
    tmp_path, changed_checkpoint, continue_from, path, key, value
):
    if value is None:
        value = "null"  # a schedule may say nothing of where it stands
    changed = changed_checkpoint(lambda tree: at(tree, path, value))
    with pytest.raises(UserError) as caught:
        continue_from(changed)
    assert str(caught.value).startswith(f"{changed}: {key} must be a whole number from 0 to ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize("value", slow_except([NAN], [NAN, -0.5, 2.0, "text", math.inf]), ids=str)
def test_a_power_of_beta_that_cannot_be_is_named(changed_checkpoint, continue_from, value):
    changed = changed_checkpoint(lambda tree: at(tree, ("optimizer", "state", 0, "beta2_power"), value))
    with pytest.raises(UserError, match=r"changed\.mdl: optimizer\.state\.beta2_power must be a number from 0 to 1"):
        continue_from(changed)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2.0**-126, 1.0, 2.0**31, 2.0**127])
def test_a_loss_scale_that_doubled_for_long_is_taken(scale):
    taken = state_module._scaler_state({"scale": scale, "_growth_tracker": 7, "growth_factor": 2.0}, "a.mdl")
    assert taken == {"scale": scale, "_growth_tracker": 7, "growth_factor": 2.0}
    Precision(loss_scaling_factor="dynamic", initial_loss_scale=scale, max_loss_scale=scale)


@pytest.mark.slow
def test_a_loss_scale_that_cannot_be_or_is_of_a_cs_system_is_named():
    for scale in (0.0, -1.0, NAN, math.inf, None, "text"):
        with pytest.raises(UserError, match=r"a\.mdl: grad_scaler\.scale must be a number from"):
            state_module._scaler_state({"scale": scale, "_growth_tracker": 0}, "a.mdl")
    for other in ({"loss_scale": 2.0**31, "steps_since_rescale": 3}, [1.0], "text"):
        with pytest.raises(UserError, match=r"a\.mdl: its grad_scaler is not PyTorch's"):
            state_module._scaler_state(other, "a.mdl")


@pytest.mark.slow
@pytest.mark.parametrize("value", slow_except([math.inf], [NAN, math.inf, -math.inf]))
def test_weights_and_moments_that_are_not_finite_are_named(changed_checkpoint, continue_from, value):
    embedding = "model.embedding_layer.word_embeddings.weight"

    def poison(*path):
        def change(tree):
            for key in path:
                tree = tree[key]
            tree.flat[3] = value

        return change

    # The embedding is tied to the head: NaN is unlike itself, and is not to be taken for another tensor.
    changed = changed_checkpoint(poison("model", embedding))
    with pytest.raises(UserError, match=rf"changed\.mdl: model\.{embedding} holds NaN or infinite values"):
        continue_from(changed)
    with pytest.raises(UserError, match="holds NaN or infinite values"):
        load_model(changed)
    for key in ("exp_avg", "exp_avg_sq"):
        changed = changed_checkpoint(poison("optimizer", "state", 1, key))
        with pytest.raises(UserError, match=rf"changed\.mdl: optimizer\.state\.1\.{key} holds NaN or infinite values"):
            continue_from(changed)


def test_squares_below_0_are_named(changed_checkpoint, continue_from):
    def negate(tree):
        tree["optimizer"]["state"][0]["exp_avg_sq"].flat[0] = -1e-8

    with pytest.raises(UserError, match=r"optimizer\.state\.0\.exp_avg_sq holds squares below 0"):
        continue_from(changed_checkpoint(negate))


class Data:
    """Samples of which the plan only asks how many batches an epoch has."""

    batches_per_epoch = 10


@pytest.mark.slow
def test_a_run_of_2_billion_steps_is_planned_at_once(tmp_path):
    config = config_of(tmp_path, loop={"max_steps": 2**31 - 1, "eval_frequency": 7}, checkpoint={"steps": 1})
    plan = plan_training(config, Data(), 0)
    assert plan.end == 2**31 - 1
    assert {7, 14, 2**31 - 1} <= {step for step in (0, 6, 7, 13, 14, 2**31 - 1, 2**31) if step in plan.evaluation_steps}
    assert 2**31 not in plan.checkpoint_steps


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 1, 3, 7, 10, 50])
@pytest.mark.parametrize(("start", "end"), [(0, 10), (4, 11), (9, 10)])
def test_steps_are_those_counted_out(every, start, end):
    """Against the steps written down one by one: each `every` from `start` on, and the last."""
    counted = {*range(start + every, end + 1, every), end} if every else set()
    marks = plan_module.Every(every, start, end)
    assert {step for step in range(-1, 60) if step in marks} == counted


@pytest.mark.slow
def test_a_scale_of_0_holds_a_group_still(tmp_path):
    config = config_of(tmp_path, LLAMA)
    groups = [ParameterGroup(("a",), 0.0, 0.0), ParameterGroup(("b",), 0.0, 2.0), ParameterGroup(("c",), 0.0, None)]
    assert learning_rates(config.init.schedulers, groups, None, 3) == pytest.approx([0.0, 0.04, 0.02])


@pytest.mark.slow
def test_a_model_larger_than_the_machine_is_refused_before_it_is_built(folder, monkeypatch):
    """Two moments in float32 are eight bytes a parameter, and more than the weights or the gradients."""
    config = config_of(folder, {**JAIS, "vocab_size": 500_000, "hidden_size": 2**17, "mup_base_hidden_size": 2**16})
    parameters = sum(p.numel() for p in _on_meta(config).parameters())
    with pytest.raises(UserError, match=f"the largest part is moments, {8 * parameters / 1e9:,.0f} GB"):
        train(config)
    assert not (folder / "run").exists()


def _on_meta(config):
    with torch.device("meta"):
        return LanguageModel(config.init.model)
