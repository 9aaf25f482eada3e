"""What is wrong with a trainer YAML whose every key is known: values that do not fit together.

The Model Zoo's validation lets all of this through; it shows on the cluster, or in the losses. Each problem is one line
with file, line, key and remedy. Nothing here looks at data or weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

from cerebras_jais.catalog.family import loss_weight_problem, mup_problems
from cerebras_jais.config.schedules import ConstantLR, CosineDecayLR, LinearLR, Schedule, parts_of, planned_steps
from cerebras_jais.config.sections import BACKENDS
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.errors import Keys, Problem, dotted
from cerebras_jais.launch.phases import Phase, named_elsewhere, phase_problems
from cerebras_jais.launch.start import OPTIMIZER_KEY, predicted_start
from cerebras_jais.optimizer.schedule import learning_rate

_ALIKE = 1e-6  # relative; learning rates that meet


def check(phases: Sequence[Phase]) -> list[Problem]:
    """Every problem of the trainers of a YAML, each at its key of the file."""
    found = []
    for phase in phases:
        problems = [problem for check_one in CHECKS for problem in check_one(phase.config)]
        problems += _schedule_problems(phase)
        found += [problem.below(phase.config.at) for problem in problems]
    return [*found, *phase_problems(phases), *_problems_between([phase.config for phase in phases])]


def notes_of(configs: Sequence[TrainerConfig]) -> list[str]:
    """Notes on a YAML that are no problems: what was not checked, and what has no effect on CS systems."""
    found = []
    for config in configs:
        for aside in config.aside:
            key = dotted((*config.at, *aside.keys))
            found.append(f"{key}: {aside.what} is left to the Model Zoo and was not checked")
        if config.init.backend_type == "CSX" and config.init.loop.grad_accum_steps > 1:
            key = dotted((*config.at, "init", "loop", "grad_accum_steps"))
            found.append(f"{key}: has no effect on CS systems, where a step is one batch of batch_size")
    return found


def rate_notes(phases: Sequence[Phase]) -> Iterator[str]:
    """A note for each phase whose first step the Model Zoo takes, on a CPU or GPU, at another rate than the schedule's.

    The next phase takes over the optimizer, whose state has the learning rate of the next step, but no schedule.
    """
    for index, (before, phase) in enumerate(itertools.pairwise(phases), 1):
        config, ends = phase.config, before.ends
        if config.init.backend_type == "CSX" or ends is None or named_elsewhere(config, before) is not None:
            continue
        if OPTIMIZER_KEY not in (predicted_start(phases, index).states or ()):
            continue
        pairs = zip(before.config.init.schedulers, config.init.schedulers, strict=False)
        for number, (old, new) in enumerate(pairs):
            held, own = learning_rate(old, ends - before.begins), learning_rate(new, 0)
            if not math.isclose(held, own, rel_tol=_ALIKE):
                yield (
                    f"{dotted((*config.at, 'init', 'schedulers', number))}: begins at {own:g}; on a CPU or GPU the "
                    f"Model Zoo takes the first step at the rate {held:g}, where phase {before.number} ends"
                )


# ---- one trainer ------------------------------------------------------------------------------------------------


def _backend_problems(config: TrainerConfig) -> Iterator[Problem]:
    init = config.init
    backend, cluster = init.backend, init.backend.cluster_config
    if init.device and backend.backend_type and init.device.upper() != backend.backend_type:
        yield Problem(
            ("init", "device"), f"is {init.device}, backend_type is {backend.backend_type}; remove one of them"
        )
    elif init.device and init.device.upper() not in BACKENDS:
        yield Problem(("init", "device"), f"unknown backend {init.device!r}; use CSX, CPU or GPU")
    if backend.compile_only and backend.validate_only:
        yield Problem(
            ("init", "backend", "validate_only"),
            "a run cannot both compile only and validate only; remove this or compile_only",
        )
    if config.fit is None or cluster is None or init.backend_type != "CSX":
        return
    for at, loader in config.dataloaders():
        if loader.batch_size < cluster.num_csx:
            yield Problem(
                (*at, "batch_size"),
                f"{loader.batch_size} samples cannot be divided among num_csx {cluster.num_csx}; raise it to "
                f"{cluster.num_csx} or more, or take fewer systems",
            )


def _precision_problems(config: TrainerConfig) -> Iterator[Problem]:
    precision = config.init.precision
    if precision is None or config.init.backend_type != "CSX":
        return
    at = ("init", "precision")
    if not precision.enabled:
        yield Problem((*at, "enabled"), "a CS system computes in a 16-bit type; set it to true, weights stay float32")
    if precision.fp16_type == "cbfloat16" and precision.loss_scaling_factor != "dynamic":
        yield Problem(
            (*at, "loss_scaling_factor"),
            f"cbfloat16 needs dynamic loss scaling, or gradients under- and overflow "
            f"(got {precision.loss_scaling_factor!r}); set it to dynamic",
        )
    if precision.fp16_type == "bfloat16" and precision.loss_scaling_factor == "dynamic":
        yield Problem(
            (*at, "loss_scaling_factor"), "bfloat16 needs no loss scaling and gets none; remove it, or use cbfloat16"
        )
    low, high = precision.min_loss_scale, precision.max_loss_scale
    if low is not None and high is not None and low > high:
        yield Problem((*at, "min_loss_scale"), f"{low} is above max_loss_scale {high}; swap them")


def _checkpoint_problems(config: TrainerConfig) -> Iterator[Problem]:
    if config.fit is not None and not config.init.checkpoint.steps:
        yield Problem(
            ("init", "checkpoint", "steps"),
            "no checkpoint would be written, not even the last; give a number of steps",
        )


def _loss_problems(config: TrainerConfig) -> Iterator[Problem]:
    problem = loss_weight_problem(config.init.model)
    if problem is not None:
        yield Problem(("init", "model", "loss_weight"), problem)


def _mup_problems(config: TrainerConfig) -> Iterator[Problem]:
    yield from (Problem(("init", "model", key), message) for key, message in mup_problems(config.init.model))


def _data_problems(config: TrainerConfig) -> Iterator[Problem]:
    fit, length = config.fit, config.init.model.max_position_embeddings
    if fit is None:
        return
    train = fit.train_dataloader
    for at, section in config.dataloaders():
        if not (section.is_read_here and train.is_read_here):
            continue
        if section.max_sequence_length not in (None, length):
            yield Problem(
                (*at, "max_sequence_length"),
                f"is {section.max_sequence_length}, model.max_position_embeddings is {length}; make them equal",
            )
        if isinstance(section.vocab_size, int) and section.vocab_size != config.init.model.vocab_size:
            yield Problem(
                (*at, "vocab_size"),
                f"is {section.vocab_size}, model.vocab_size is {config.init.model.vocab_size}; make them equal or "
                "remove this one, which has no effect",
            )
        if section.mixture is not None and not any(part.weight for part in section.mixture):
            yield Problem((*at, "mixture"), "every weight is 0, so no sample can be drawn; give each part its share")
        if section.use_vsl != train.use_vsl:
            yield Problem(
                (*at, "use_vsl"),
                f"training {'is' if train.use_vsl else 'is not'} on packed examples and this "
                f"{'is' if section.use_vsl else 'is not'}; pack both the same way",
            )


CHECKS: Sequence[Callable[[TrainerConfig], Iterator[Problem]]] = (
    _backend_problems,
    _precision_problems,
    _checkpoint_problems,
    _loss_problems,
    _mup_problems,
    _data_problems,
)


# ---- schedules --------------------------------------------------------------------------------------------------


def _schedule_problems(phase: Phase) -> Iterator[Problem]:
    config, begins = phase.config, phase.begins
    steps = 0 if phase.ends is None else phase.ends - begins
    for index, schedule in enumerate(config.init.schedulers):
        at: Keys = ("init", "schedulers", index)
        for before, after in itertools.pairwise(parts_of(schedule)):
            if not math.isclose(_rate(before, -1), _rate(after, 0), rel_tol=_ALIKE):
                yield Problem(
                    at, f"the learning rate jumps from {_rate(before, -1):g} to {_rate(after, 0):g}; make them equal"
                )
        planned = planned_steps(schedule)
        if steps <= 0 or planned is None:
            continue
        if planned < steps:
            yield Problem(
                at,
                f"the schedule ends after {planned} steps, the run continues for {steps}, up to max_steps "
                f"{begins + steps}; raise total_iters by {steps - planned}, lower max_steps to {begins + planned}, or "
                "name in ckpt_path the checkpoint_STEP.mdl that it continues from",
            )
        elif planned > steps:
            yield Problem(
                at,
                f"the schedule takes {planned} steps, the run ends after {steps} at a rate not yet at its end; lower "
                f"total_iters by {planned - steps} or raise max_steps to {begins + planned}",
            )


def _rate(schedule: Schedule, end: int) -> float:
    if isinstance(schedule, ConstantLR):
        return schedule.learning_rate
    assert isinstance(schedule, LinearLR | CosineDecayLR)
    return schedule.end_learning_rate if end else schedule.initial_learning_rate


# ---- several trainers -------------------------------------------------------------------------------------------


def _problems_between(configs: Sequence[TrainerConfig]) -> Iterator[Problem]:
    """What differs between phases and may not on a cluster; what must hold anywhere is in `phase_problems`."""
    first = configs[0].init
    for config in configs[1:]:
        at = (*config.at, "init")
        if config.init.backend_type != first.backend_type:
            yield Problem(
                (*at, "backend", "backend_type"),
                f"is {config.init.backend_type} here and {first.backend_type} in the first phase; a process can have "
                "one only",
            )
        if (config.init.autorestart is None) != (first.autorestart is None):
            yield Problem((*at, "autorestart"), "is set in some phases only; set it in all of them or in none")
