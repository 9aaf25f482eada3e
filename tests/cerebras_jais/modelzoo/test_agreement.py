"""The Model Zoo's trainer and the reference trainer do the same with every tiny config.

Contract: from one initial checkpoint, `cerebras-jais zoo fit` on the real Model Zoo (CPU) and the reference trainer
take the same steps: losses, the learning rate of every parameter group, gradient norms and final weights agree in each
phase; frozen tensors keep their bits and have no optimizer state in both; the schedule of each phase begins anew.
"""

import numpy as np
import pytest

from tests import tolerances
from tests.cerebras_jais.modelzoo.runs import (
    CONFIGS,
    group_rates,
    last_checkpoint,
    optimizer_tensors,
    prepare,
    reference,
    require_modelzoo,
    weights_of,
    zoo,
    zoo_scalars,
)

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]


class Pair:
    """One config, trained by both: `phases` has (phase, result of the reference, the Model Zoo's folder)."""

    def __init__(self, folder, name):
        self.name, self.folder = name, folder
        path = prepare(folder, name)
        self.output = zoo(folder, "fit", path.name, "-o", "zoo")
        ours = reference(folder, path, "ours")
        self.phases = []
        for phase, result, _ in ours:
            inner = phase.model_dir.relative_to("ours")
            self.phases.append((phase, result, folder / "ours" / inner, folder / "zoo" / inner))


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    require_modelzoo()
    return Pair(tmp_path_factory.mktemp(request.param.removesuffix(".yaml")), request.param)


def of_steps(scalars, tag, phase):
    return np.asarray([scalars[tag][step] for step in range(phase.begins + 1, phase.ends + 1)])


def test_losses_and_gradient_norms_agree_at_every_step(pair):
    for phase, result, _, theirs in pair.phases:
        scalars = zoo_scalars(theirs)
        losses, norms = of_steps(scalars, "loss", phase), of_steps(scalars, "model_wise_grad_norm", phase)
        assert len(result.losses) == 30
        print(f"{pair.name} {phase.name}: loss {np.abs(losses - result.losses).max():.1e}", end=" ")
        print(f"norm {np.abs(norms / result.gradient_norms - 1).max():.1e} of {losses[0]:.4f} -> {losses[-1]:.4f}")
        np.testing.assert_allclose(losses, result.losses, rtol=0, atol=tolerances.MODELZOO_LOSS_CURVE)
        np.testing.assert_allclose(norms, result.gradient_norms, rtol=tolerances.MODELZOO_NORM_RELATIVE)


def test_learning_rates_of_every_group_are_the_same_at_every_step(pair):
    for phase, result, _, theirs in pair.phases:
        scalars = zoo_scalars(theirs)
        rates = group_rates(phase.config, len(result.losses))
        groups = [tag for tag in scalars if tag.startswith("lr/")]
        assert len(groups) == rates.shape[1]
        for group in range(rates.shape[1]):
            np.testing.assert_allclose(
                of_steps(scalars, f"lr/{group}", phase),
                rates[:, group],
                rtol=tolerances.LEARNING_RATE_RELATIVE,
                atol=tolerances.LEARNING_RATE_ABSOLUTE,
            )


def test_final_weights_agree(pair):
    for phase, _, ours, theirs in pair.phases:
        a, b = weights_of(last_checkpoint(ours)), weights_of(last_checkpoint(theirs))
        assert a.keys() == b.keys()
        apart = {name: np.linalg.norm(a[name] - b[name]) / np.linalg.norm(b[name]) for name in b}
        if phase.config.init.model.position_embedding_type == "alibi":
            # Softmax takes no notice of what is added to all keys alike, so a key bias has no gradient but rounding,
            # which Adam makes steps of; it does nothing, and it stays near its 0.
            noise = [name for name in apart if name.endswith("proj_k_dense_layer.bias")]
            assert all(np.linalg.norm(weights[name]) < 1e-3 for name in noise for weights in (a, b))
            apart = {name: value for name, value in apart.items() if name not in noise}
        worst = max(apart, key=apart.get)
        print(f"{pair.name} {phase.name}: weights {apart[worst]:.1e} ({worst})")
        assert apart[worst] <= tolerances.MODELZOO_WEIGHTS_RELATIVE, worst


@pytest.mark.parametrize("pair", ["stages.yaml"], indirect=True, scope="module")
def test_frozen_tensors_keep_their_bits_and_have_no_optimizer_state(pair):
    (stage1, _, ours1, theirs1), (stage2, result2, ours2, theirs2) = pair.phases
    before = weights_of(pair.folder / "initial.mdl")
    assert stage1.config.init.model.frozen_parameters
    trained = {"model.embedding_layer.word_embeddings.weight", "model.lm_head.weight"}
    for folder in (ours1, theirs1):
        after = weights_of(last_checkpoint(folder))
        assert {name for name in after if after[name].tobytes() != before[name].tobytes()} == trained
        assert optimizer_tensors(last_checkpoint(folder)) == len(trained)
    for folder in (ours2, theirs2):
        after = weights_of(last_checkpoint(folder))
        assert all(after[name].tobytes() != before[name].tobytes() for name in after)
        assert optimizer_tensors(last_checkpoint(folder)) == len(set(after) - {"model.transformer_decoder.norm.weight"})
    # A fresh schedule, and steps of its own.
    assert (stage2.begins, result2.start_step) == (0, 0)
    assert result2.learning_rates[0] == group_rates(stage2.config, 1).max()


@pytest.mark.parametrize("pair", ["context.yaml"], indirect=True, scope="module")
def test_the_optimizer_goes_into_the_next_context_and_the_data_does_not(pair):
    assert pair.output.count("loading global_step, model, optimizer") == 2
    assert [(phase.begins, result.start_step) for phase, result, _, _ in pair.phases] == [(0, 0), (30, 30), (60, 60)]
