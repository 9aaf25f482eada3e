"""The plan of a launch: which phases are finished, which one begins or continues, and from which checkpoint.

Where a launch begins is read from the checkpoints on disk alone, so that the same command continues a run that stopped
anywhere. A phase that continues loads everything. The next phase loads weights, step, optimizer and loss scale, but not
the position in the data and in the schedules, and not the optimizer where other tensors train.

`config check`, `--dry-run` and both trainers take the plan from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.errors import Problem, UserError
from cerebras_jais.launch.phases import (
    Phase,
    ckpt_path_of,
    end_of,
    named_elsewhere,
    own_begin,
    plan_phases,
    weight_layout,
)
from cerebras_jais.launch.saved import (
    EVERYTHING,
    SavedStep,
    checkpoint_path,
    held_states,
    nothing_left,
    recorded_begin,
    require_checkpoint,
    saved_steps,
    takes_step,
    wanted_states,
    with_remedy,
)

NOT_CARRIED_OVER = frozenset({"dataloader", "schedulers", "lr_scheduler"})
# Written by both trainers.
CHECKPOINT_KEYS = frozenset({"model", "optimizer", "schedulers", "dataloader", "global_step"})
OPTIMIZER_KEY = "optimizer"  # its state belongs to the tensors that train
GIVEN = "given on the command line"


@dataclass(frozen=True)
class Start:
    """How a phase begins: from `checkpoint` (None: from fresh weights), of which `states` are loaded.

    `states` None means what LoadCheckpointStates says, EVERYTHING all there is (`saved.loaded_states`). Where the
    checkpoint is the phase's own, the phase continues, and `begins` is the step that it began at; otherwise it is None.
    """

    checkpoint: Path | None
    states: tuple[str, ...] | None = None
    why: str = "fresh weights"
    begins: int | None = None

    def __str__(self) -> str:
        if self.checkpoint is None:
            return f"from {self.why}"
        loaded = "the states in LoadCheckpointStates" if self.states is None else ", ".join(self.states)
        loaded = "all states" if self.states == EVERYTHING else loaded
        return f"from {self.checkpoint} ({self.why}), loading {loaded}"

    @property
    def is_here(self) -> bool:
        """Whether the checkpoint is on this machine, or none is needed."""
        return self.checkpoint is None or self.checkpoint.exists()


@dataclass(frozen=True)
class Launch:
    """What one command runs: its phases, the index of the one it begins with, and how that one begins.

    The index is the number of phases where nothing is left to train; `start` then has the last checkpoint.
    """

    phases: Sequence[Phase]
    index: int
    start: Start


def plan_launch(
    configs: Sequence[TrainerConfig],
    *,
    model_dir: str | Path | None = None,
    max_steps: int | None = None,
    checkpoint: str | Path | None = None,
    checked: bool = True,
) -> Launch:
    """Plan a launch by its YAML, its command line and the checkpoints on disk; arguments as in `plan_phases`.

    Raises:
        ConfigError: phases that could not be continued.
        UserError: `checkpoint` is not there; CheckpointError for a file that cannot be read.
    """
    phases = plan_phases(configs, model_dir=model_dir, max_steps=max_steps, checkpoint=checkpoint, checked=checked)
    if len(phases) == 1:
        phases = [_with_own_begin(phases[0], checkpoint)]
    return Launch(phases, *next_phase(phases, checkpoint))


def plan_for_check(configs: Sequence[TrainerConfig]) -> tuple[Launch, list[Problem]]:
    """The plan of a YAML, also of one that could not be continued, and the checkpoints that cannot be read.

    The phase that such a checkpoint starts is planned as if the file were not here.
    """
    problems, readable = list[Problem](), list[TrainerConfig]()
    for config in configs:
        named = ckpt_path_of(config)
        if named is not None and Path(named).exists():
            try:
                held_states(Path(named))
            except UserError as error:
                problems.append(Problem(("fit", "ckpt_path"), str(error)).below(config.at))
                config = config.with_start(Path(named) / Path(named).name)  # nothing is there, and the step is kept
        readable.append(config)
    try:
        launch = plan_launch(readable, checked=False)
    except UserError as error:
        problems.append(Problem(("init", "model_dir"), str(error)).below(configs[0].at))
        return Launch(plan_phases(readable, checked=False), 0, Start(None)), problems
    return (Launch(launch.phases, 0, Start(None)) if problems else launch), problems


def _with_own_begin(phase: Phase, checkpoint: str | Path | None) -> Phase:
    """The phase of a single trainer, beginning where its checkpoints say that it began."""
    start = next_phase([phase], checkpoint)[1]
    if not start.is_here:
        return phase
    begins = start.begins
    if begins is None:
        begins = held_states(start.checkpoint)[1] if start.checkpoint and takes_step(phase.config) else 0
    return replace(phase, begins=begins, ends=end_of(phase.config.init.loop, begins), assumed="")


# ---- which phase is next ---------------------------------------------------------------------------------------------


def own_checkpoints(phase: Phase, phases: Sequence[Phase]) -> list[SavedStep]:
    """The checkpoints that a phase itself wrote, among those in its folder."""
    sharing = [other for other in phases if other.folder == phase.folder]
    is_first = sharing[0] is phase
    after = next((other for other in sharing if other.number > phase.number), None)

    def is_own(saved: SavedStep) -> bool:
        if saved.step == phase.begins:
            return is_first or _is_initial(saved, phase)
        if after is not None and saved.step == phase.ends:
            return not _is_initial(saved, after)
        return saved.step > phase.begins and (after is None or phase.ends is None or saved.step < phase.ends)

    return [saved for saved in saved_steps(phase.config, phase.model_dir) if is_own(saved)]


def _is_initial(saved: SavedStep, phase: Phase) -> bool:
    """Whether a checkpoint of the step where two phases meet is the initial one of the second, which comes later."""
    return bool(saved.time) and phase.config.init.checkpoint.save_initial_checkpoint


def next_phase(phases: Sequence[Phase], checkpoint: str | Path | None = None) -> tuple[int, Start]:
    """The index of the phase that a launch begins with, and how that begins; len(phases) where nothing is left.

    Args:
        phases: of the launch.
        checkpoint: the file given on the command line, which counts for more than those in the folders.
    """
    if checkpoint is not None:
        return _next_phase_from(phases, Path(checkpoint))
    for index in range(len(phases) - 1, -1, -1):
        phase, own = phases[index], own_checkpoints(phases[index], phases)
        with with_remedy(own[-1].path if own else None):
            if phase.count == 1:
                start = _single(phase, own)
                return int(_is_over(phase, start)), start
            if own:
                start = _go_on(own[-1], "the phase continues", phase.begins)
                if not _is_over(phase, start):
                    return index, start
                return index + 1, start_of(phases, index + 1) if index + 1 < len(phases) else start
    return 0, _named(phases[0].config)


def just_finished(launch: Launch) -> tuple[Phase, Start] | None:
    """The phase that ended last and its last checkpoint, where a launch begins with the next one or has none left.

    Only its records can be incomplete: the process may have died after the checkpoint and before they were written.
    """
    if not launch.index:
        return None
    phase = launch.phases[launch.index - 1]
    if phase.count == 1:
        return phase, launch.start
    own = own_checkpoints(phase, launch.phases)
    return (phase, _go_on(own[-1], "its last checkpoint", phase.begins)) if own else None


def remaining_phases(launch: Launch, log: Callable[[str], Any]) -> Iterator[tuple[Phase, Start]]:
    """The phases that a launch has to run, each with how it begins; asked for the next only when one has ended.

    Args:
        launch: as planned.
        log: takes one line for each phase, and one if there is nothing to do.

    Raises UserError where the checkpoint to begin from is not there.
    """
    phases, start = launch.phases, launch.start
    for phase in phases[: launch.index]:
        log(f"{phase.name}: finished{f' at step {phase.ends}' if phase.ends else ''}")
    left = [phase for phase in phases[launch.index :] if phase.count == 1 or (phase.ends or 0) > phase.begins]
    if not left:
        log(nothing_left(start.checkpoint))
    for number, phase in enumerate(left):
        if number:
            start = start_of(phases, phase.number - 1)
        if start.checkpoint is not None:
            require_checkpoint(start.checkpoint)
        if phase.count > 1:
            log(f"{phase.name}: steps {phase.begins + 1} to {phase.ends}, {start}")
        yield phase, start


def _next_phase_from(phases: Sequence[Phase], checkpoint: Path) -> tuple[int, Start]:
    held, step = held_states(checkpoint)
    step = step if takes_step(phases[0].config) else 0
    for index, phase in enumerate(phases):
        ends = _end_for_both(phase)
        if ends is None or ends > step:
            if index and step == phase.begins:
                return index, _entering(phases, index, checkpoint, held)
            begins = phase.begins if index else own_begin(phase.config, checkpoint, phase.model_dir)
            return index, Start(checkpoint, None, GIVEN, begins)
    return len(phases), Start(checkpoint)


def _end_for_both(phase: Phase) -> int | None:
    """The end of a phase that both trainers agree on.

    The Model Zoo counts num_steps of a single trainer from where it continues, so only max_steps says when it has
    finished.
    """
    return phase.config.init.loop.max_steps if phase.count == 1 else phase.ends


def _is_over(phase: Phase, start: Start) -> bool:
    """Whether a phase that begins so has reached its end."""
    counted, ends = start.states is not None or takes_step(phase.config), _end_for_both(phase)
    if start.checkpoint is None or ends is None or not counted:
        return False
    return (held_states(start.checkpoint)[1] if start.is_here else phase.begins) >= ends


def _single(phase: Phase, own: Sequence[SavedStep]) -> Start:
    """How a YAML of one trainer begins: as in the Model Zoo, but `ckpt_path` is only where the run began."""
    fit = phase.config.fit
    autoloads = phase.config.init.checkpoint.autoload_last_checkpoint
    if fit is None or fit.autoloads:
        if not own or not autoloads:
            return Start(None)
        begins = _begin_of(own[-1], phase) if takes_step(phase.config) else None
        return Start(own[-1].path, None, "the last checkpoint in model_dir", begins)
    if fit.ckpt_path and own and autoloads and Path(fit.ckpt_path).resolve().parent != own[-1].path.resolve().parent:
        return _go_on(own[-1], f"the run that started from {fit.ckpt_path} continues", _begin_of(own[-1], phase))
    start = _named(phase.config)
    if start.checkpoint is None:
        return start
    return replace(start, begins=own_begin(phase.config, start.checkpoint, phase.model_dir))


def _begin_of(saved: SavedStep, phase: Phase) -> int:
    """The step at which the run of one trainer began, by its own checkpoint, or else by its YAML."""
    recorded = recorded_begin(saved.path)
    return phase.begins if recorded is None else recorded


def _named(config: TrainerConfig) -> Start:
    named = ckpt_path_of(config)
    return Start(Path(named), None, "ckpt_path") if named else Start(None)


def start_of(phases: Sequence[Phase], index: int) -> Start:
    """How the phase `index` begins after the one before it has ended.

    Raises UserError when that one left no checkpoint.
    """
    before = phases[index - 1]
    checkpoint = named_elsewhere(phases[index].config, before)
    if checkpoint is None:
        left = own_checkpoints(before, phases)
        if not left:
            raise UserError(f"{before.model_dir}: {before.name} left no checkpoint to begin from")
        checkpoint = left[-1].path
    return _entering(phases, index, checkpoint, held_states(checkpoint)[0])


def predicted_start(phases: Sequence[Phase], index: int) -> Start:
    """How a phase will begin once the one before it has ended; nothing needs to be on disk yet."""
    before = phases[index - 1]
    checkpoint = named_elsewhere(phases[index].config, before)
    if checkpoint is None:
        checkpoint = checkpoint_path(before.config, before.model_dir, before.ends or 0)
        return _entering(phases, index, checkpoint, CHECKPOINT_KEYS)
    return _entering(phases, index, checkpoint, held_states(checkpoint)[0] if checkpoint.exists() else CHECKPOINT_KEYS)


def _go_on(saved: SavedStep, why: str, begins: int) -> Start:
    return Start(saved.path, EVERYTHING, why, begins)


def _entering(phases: Sequence[Phase], index: int, checkpoint: Path, held: frozenset[str]) -> Start:
    """From another phase's checkpoint, which holds these states: what belongs to that phase is not loaded."""
    phase, before = phases[index], phases[index - 1]
    wanted = wanted_states(phase.config)
    states = (held if wanted is None else wanted & held) - NOT_CARRIED_OVER
    why = f"the end of phase {before.number}"
    if OPTIMIZER_KEY in states and not _same_tensors_train(before.config, phase.config):
        states -= {OPTIMIZER_KEY}
        why += "; other tensors are trained, so the optimizer state is not loaded"
    return Start(checkpoint, tuple(sorted(states)), why)


def _same_tensors_train(before: TrainerConfig, after: TrainerConfig) -> bool:
    """Whether the optimizers of two phases are over the same tensors in the same groups."""

    def parts(config: TrainerConfig) -> tuple[object, ...]:
        model, optimizer = config.init.model, config.init.optimizer
        groups = None if optimizer is None else (optimizer.params, optimizer.adjust_learning_rate)
        scales = (model.mup_base_hidden_size, model.mup_base_filter_size)
        return weight_layout(model), scales, groups, sorted(model.frozen_parameters)

    return parts(before) == parts(after)
