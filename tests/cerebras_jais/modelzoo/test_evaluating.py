"""Where the reference trainer and the Model Zoo's differ by intent: evaluation and accumulated gradients.

Contract: on its CPU backend the Model Zoo begins its data anew after each evaluation, and counts a batch as a step
where gradients are accumulated. The reference trainer reads on, as CS systems do, and counts optimizer steps:
evaluation changes no loss of it, and a step is what max_steps says. All else agrees: the losses of the evaluations, and
every step once the difference is taken away. (docs/differences.md)
"""

import re

import numpy as np
import pytest
import yaml

from cerebras_jais.catalog.reader import read_trainer_yaml
from tests import tolerances
from tests.cerebras_jais.modelzoo.runs import (
    last_checkpoint,
    prepare,
    require_modelzoo,
    weights_of,
    write_documents,
    zoo,
    zoo_scalars,
)
from tests.cerebras_jais.train.examples import train

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

STEPS, EVERY = 8, 4


class Run:
    """One folder with data, in which variants of one YAML are run by either trainer."""

    def __init__(self, folder, monkeypatch):
        require_modelzoo()
        monkeypatch.chdir(folder)
        self.folder = folder
        path = prepare(folder, "jais.yaml", steps=STEPS, save_every=EVERY, batch_size=4)
        self.document = yaml.safe_load(path.read_text())
        self.document["trainer"]["init"]["callbacks"] = [{"ComputeNorm": {}}]
        model = self.document["trainer"]["init"]["model"]
        write_documents(
            folder / "held_out",
            length=model["max_position_embeddings"],
            vocabulary=model["vocab_size"],
            packed=False,
            seed=1,
        )

    def write(self, name, *, evaluates=False, loop=None, states=None, start=...):
        document = yaml.safe_load(yaml.safe_dump(self.document))
        trainer = document["trainer"]
        trainer["init"]["model_dir"] = name
        trainer["init"]["loop"] |= loop or {}
        if evaluates:
            trainer["init"]["loop"] |= {"eval_frequency": EVERY, "eval_steps": 3}
            held_out = dict(trainer["fit"]["train_dataloader"], data_dir="held_out", shuffle=False)
            trainer["fit"]["val_dataloader"] = held_out
        if states:
            trainer["init"]["callbacks"].append({"LoadCheckpointStates": {"load_checkpoint_states": states}})
        if start is not ...:
            trainer["fit"]["ckpt_path"] = start
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    def theirs(self, name, **changes):
        """The Model Zoo's losses by step, and what it printed."""
        path = self.write(name, **changes)
        output = zoo(self.folder, "fit", path.name)
        return zoo_scalars(self.folder / name)["loss"], output

    def ours(self, name, **changes):
        """The result of the reference trainer."""
        (config,) = read_trainer_yaml(self.write(name, **changes))
        return train(config, model_dir=self.folder / name)


def test_evaluation_starts_the_data_over_in_the_model_zoo_on_a_cpu_and_changes_nothing_here(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)
    plain, _ = run.theirs("zoo-plain")
    evaluated, output = run.theirs("zoo-evaluated", evaluates=True)
    ours_plain, ours_evaluated = run.ours("plain"), run.ours("evaluated", evaluates=True)
    steps = range(1, STEPS + 1)

    # Here evaluation changes no bit, and without it both trainers agree at every step.
    assert list(ours_evaluated.losses) == list(ours_plain.losses)
    assert [plain[step] for step in steps] == pytest.approx(
        list(ours_plain.losses), rel=0, abs=tolerances.MODELZOO_LOSS_CURVE
    )
    # There it does, from the step after the first evaluation.
    apart = [abs(plain[step] - evaluated[step]) for step in steps]
    assert max(apart[:EVERY]) <= tolerances.MODELZOO_LOSS_CURVE
    assert apart[EVERY] > 100 * tolerances.MODELZOO_LOSS_CURVE
    # And what it does is to begin its data anew: so do we, where the data's state is not taken up.
    anew = run.ours(
        "anew",
        states="model,optimizer,schedulers,global_step",
        start=str(tmp_path / "plain" / f"checkpoint_{EVERY}.mdl"),
    )
    assert [evaluated[step] for step in steps[EVERY:]] == pytest.approx(
        list(anew.losses), rel=0, abs=tolerances.MODELZOO_LOSS_CURVE
    )
    # Both evaluate the same weights to the same loss, from the first held-out sample on.
    first = float(re.findall(r"Avg Eval Loss: ([\d.]+)", output)[0])
    assert first == pytest.approx(
        run.ours("first", evaluates=True, loop={"max_steps": EVERY}).eval_loss,
        rel=0,
        abs=tolerances.MODELZOO_LOSS_CURVE,
    )


def test_a_step_is_an_optimizer_step_here_and_a_batch_in_the_model_zoo_where_gradients_are_accumulated(
    tmp_path, monkeypatch
):
    run = Run(tmp_path, monkeypatch)
    run.theirs("zoo", loop={"grad_accum_steps": 2})
    full = run.ours("full", loop={"grad_accum_steps": 2})
    half = run.ours("half", loop={"grad_accum_steps": 2, "max_steps": STEPS // 2})
    assert (len(full.losses), len(half.losses)) == (STEPS, STEPS // 2)

    # With the same max_steps it makes as many optimizer steps as we make with half of it, and ends with our weights.
    theirs, ours = last_checkpoint(tmp_path / "zoo"), last_checkpoint(tmp_path / "half")
    assert theirs.name == ours.name == f"checkpoint_{STEPS // 2}.mdl"
    a, b = weights_of(theirs), weights_of(ours)
    # A key bias has no gradient under ALiBi but rounding, see test_agreement.
    apart = {n: np.linalg.norm(a[n] - b[n]) / np.linalg.norm(b[n]) for n in b if "proj_k_dense_layer.bias" not in n}
    assert max(apart.values()) <= tolerances.MODELZOO_WEIGHTS_RELATIVE
