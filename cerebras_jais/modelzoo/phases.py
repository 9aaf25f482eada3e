"""Phases through the Model Zoo's trainer: `recipes.phases` decides, this puts it into the trainer's own parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.launch.phases import Phase, Start, plan_phases, remaining_phases
from cerebras_jais.params import trainers_of

FIT = "train_and_eval"  # the Model Zoo's name for `fit`


def run_fit(
    params: Mapping[str, Any],
    configs: Sequence[TrainerConfig],
    *,
    model_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
    max_steps: int | None = None,
    say: Callable[[str], Any] = print,
) -> None:
    """Train what is left of a launch, one phase after another, each through the Model Zoo's trainer.

    Args:
        params: the trainer YAML as plain values, with what the command line adds.
        configs: the same, typed.
        model_dir: instead of the YAML's.
        checkpoint: the file to begin from, instead of what the YAML says or what lies in the folders.
        max_steps: where the launch ends.
        say: takes a line for people.

    Raises:
        UserError: phases that cannot be continued, a checkpoint that is not there.
        Exception: whatever the Model Zoo's trainer raises.
    """
    from cerebras.modelzoo.trainer.restartable_trainer import RestartableTrainer
    from cerebras.modelzoo.trainer.utils import run_trainer
    from cerebras.modelzoo.trainer.validate import validate_trainer_params

    phases = plan_phases(configs, model_dir=model_dir, max_steps=max_steps, checkpoint=checkpoint)
    trainers = [trainer for _, trainer in trainers_of(params)]
    if not _executes(configs):
        # Compiling and validating train nothing, so there is nothing to continue and every phase is looked at.
        whole = [{"trainer": trainer_of(phase, Start(None), raw)} for phase, raw in zip(phases, trainers, strict=True)]
        run_trainer(FIT, {"trainer": whole})
        return
    checked = False
    for phase, start in remaining_phases(phases, checkpoint, say):
        if not checked:  # all phases, before the first one trains for weeks
            validate_trainer_params({"trainer": [{"trainer": copy.deepcopy(dict(raw))} for raw in trainers]})
            checked = True
        own = {"trainer": trainer_of(phase, start, trainers[phase.number - 1])}
        if RestartableTrainer.is_restart_config(own):
            RestartableTrainer(own).run_trainer(FIT)
        else:
            run_trainer(FIT, own)


def trainer_of(phase: Phase, start: Start, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping under `trainer:` that makes the Model Zoo begin and end a phase as it was decided."""
    trainer = copy.deepcopy(dict(raw))
    init = trainer["init"]
    init["model_dir"] = str(phase.model_dir)
    if phase.count > 1 or phase.ends != phase.config.init.loop.max_steps:
        # One absolute end, so that a phase begun in the middle ends where it would have; of a single trainer only if
        # the command line says another.
        lengths = ("num_steps", "num_epochs", "steps_per_epoch")
        loop = {key: value for key, value in (init.get("loop") or {}).items() if key not in lengths}
        init["loop"] = {**loop, "max_steps": phase.ends}
    if trainer.get("fit") is not None:
        trainer["fit"]["ckpt_path"] = None if start.checkpoint is None else str(start.checkpoint)
    if start.states is not None:
        callbacks = [c for c in init.get("callbacks") or [] if next(iter(c)).lower() != "loadcheckpointstates"]
        init["callbacks"] = [*callbacks, {"LoadCheckpointStates": {"load_checkpoint_states": ",".join(start.states)}}]
    return trainer


def _executes(configs: Sequence[TrainerConfig]) -> bool:
    backends = [config.init.backend for config in configs]
    return not any(backend.compile_only or backend.validate_only for backend in backends)
