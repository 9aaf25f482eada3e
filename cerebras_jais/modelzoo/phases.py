"""Phases through the Model Zoo's trainer: `launch.start` plans, this puts the plan into the trainer's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.start import Launch, Start, remaining_phases
from cerebras_jais.params import trainers_of

FIT = "train_and_eval"  # the Model Zoo's name for `fit`
LENGTHS = ("max_steps", "num_steps", "num_epochs")  # the keys of `loop` that say where a run ends


def run_fit(params: Mapping[str, Any], launch: Launch, log: Callable[[str], Any] = print) -> None:
    """Train what is left of a launch, one phase after another, each through the Model Zoo's trainer.

    Args:
        params: the trainer YAML as plain values, with what the command line adds.
        launch: the plan of the same.
        log: takes a line for people.

    Raises:
        UserError: a checkpoint that is not there.
        Exception: whatever the Model Zoo's trainer raises.
    """
    from cerebras.modelzoo.trainer.restartable_trainer import RestartableTrainer
    from cerebras.modelzoo.trainer.utils import run_trainer
    from cerebras.modelzoo.trainer.validate import validate_trainer_params

    trainers = [trainer for _, trainer in trainers_of(params)]
    if not _executes(launch.phases):
        # Compiling and validating train nothing, so there is nothing to continue and every phase is looked at.
        pairs = zip(launch.phases, trainers, strict=True)
        whole = [{"trainer": trainer_of(phase, Start(None), raw)} for phase, raw in pairs]
        run_trainer(FIT, {"trainer": whole})
        return
    checked = False
    for phase, start in remaining_phases(launch, log):
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
    given, planned = init.get("loop") or {"num_epochs": 1}, phase.config.init.loop
    if phase.count > 1 or any(given.get(key) != getattr(planned, key) for key in LENGTHS):
        # One absolute end, so that a phase begun in the middle ends where it would have; of a single trainer only if
        # the command line says another.
        loop = {key: value for key, value in given.items() if key not in (*LENGTHS, "steps_per_epoch")}
        init["loop"] = {**loop, "max_steps": planned.max_steps}
    if trainer.get("fit") is not None:
        trainer["fit"]["ckpt_path"] = None if start.checkpoint is None else str(start.checkpoint)
    if start.states is not None:
        callbacks = [c for c in init.get("callbacks") or [] if next(iter(c)).lower() != "loadcheckpointstates"]
        init["callbacks"] = [*callbacks, {"LoadCheckpointStates": {"load_checkpoint_states": ",".join(start.states)}}]
    return trainer


def on_cluster(init: Mapping[str, Any], only: str | None = None) -> dict[str, Any]:
    """The section `init` on a CS system; `only` is None, "compile_only" or "validate_only"."""
    backend = dict(init.get("backend") or {}, backend_type="CSX")
    if only is not None:
        backend |= {"compile_only": False, "validate_only": False, only: True}
    return {**{key: value for key, value in init.items() if key != "device"}, "backend": backend}


def _executes(phases: Sequence[Phase]) -> bool:
    backends = [phase.config.init.backend for phase in phases]
    return not any(backend.compile_only or backend.validate_only for backend in backends)
