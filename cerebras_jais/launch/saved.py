"""The checkpoints of a run on disk: their folders, names and steps, and which of their states are loaded.

A run writes its checkpoints into `checkpoint_root`, or into `model_dir` without it, as `checkpoint_name` says; both
folders are searched for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cerebras_jais.checkpoint import CheckpointError, open_checkpoint, read_step
from cerebras_jais.config.callbacks import named_states
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.errors import UserError
from cerebras_jais.ranges import COUNT_OR_NONE

EVERYTHING = ("all",)  # the value of LoadCheckpointStates that loads every state
INTERRUPTED = "interrupted"  # follows the step in the name of a checkpoint that was written because of a signal
NO_CHECKPOINT = "no such checkpoint; put it there, or give another"
STANDARD_NAME = r"checkpoint_(\d+)\.mdl"  # the Model Zoo's name where a YAML gives no other


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint file: its step and, if its name has one, its timestamp.

    An interrupted one was written because a signal stopped the run at that step.
    """

    step: int
    time: str
    path: Path
    interrupted: bool = False


# ---- folders and names ----------------------------------------------------------------------------------------------


def checkpoint_root(config: TrainerConfig, model_dir: str | Path) -> Path:
    """The folder that a run in `model_dir` writes its checkpoints to."""
    return Path(config.init.checkpoint.checkpoint_root or model_dir)


def checkpoint_folders(config: TrainerConfig, model_dir: str | Path) -> set[Path]:
    """The folders, resolved, where checkpoints of a run in `model_dir` may be."""
    return {checkpoint_root(config, model_dir).resolve(), Path(model_dir).resolve()}


def checkpoint_path(config: TrainerConfig, model_dir: str | Path, step: int | str) -> Path:
    """The path of a run's checkpoint of a step; `step` may carry what follows the number in the name."""
    return checkpoint_root(config, model_dir) / _name(config, str(step))


def name_pattern(config: TrainerConfig) -> str:
    """The regular expression of the names of a run's checkpoints; its groups are step and time or INTERRUPTED."""
    return _name(config, rf"(\d+)(?:_(\d{{8}}_\d{{6}}|{INTERRUPTED}))?", re.escape)


def _name(config: TrainerConfig, step: str, quote: Callable[[str], str] = str) -> str:
    """The name of a run's checkpoint with `step` in its place, what is around it quoted."""
    head, _, tail = config.init.checkpoint.checkpoint_name.partition("{step}")
    return quote(head) + step + quote(tail)


def step_in_name(config: TrainerConfig, path: Path) -> int | None:
    """The step in a checkpoint's name, by the config's own `checkpoint_name` or the Model Zoo's; None without one."""
    match = re.fullmatch(name_pattern(config), path.name) or re.fullmatch(STANDARD_NAME, path.name)
    return int(match[1]) if match else None


def saved_steps(config: TrainerConfig, model_dir: Path) -> list[SavedStep]:
    """The checkpoints of a run, ordered by step, then time; of one step, an interrupted one comes first."""
    name = re.compile(name_pattern(config))
    found = []
    for folder in {checkpoint_root(config, model_dir), model_dir}:
        for path in folder.glob("*") if folder.is_dir() else ():
            match = name.fullmatch(path.name)
            if match and path.is_file():
                interrupted = match[2] == INTERRUPTED
                found.append(SavedStep(int(match[1]), "" if interrupted else match[2] or "", path, interrupted))
    return sorted(found, key=lambda saved: (saved.step, not saved.interrupted, saved.time, str(saved.path)))


# ---- what a file holds ----------------------------------------------------------------------------------------------


def held_states(path: Path) -> tuple[frozenset[str], int]:
    """The names of the states that a checkpoint holds, and its step (0 where it has none).

    Raises UserError where there is no such file, and CheckpointError for one that cannot be read.
    """
    require_checkpoint(path)
    with open_checkpoint(path) as opened:
        tree = opened.tree if isinstance(opened.tree, Mapping) else {}
        names = frozenset(str(name) for name in tree if not str(name).startswith("__"))
        return names, read_step(tree, path)


def recorded_begin(path: Path) -> int | None:
    """The step at which the run that wrote a checkpoint began; None where the file does not say."""
    with open_checkpoint(path) as opened:
        last = opened.metadata[-1] if opened.metadata else None
    run = last.get("run") if isinstance(last, Mapping) else None
    first = run.get("first_step") if isinstance(run, Mapping) else None
    return first if isinstance(first, int) and COUNT_OR_NONE.holds(first) else None


def require_checkpoint(path: Path) -> None:
    """Raise UserError where there is no such file."""
    if not path.exists():
        raise UserError(f"{path}: {NO_CHECKPOINT}")


def nothing_left(last: object) -> str:
    """The line of a run that is complete; `last` is its last checkpoint or step."""
    return (
        f"nothing is left to train: {last} is the end of the run; to continue raise max_steps, to start again use "
        "another model_dir"
    )


@contextmanager
def with_remedy(own: Path | None) -> Iterator[None]:
    """Say of a checkpoint of the run's own that cannot be read how the run continues without it; None: no such."""
    try:
        yield
    except CheckpointError as error:
        if own is None or not str(error).startswith(f"{own}:"):
            raise
        remedy = "move it away, and the run continues from the one before, or from its start where there is none"
        raise CheckpointError(f"{error}; {remedy}") from error


# ---- which states are loaded ----------------------------------------------------------------------------------------


def wanted_states(config: TrainerConfig) -> frozenset[str] | None:
    """The states that LoadCheckpointStates of a config names, None for all of them."""
    arguments = config.callback("LoadCheckpointStates") or {}
    return named_states(arguments.get("load_checkpoint_states", "all"))


def takes_step(config: TrainerConfig) -> bool:
    """Whether a config takes over the step of the checkpoint it begins from; otherwise it counts from 0."""
    wanted = wanted_states(config)
    return wanted is None or "global_step" in wanted


def loaded_states(config: TrainerConfig, planned: Sequence[str] | None, held: frozenset[str], path: Path) -> set[str]:
    """The states that are loaded from a checkpoint.

    Args:
        config: of the phase that begins.
        planned: names or EVERYTHING, as far as the file holds them; None for what LoadCheckpointStates says.
        held: the states in the file.
        path: of the file, for messages.

    Raises UserError where LoadCheckpointStates names a state that the file does not hold, as the Model Zoo does.
    """
    if planned is not None:
        return set(held) if tuple(planned) == EVERYTHING else set(planned) & held
    wanted = wanted_states(config)
    if wanted is None:
        return set(held)
    if wanted - held:
        raise UserError(
            f"{path}: LoadCheckpointStates names {', '.join(sorted(wanted - held))}, which it does not hold; "
            f"it holds {', '.join(sorted(held))}"
        )
    return set(wanted)
