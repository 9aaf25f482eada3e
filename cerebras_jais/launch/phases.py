"""The phases of one launch: which are finished, which goes on, from which checkpoint, and which parts of it are loaded.

A trainer YAML is one phase or a list of them, run one after another. Where a launch begins is read from the checkpoints
on disk alone, so that the same command continues a run that stopped anywhere:

- A phase ends at a step (`max_steps`, or `num_steps` from where it begins); its checkpoint at that step finishes it.
- Steps are counted through, unless LoadCheckpointStates of a phase leaves `global_step` out; then it counts from 0.
- Into the next phase go weights, step, optimizer and loss scale; where the data stood and where the schedules stood
  does not, and the optimizer does not where other tensors train.
- Within a phase everything goes on.

Both trainers run what is decided here: `train` and `modelzoo`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cerebras_jais.checkpoint import open_checkpoint, read_step
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.config.yaml_file import ConfigError
from cerebras_jais.errors import Problem, UserError
from cerebras_jais.ranges import COUNT_OR_NONE

NOT_CARRIED_OVER = frozenset({"dataloader", "schedulers", "lr_scheduler"})
EVERYTHING = ("all",)  # as LoadCheckpointStates says it
CHECKPOINT_KEYS = frozenset({"model", "optimizer", "schedulers", "dataloader", "global_step"})  # by both trainers
OPTIMIZER_KEY = "optimizer"  # its state is of the tensors that train
GIVEN = "given on the command line"
INTERRUPTED = "interrupted"  # stands behind the step in the name of a checkpoint that a signal made the run write


class PhaseError(ConfigError):
    """Phases that cannot be continued; `problem` is at its key of the file."""

    def __init__(self, config: TrainerConfig, problem: Problem):
        super().__init__(config.message(problem))
        self.problem = problem.below(config.at)


class MissingCheckpoint(UserError):
    """A checkpoint to begin from that is not there."""

    def __init__(self, path: Path):
        super().__init__(f"{path}: no such checkpoint")
        self.path = path


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint in a folder, by its name: of the step, written at the time (empty for the first of its step).

    An interrupted one was written because a signal stopped the run there.
    """

    step: int
    time: str
    path: Path
    interrupted: bool = False


@dataclass(frozen=True)
class Phase:
    """One trainer of a launch: steps `begins` (exclusive) to `ends` (None: only its data can tell), in `model_dir`."""

    number: int
    count: int
    config: TrainerConfig
    model_dir: Path
    begins: int
    ends: int | None

    @property
    def folder(self) -> Path:
        """Where its checkpoints go."""
        return Path(self.config.init.checkpoint.checkpoint_root or self.model_dir).resolve()

    @property
    def name(self) -> str:
        """For people."""
        return f"phase {self.number} of {self.count}" if self.count > 1 else "run"


@dataclass(frozen=True)
class Start:
    """How a phase begins: from `checkpoint` (None: from fresh weights), of which `states` are loaded.

    `states` None means what the YAML says (LoadCheckpointStates, everything without it), EVERYTHING all there is.
    Where the checkpoint is the phase's own, the phase goes on, and `begins` is the step that it began at; None where it
    begins here.
    """

    checkpoint: Path | None
    states: tuple[str, ...] | None = None
    why: str = "fresh weights"
    begins: int | None = None

    def __str__(self) -> str:
        if self.checkpoint is None:
            return f"from {self.why}"
        loaded = "what LoadCheckpointStates says" if self.states is None else ", ".join(self.states)
        loaded = "all of it" if self.states == EVERYTHING else loaded
        return f"from {self.checkpoint} ({self.why}); loading {loaded}"


# ---- checkpoints on disk --------------------------------------------------------------------------------------------


def name_pattern(config: TrainerConfig) -> str:
    """The regular expression of the names of a run's checkpoints; its groups are step and time or INTERRUPTED."""
    head, tail = config.init.checkpoint.checkpoint_name.split("{step}", 1)
    return re.escape(head) + rf"(\d+)(?:_(\d{{8}}_\d{{6}}|{INTERRUPTED}))?" + re.escape(tail.replace("{step}", ""))


def saved_steps(config: TrainerConfig, model_dir: Path) -> list[SavedStep]:
    """The checkpoints of a run's folder, ordered by step, then time; of a step, an interrupted one comes first."""
    name = re.compile(name_pattern(config))
    found = []
    for folder in {Path(config.init.checkpoint.checkpoint_root or model_dir), model_dir}:
        for path in folder.glob("*") if folder.is_dir() else ():
            match = name.fullmatch(path.name)
            if match and path.is_file():
                interrupted = match[2] == INTERRUPTED
                found.append(SavedStep(int(match[1]), "" if interrupted else match[2] or "", path, interrupted))
    return sorted(found, key=lambda saved: (saved.step, not saved.interrupted, saved.time, str(saved.path)))


def _present(path: Path) -> tuple[frozenset[str], int]:
    """Which states a checkpoint holds, and its step (0 where it has none)."""
    if not path.exists():
        raise MissingCheckpoint(path)
    with open_checkpoint(path) as opened:
        tree = opened.tree if isinstance(opened.tree, Mapping) else {}
        names = frozenset(str(name) for name in tree if not str(name).startswith("__"))
        return names, read_step(tree, path)


def recorded_begin(path: Path) -> int | None:
    """The step that the run which wrote a checkpoint began at; None where the file does not say."""
    with open_checkpoint(path) as opened:
        last = opened.metadata[-1] if opened.metadata else None
    run = last.get("run") if isinstance(last, Mapping) else None
    first = run.get("first_step") if isinstance(run, Mapping) else None
    return first if isinstance(first, int) and COUNT_OR_NONE.holds(first) else None


def _wanted(config: TrainerConfig) -> frozenset[str] | None:
    """The states that LoadCheckpointStates names, None for all."""
    named = (config.callback("LoadCheckpointStates") or {}).get("load_checkpoint_states", "all")
    if isinstance(named, str):
        if named.lower() == "all":
            return None
        named = named.split(",")
    return frozenset(name.strip() for name in named)


def _counts_on(config: TrainerConfig) -> bool:
    wanted = _wanted(config)
    return wanted is None or "global_step" in wanted


# ---- laying out -----------------------------------------------------------------------------------------------------


def plan_phases(
    configs: Sequence[TrainerConfig],
    *,
    model_dir: str | Path | None = None,
    max_steps: int | None = None,
    checkpoint: str | Path | None = None,
) -> list[Phase]:
    """The phases with their folders and steps.

    Args:
        configs: the trainers of a YAML.
        model_dir: instead of the YAML's; phases that have folders of their own keep them apart in it.
        max_steps: where a list ends, whatever its phases say; the end of a single trainer.
        checkpoint: the file the launch begins from, instead of what the YAML says.

    Raises:
        ConfigError: phases that could not be continued: without an end or a last checkpoint, or whose checkpoints
            could not be told apart.
    """
    phases: list[Phase] = []
    count, folders, cut = len(configs), _folders(configs, model_dir), False
    for number, config in enumerate(configs, 1):
        begins = phases[-1].ends if phases and _counts_on(config) else 0
        assert begins is not None
        if number == 1:
            begins = _first_step(config, checkpoint, folders[0])
        folder = folders[number - 1]
        ends = whole = config.init.loop.max_steps if count == 1 else _end(config, begins)
        if max_steps is not None:
            ends = max_steps if count == 1 or ends is None else min(ends, max_steps)
        if cut:  # an earlier phase is cut short, so the launch ends there and this one is not reached
            ends = begins
        cut = cut or (count > 1 and ends != whole)
        phase = Phase(number, count, config, folder, begins, ends)
        if count > 1:
            _refuse_what_cannot_continue(phase, phases, capped=max_steps is not None)
        phases.append(phase)
    return phases


def _folders(configs: Sequence[TrainerConfig], model_dir: str | Path | None) -> list[Path]:
    named = [Path(config.init.model_dir) for config in configs]
    if model_dir is None:
        return named
    whole = [os.path.abspath(folder) for folder in named]
    if len(set(whole)) == 1:
        return [Path(model_dir)] * len(named)
    return [Path(model_dir) / os.path.relpath(folder, os.path.commonpath(whole)) for folder in whole]


def _first_step(config: TrainerConfig, checkpoint: str | Path | None, model_dir: Path) -> int:
    """The step that the first phase begins at: that of the checkpoint it begins from, if that is within the phase."""
    named = checkpoint or (config.fit.ckpt_path if config.fit is not None else None)
    if named is None or not Path(named).exists() or not _counts_on(config):
        return 0
    own = _own_begin(config, Path(named), model_dir)
    if own is not None:
        return own
    step, end = _present(Path(named))[1], config.init.loop.max_steps
    return step if end is None or step < end else 0


def _own_begin(config: TrainerConfig, checkpoint: Path, model_dir: Path) -> int | None:
    """The step that the run began at, where a checkpoint lies in the run's own folder and says it."""
    folders = {Path(folder).resolve() for folder in (config.init.checkpoint.checkpoint_root or model_dir, model_dir)}
    if checkpoint.resolve().parent not in folders or not checkpoint.exists() or not _counts_on(config):
        return None
    return recorded_begin(checkpoint)


def _end(config: TrainerConfig, begins: int) -> int | None:
    loop = config.init.loop
    if loop.num_epochs is not None:
        return None
    ends = [] if loop.num_steps is None else [begins + loop.num_steps]
    ends += [] if loop.max_steps is None else [loop.max_steps]
    return min(ends)


def _refuse_what_cannot_continue(phase: Phase, earlier: Sequence[Phase], *, capped: bool) -> None:
    checkpoint = phase.config.init.checkpoint

    def refuse(key: str, why: str) -> ConfigError:
        return PhaseError(phase.config, Problem(tuple(key.split(".")), why))

    if phase.ends is None:
        raise refuse("init.loop", "a phase of a list needs an end that is known beforehand; give max_steps")
    if not checkpoint.autoload_last_checkpoint:
        raise refuse("init.checkpoint.autoload_last_checkpoint", "a list of phases continues by itself; remove it")
    if phase.number < phase.count and not checkpoint.steps:
        raise refuse("init.checkpoint.steps", "the next phase begins from this one's last checkpoint; give steps")
    if phase.ends <= phase.begins and not capped:
        raise refuse(
            "init.loop.max_steps",
            f"steps are counted through, and the phase begins at step {phase.begins}; give more than that, or leave "
            "global_step out of LoadCheckpointStates and give the phase a model_dir of its own",
        )
    for other in earlier:
        if other.folder == phase.folder and phase.begins < (other.ends or 0):
            raise refuse(
                "init.model_dir",
                f"phase {other.number} writes there too, and both count their steps from 0; give each its own",
            )


# ---- where a launch begins ------------------------------------------------------------------------------------------


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
        checkpoint: the file given on the command line, which counts for more than what lies in the folders.
    """
    if checkpoint is not None:
        return _next_phase_from(phases, Path(checkpoint))
    for index in range(len(phases) - 1, -1, -1):
        phase, own = phases[index], own_checkpoints(phases[index], phases)
        if phase.count == 1:
            start = _single(phase, own)
            return int(_is_over(phase, start)), start
        if own:
            start = _go_on(own[-1], "the phase goes on", phase.begins)
            if not _is_over(phase, start):
                return index, start
            return index + 1, start_of(phases, index + 1) if index + 1 < len(phases) else start
    return 0, _named(phases[0].config)


def just_finished(phases: Sequence[Phase]) -> tuple[Phase, Start] | None:
    """The phase that ended last and its last checkpoint, where a launch begins with the next one or has none left.

    Only its records can be incomplete: the process may have died after the checkpoint and before they were written.
    """
    index, start = next_phase(phases)
    if not index:
        return None
    phase = phases[index - 1]
    if phase.count == 1:
        return phase, start
    own = own_checkpoints(phase, phases)
    return (phase, _go_on(own[-1], "its last checkpoint", phase.begins)) if own else None


def remaining_phases(
    phases: Sequence[Phase], checkpoint: str | Path | None, say: Callable[[str], Any]
) -> Iterator[tuple[Phase, Start]]:
    """The phases that a launch has to run, each with how it begins; asked for the next only when one has ended.

    Args:
        phases: of the launch.
        checkpoint: given on the command line.
        say: takes one line for each phase, and one if there is nothing to do.
    """
    index, start = next_phase(phases, checkpoint)
    for phase in phases[:index]:
        say(f"{phase.name}: finished{f' at step {phase.ends}' if phase.ends else ''}, nothing to do")
    left = [phase for phase in phases[index:] if phase.count == 1 or (phase.ends or 0) > phase.begins]
    if not left:
        say(
            f"nothing is left to train: {start.checkpoint} is the end of the run; to train on raise max_steps, to "
            "begin anew use another model_dir"
        )
    for number, phase in enumerate(left):
        if number:
            start = start_of(phases, phase.number - 1)
        if phase.count > 1:
            say(f"{phase.name}: steps {phase.begins + 1} to {phase.ends}, {start}")
        yield phase, start


def _next_phase_from(phases: Sequence[Phase], checkpoint: Path) -> tuple[int, Start]:
    step = _present(checkpoint)[1] if _counts_on(phases[0].config) else 0
    for index, phase in enumerate(phases):
        if phase.ends is None or phase.ends > step:
            if index and step == phase.begins:
                return index, _entering(phases, index, checkpoint)
            begins = phase.begins if index else _own_begin(phase.config, checkpoint, phase.model_dir)
            return index, Start(checkpoint, None, GIVEN, begins)
    return len(phases), Start(checkpoint)


def _is_over(phase: Phase, start: Start) -> bool:
    """Whether a phase that begins so has reached its end."""
    counted = start.states is not None or _counts_on(phase.config)
    if start.checkpoint is None or phase.ends is None or not counted:
        return False
    return _present(start.checkpoint)[1] >= phase.ends


def _single(phase: Phase, own: Sequence[SavedStep]) -> Start:
    """How a YAML of one trainer begins: as in the Model Zoo, but `ckpt_path` is only where the run began."""
    fit = phase.config.fit
    autoloads = phase.config.init.checkpoint.autoload_last_checkpoint
    if fit is None or fit.autoloads:
        if not own or not autoloads:
            return Start(None)
        begins = _begin_of(own[-1], phase) if _counts_on(phase.config) else None
        return Start(own[-1].path, None, "the last checkpoint there", begins)
    if fit.ckpt_path and own and autoloads and Path(fit.ckpt_path).resolve().parent != own[-1].path.resolve().parent:
        return _go_on(own[-1], f"the run that {fit.ckpt_path} began goes on", _begin_of(own[-1], phase))
    start = _named(phase.config)
    if start.checkpoint is None:
        return start
    return replace(start, begins=_own_begin(phase.config, start.checkpoint, phase.model_dir))


def _begin_of(saved: SavedStep, phase: Phase) -> int:
    """The step at which the run of one trainer began, by its own checkpoint, or else by its YAML."""
    recorded = recorded_begin(saved.path)
    return phase.begins if recorded is None else recorded


def _named(config: TrainerConfig) -> Start:
    named = config.fit.ckpt_path if config.fit is not None else None
    return Start(Path(named), None, "ckpt_path") if named else Start(None)


def start_of(phases: Sequence[Phase], index: int) -> Start:
    """How the phase `index` begins after the one before it has ended.

    Raises UserError when that one left no checkpoint.
    """
    named = _named(phases[index].config).checkpoint
    # A path into the folder of the phase before means what that one left, wherever its folder is and whatever its name.
    if named is not None and named.parent.resolve() != Path(phases[index - 1].config.init.model_dir).resolve():
        return _entering(phases, index, named)
    left = own_checkpoints(phases[index - 1], phases)
    if not left:
        raise UserError(f"{phases[index - 1].model_dir}: {phases[index - 1].name} left no checkpoint to begin from")
    return _entering(phases, index, left[-1].path)


def _go_on(saved: SavedStep, why: str, begins: int) -> Start:
    return Start(saved.path, EVERYTHING, why, begins)


def _entering(phases: Sequence[Phase], index: int, checkpoint: Path, present: frozenset[str] | None = None) -> Start:
    """From another phase's checkpoint: what belongs to that phase stays behind."""
    phase, before = phases[index], phases[index - 1]
    wanted = _wanted(phase.config)
    present = _present(checkpoint)[0] if present is None else present
    states = (present if wanted is None else wanted & present) - NOT_CARRIED_OVER
    why = f"what phase {before.number} left"
    if OPTIMIZER_KEY in states and not _same_tensors_train(before.config, phase.config):
        states -= {OPTIMIZER_KEY}
        why += "; other tensors train now, so the optimizer begins anew"
    return Start(checkpoint, tuple(sorted(states)), why)


def predicted_start(phases: Sequence[Phase], index: int) -> Start:
    """How a phase will begin once the one before it has ended; nothing needs to be on disk yet."""
    before = phases[index - 1]
    section = before.config.init.checkpoint
    name = section.checkpoint_name.format(step=before.ends)
    return _entering(phases, index, Path(section.checkpoint_root or before.model_dir) / name, CHECKPOINT_KEYS)


def _same_tensors_train(before: TrainerConfig, after: TrainerConfig) -> bool:
    """Whether the optimizers of two phases are over the same tensors in the same groups."""

    def parts(config: TrainerConfig) -> tuple:
        model, optimizer = config.init.model, config.init.optimizer
        sizes = (model.hidden_size, model.filter_size, model.num_hidden_layers, model.vocab_size)
        groups = None if optimizer is None else (optimizer.params, optimizer.adjust_learning_rate)
        scales = (model.mup_base_hidden_size, model.mup_base_filter_size)
        return sizes, scales, groups, sorted(model.frozen_parameters)

    return parts(before) == parts(after)


def with_absolute_end(phase: Phase) -> TrainerConfig:
    """The phase's config with its end as one absolute step, so that it ends there however often it is begun."""
    if phase.ends is None or phase.count == 1:
        return phase.config
    loop = phase.config.init.loop.model_copy(update={"max_steps": phase.ends, "num_steps": None})
    return phase.config.model_copy(update={"init": phase.config.init.model_copy(update={"loop": loop})})
