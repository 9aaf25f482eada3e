"""Where the phases of a launch begin and end.

A trainer YAML is one phase or a list of them, run one after another:

- A phase ends at a step (`max_steps`, or `num_steps` from where it begins); its checkpoint at that step finishes it.
- Steps continue from the previous phase, unless LoadCheckpointStates of a phase leaves `global_step` out; then they
  are counted from 0.

Which phase a launch begins with, and from which checkpoint, is in `start`, as is the plan of a whole launch.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cerebras_jais.config.sections import Loop
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.config.yaml_file import ConfigError
from cerebras_jais.errors import Problem
from cerebras_jais.launch.family_phase import family_phase, step_before
from cerebras_jais.launch.saved import (
    checkpoint_folders,
    checkpoint_root,
    held_states,
    recorded_begin,
    step_in_name,
    takes_step,
    wanted_states,
)
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import tensors


@dataclass(frozen=True)
class Phase:
    """One trainer of a launch: steps `begins` (exclusive) to `ends` (None: only its data can tell), in `model_dir`.

    `config` has the length that the launch gives the phase: of a list, one absolute `max_steps`. `assumed` says what
    `begins` is taken from where the checkpoint that the phase begins from is not here yet. `is_cut` says that the
    command line ends the launch before the phase's own end.
    """

    number: int
    count: int
    config: TrainerConfig
    model_dir: Path
    begins: int
    ends: int | None
    assumed: str = ""
    is_cut: bool = False

    @property
    def folder(self) -> Path:
        """Where its checkpoints go."""
        return checkpoint_root(self.config, self.model_dir).resolve()

    @property
    def name(self) -> str:
        """For people."""
        return f"phase {self.number} of {self.count}" if self.count > 1 else "run"


# ---- planning --------------------------------------------------------------------------------------------------------


def plan_phases(
    configs: Sequence[TrainerConfig],
    *,
    model_dir: str | Path | None = None,
    max_steps: int | None = None,
    checkpoint: str | Path | None = None,
    checked: bool = True,
) -> list[Phase]:
    """The phases with their folders and steps.

    Args:
        configs: the trainers of a YAML.
        model_dir: instead of the YAML's; phases that have folders of their own keep them apart in it.
        max_steps: where a list ends, whatever its phases say; the end of a single trainer.
        checkpoint: the file the launch begins from, instead of what the YAML says.
        checked: False plans also phases that could not be continued, for `config check`, which reports those too.

    Raises:
        ConfigError: phases that could not be continued: without an end or a last checkpoint, or whose checkpoints
            could not be told apart, or whose weights do not fit.
    """
    phases: list[Phase] = []
    count, folders, cut = len(configs), _folders(configs, model_dir), False
    for number, (config, folder) in enumerate(zip(configs, folders, strict=True), 1):
        begins, assumed = _begin(config, phases, checkpoint, folder)
        if count == 1 and max_steps is not None:
            config = _with_end(config, max_steps)
        ends = whole = end_of(config.init.loop, begins)
        if count > 1 and max_steps is not None:
            ends = max_steps if ends is None else min(ends, max_steps)
        if cut:  # an earlier phase is cut short, so the launch ends there and this one is not reached
            ends = begins
        cut = cut or ends != whole
        if count > 1 and ends is not None:
            config = _with_end(config, ends)
        phases.append(Phase(number, count, config, folder, begins, ends, assumed, cut))
    for problem in phase_problems(phases) if checked else ():
        raise ConfigError(configs[0].message_at(problem))
    return phases


def _folders(configs: Sequence[TrainerConfig], model_dir: str | Path | None) -> list[Path]:
    named = [Path(config.init.model_dir) for config in configs]
    if model_dir is None:
        return named
    whole = [os.path.abspath(folder) for folder in named]
    if len(set(whole)) == 1:
        return [Path(model_dir)] * len(named)
    return [Path(model_dir) / os.path.relpath(folder, os.path.commonpath(whole)) for folder in whole]


def _begin(
    config: TrainerConfig, earlier: Sequence[Phase], checkpoint: str | Path | None, model_dir: Path
) -> tuple[int, str]:
    """The step that a phase begins at, and what that is taken from where its checkpoint is not here yet."""
    if not takes_step(config):
        return 0, ""
    if earlier:
        before = earlier[-1]
        named = named_elsewhere(config, before)
        if named is None:
            return before.begins if before.ends is None else before.ends, ""
    else:
        given = checkpoint or ckpt_path_of(config)
        if given is None:
            return 0, ""
        named = Path(given)
    if not named.exists():
        return _assumed_step(config, named)
    own = own_begin(config, named, model_dir)
    if own is not None:
        return own, ""
    step, end = held_states(named)[1], config.init.loop.max_steps
    return (step if earlier or end is None or step < end else 0), ""


def _assumed_step(config: TrainerConfig, checkpoint: Path) -> tuple[int, str]:
    """The step of a checkpoint that is not here: that in its name, else that of the phase in the catalog, else 0."""
    step = step_in_name(config, checkpoint)
    if step is not None:
        return step, "from its name"
    found = family_phase(config)
    if found is not None:
        model, phase = found
        return step_before(phase), f"from the catalog: {model.name}/{phase.name} begins there"
    return 0, "because its name holds no step"


def ckpt_path_of(config: TrainerConfig) -> str | None:
    """The checkpoint that a YAML names to begin from."""
    return config.fit.ckpt_path if config.fit is not None else None


def named_elsewhere(config: TrainerConfig, before: Phase) -> Path | None:
    """The checkpoint that a phase names, unless it is in the folder of the phase before.

    A path into that folder means what that phase leaves, whatever folder the command line gives and whatever the name.
    """
    named = ckpt_path_of(config)
    if named is None or Path(named).parent.resolve() == Path(before.config.init.model_dir).resolve():
        return None
    return Path(named)


def own_begin(config: TrainerConfig, checkpoint: Path, model_dir: Path) -> int | None:
    """The step that the run began at, where a checkpoint is in the run's own folder and says it."""
    is_own = checkpoint.resolve().parent in checkpoint_folders(config, model_dir)
    return recorded_begin(checkpoint) if is_own and checkpoint.exists() and takes_step(config) else None


def end_of(loop: Loop, begins: int, steps_in_epochs: int | None = None) -> int | None:
    """The step at which a run ends that began at `begins`; None where only its data can tell.

    num_steps and num_epochs are counted from `begins`, max_steps from step 0; the lowest of them counts.

    Args:
        loop: the lengths.
        begins: where the run began.
        steps_in_epochs: what num_epochs comes to on the run's data, where that is known.
    """
    if loop.num_epochs is not None and steps_in_epochs is None:
        return None
    ends = [begins + steps for steps in (loop.num_steps, steps_in_epochs) if steps is not None]
    return min(ends if loop.max_steps is None else [*ends, loop.max_steps])


def _with_end(config: TrainerConfig, ends: int) -> TrainerConfig:
    """The config with one absolute end, so that a phase ends there however often it is begun."""
    loop = config.init.loop.model_copy(update={"max_steps": ends, "num_steps": None, "num_epochs": None})
    return config.model_copy(update={"init": config.init.model_copy(update={"loop": loop})})


# ---- what must hold between phases ----------------------------------------------------------------------------------


def phase_problems(phases: Sequence[Phase]) -> Iterator[Problem]:
    """Why phases could not be run one after another, each problem at its key of the file."""
    for index, phase in enumerate(phases):
        problems = itertools.chain(
            _length_problems(phase),
            _checkpoint_problems(phase) if phase.count > 1 else (),
            _folder_problems(phase, phases[:index]),
            _weight_problems(phase, phases[index - 1]) if index else (),
        )
        yield from (problem.below(phase.config.at) for problem in problems)


def _length_problems(phase: Phase) -> Iterator[Problem]:
    if phase.ends is None:
        if phase.count > 1:
            yield Problem(
                ("init", "loop"), "the end of a phase in a list must be known before it starts; give max_steps"
            )
    elif phase.ends <= phase.begins and not phase.is_cut:
        before = "the previous phase" if phase.number > 1 else "the checkpoint it begins from"
        apart = "; or leave global_step out of LoadCheckpointStates" + (
            " and give the phase a model_dir of its own" if phase.number > 1 else ""
        )
        yield Problem(
            ("init", "loop", "max_steps"),
            f"must be larger than {phase.begins} (steps continue from {before}){apart}",
        )


def _checkpoint_problems(phase: Phase) -> Iterator[Problem]:
    checkpoint = phase.config.init.checkpoint
    if not checkpoint.autoload_last_checkpoint:
        yield Problem(
            ("init", "checkpoint", "autoload_last_checkpoint"),
            "a list of phases always continues from its last checkpoint; remove it",
        )
    if phase.number < phase.count and not checkpoint.steps:
        yield Problem(
            ("init", "checkpoint", "steps"), "the next phase starts from this one's last checkpoint; give steps"
        )


def _folder_problems(phase: Phase, earlier: Sequence[Phase]) -> Iterator[Problem]:
    for other in earlier:
        if other.folder == phase.folder and phase.begins < (other.ends or 0):
            yield Problem(
                ("init", "model_dir"),
                f"phase {other.number} writes to the same folder, and both count steps from 0; give each its own",
            )


def _weight_problems(phase: Phase, before: Phase) -> Iterator[Problem]:
    """The keys of a model that cannot take over the weights of the phase before."""
    init, wanted = phase.config.init, wanted_states(phase.config)
    takes_weights = named_elsewhere(phase.config, before) is None and (wanted is None or "model" in wanted)
    if not takes_weights or init.checkpoint.disable_strict_checkpoint_loading:
        return
    ours, theirs = init.model, before.config.init.model
    for key in DecoderConfig.model_fields:
        value, other = getattr(ours, key), getattr(theirs, key)
        if value != other and weight_layout(ours.model_copy(update={key: other})) != weight_layout(ours):
            yield Problem(
                ("init", "model", key),
                f"is {value} here and {other} in phase {before.number}, whose weights do not fit; make them equal",
            )


def weight_layout(model: DecoderConfig) -> tuple[int, dict[str, tuple[int, ...]]]:
    """What two models have in common that can use the same weights: the heads, and each tensor's name and shape."""
    return model.num_heads, {tensor.name: tensor.shape for tensor in tensors(model)}
