"""What is wrong with a trainer YAML whose every key is known: values that do not fit together.

The Model Zoo's validation lets all of this through; it shows on the cluster, or in the losses. Each problem is one line
with file, line, key and remedy. Nothing here looks at data or weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cerebras_jais.catalog.family import CONSTANT_RELATIVE
from cerebras_jais.catalog.models import MODELS, MUP_SETS
from cerebras_jais.catalog.size_rules import MUP_BASE_WIDTH
from cerebras_jais.catalog.types import MuP
from cerebras_jais.config.schedules import ConstantLR, ScalePerParamLR, Schedule, SequentialLR
from cerebras_jais.config.sections import DataLoader
from cerebras_jais.config.trainer import TrainerConfig, read_trainer_yaml
from cerebras_jais.config.yaml_file import ConfigFile, dotted, read_yaml
from cerebras_jais.errors import UserError
from cerebras_jais.launch.phases import Phase
from cerebras_jais.launch.start import plan_launch
from cerebras_jais.model.config import DecoderConfig

CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
Problem = tuple[tuple[str | int, ...], str]  # a path of keys below `trainer`, and what is wrong there


def check_file(path: str | Path) -> list[str]:
    """Every problem of a trainer YAML, one line each; empty where there is none.

    A file that the schema refuses has that as its one problem: what does not read cannot be compared.
    """
    try:
        configs = read_trainer_yaml(path)
    except UserError as error:
        return [str(error)]
    source = read_yaml(path)
    several = isinstance(source.data["trainer"], list)
    found = []
    try:
        phases = plan_launch(configs, checked=False).phases
    except UserError as error:  # a checkpoint that cannot be read
        return [str(error)]
    for index, (config, phase) in enumerate(zip(configs, phases, strict=True)):
        at: tuple[str | int, ...] = ("trainer", index, "trainer") if several else ("trainer",)
        problems = [problem for check in CHECKS for problem in check(config)]
        problems += _schedule_problems(phase)
        found += [_placed(source, at, problem) for problem in problems]
    if several:
        found += [_placed(source, ("trainer",), problem) for problem in _problems_between(configs)]
    return found


def notes_of(configs: Sequence[TrainerConfig]) -> list[str]:
    """What is no problem of a YAML and worth a line: what was not judged, and what has no effect on CS systems."""
    found = []
    for index, config in enumerate(configs):
        at: tuple[str | int, ...] = ("trainer", index, "trainer") if len(configs) > 1 else ("trainer",)
        for aside in config.aside:
            found.append(f"{dotted((*at, *aside.keys))}: {aside.what} is left to the Model Zoo and was not judged")
        if config.init.backend_type == "CSX" and config.init.loop.grad_accum_steps > 1:
            key = dotted((*at, "init", "loop", "grad_accum_steps"))
            found.append(f"{key}: has no effect on CS systems, where a step is one batch of batch_size")
    return found


def _placed(source: ConfigFile, at: tuple[str | int, ...], problem: Problem) -> str:
    keys, message = problem
    return f"{source.location((*at, *keys))}: {message}"


# ---- one trainer ------------------------------------------------------------------------------------------------


def _backend_problems(config: TrainerConfig) -> Iterator[Problem]:
    init = config.init
    backend, cluster = init.backend, init.backend.cluster_config
    if init.device and backend.backend_type and init.device.upper() != backend.backend_type:
        yield ("init", "device"), f"is {init.device}, backend_type is {backend.backend_type}; remove one of them"
    elif init.device and init.device.upper() not in ("CSX", "CPU", "GPU"):
        yield ("init", "device"), f"unknown backend {init.device!r}; use CSX, CPU or GPU"
    if backend.compile_only and backend.validate_only:
        yield ("init", "backend", "validate_only"), "a run only compiles or only validates; remove this or compile_only"
    if config.fit is None or cluster is None or init.backend_type != "CSX":
        return
    loaders = [("train_dataloader", config.fit.train_dataloader)]
    loaders += [("val_dataloader", loader) for loader in config.fit.val_dataloader]
    for name, loader in loaders:
        if loader.batch_size < cluster.num_csx:
            yield (
                ("fit", name, "batch_size"),
                f"{loader.batch_size} samples cannot be divided among num_csx {cluster.num_csx}; raise it to "
                f"{cluster.num_csx} or more, or take fewer systems",
            )


def _precision_problems(config: TrainerConfig) -> Iterator[Problem]:
    precision = config.init.precision
    if precision is None or config.init.backend_type != "CSX":
        return
    at = ("init", "precision")
    if not precision.enabled:
        yield (*at, "enabled"), "a CS system computes in a 16-bit type; set it to true, weights stay float32"
    if precision.fp16_type == "cbfloat16" and precision.loss_scaling_factor != "dynamic":
        yield (
            (*at, "loss_scaling_factor"),
            f"cbfloat16 needs dynamic loss scaling, or gradients under- and overflow "
            f"(got {precision.loss_scaling_factor!r}); set it to dynamic",
        )
    if precision.fp16_type == "bfloat16" and precision.loss_scaling_factor == "dynamic":
        yield (*at, "loss_scaling_factor"), "bfloat16 needs no loss scaling and gets none; remove it, or use cbfloat16"
    low, high = precision.min_loss_scale, precision.max_loss_scale
    if low is not None and high is not None and low > high:
        yield (*at, "min_loss_scale"), f"{low} is above max_loss_scale {high}; exchange them"


def _checkpoint_problems(config: TrainerConfig) -> Iterator[Problem]:
    if config.fit is not None and not config.init.checkpoint.steps:
        yield (
            ("init", "checkpoint", "steps"),
            "no checkpoint would be written, not even the last; give a number of steps",
        )


def _loss_problems(config: TrainerConfig) -> Iterator[Problem]:
    model = config.init.model
    length, weight = model.max_position_embeddings, model.loss_weight
    if model.loss_scaling == "num_tokens":
        return
    remedy = f"give 1/max_position_embeddings = {1 / length!r}, or loss_scaling: num_tokens"
    others = [n for n in CONTEXTS if n != length and math.isclose(weight * n, 1, rel_tol=1e-6)]
    if others:
        yield ("init", "model", "loss_weight"), f"is that of {others[0]} tokens, not of {length}; {remedy}"
    elif not 1 / length * (1 - 1e-3) <= weight <= 1:
        yield ("init", "model", "loss_weight"), f"scales the loss by {weight * length:.4g} at least; {remedy}"


def _mup_problems(config: TrainerConfig) -> Iterator[Problem]:
    model = config.init.model
    if not model.is_mup:
        return
    assert model.mup_base_hidden_size is not None and model.mup_base_filter_size is not None
    at = ("init", "model")
    widths = model.hidden_size / model.mup_base_hidden_size, model.filter_size / model.mup_base_filter_size
    if not math.isclose(*widths, rel_tol=1e-5):
        wanted = model.filter_size * model.mup_base_hidden_size / model.hidden_size
        yield (
            (*at, "mup_base_filter_size"),
            f"makes the filter {widths[1]:.4g} times the base's where the hidden size is {widths[0]:.4g} times; "
            f"give {wanted!r}",
        )
    known = next((m for m in MODELS if _sizes(m) == (model.hidden_size, model.filter_size)), None)
    if known is not None and known.architecture.mup is not None and model.mup_base_hidden_size != MUP_BASE_WIDTH:
        yield (*at, "mup_base_hidden_size"), f"every jais-family model has {MUP_BASE_WIDTH}; give that"
    yield from (((*at, key), message) for key, message in _mixed_constants(model))


def _sizes(model: Any) -> tuple[int, int]:
    return model.architecture.hidden_size.value, model.architecture.filter_size.value


def _mixed_constants(model: DecoderConfig) -> Iterator[tuple[str, str]]:
    def is_of(value: float | None, constant: float) -> bool:
        return value is not None and math.isclose(value, constant, rel_tol=CONSTANT_RELATIVE)

    def others(name: str) -> list[MuP]:
        return [mup for other, mup in MUP_SETS.items() if other != name]

    for name, mup in MUP_SETS.items():
        scale, alpha = mup.embeddings_scale.value, mup.output_logits_alpha.value
        if is_of(model.embeddings_scale, scale) and not is_of(model.output_logits_alpha, alpha):
            yield (
                "output_logits_alpha",
                f"embeddings_scale is that of the {name} models, which goes with {alpha}; give that",
            )
        if is_of(model.output_logits_alpha, alpha) and not is_of(model.embeddings_scale, scale):
            yield (
                "embeddings_scale",
                f"output_logits_alpha is that of the {name} models, which goes with {scale}; give that",
            )
        spread = model.initializer.std if model.initializer is not None else None
        if is_of(model.embeddings_scale, scale) and any(is_of(spread, other.spread.value) for other in others(name)):
            yield "initializer", f"std {spread} is of the other models' muP set; give {mup.spread.value}"


def _data_problems(config: TrainerConfig) -> Iterator[Problem]:
    fit, length = config.fit, config.init.model.max_position_embeddings
    if fit is None:
        return
    train = fit.train_dataloader
    loaders: list[tuple[tuple[str | int, ...], DataLoader]] = [(("fit", "train_dataloader"), train)]
    held_out_at = ("fit", "val_dataloader")
    loaders += [(held_out_at, section) for section in fit.val_dataloader]
    for at, section in loaders:
        if not (section.is_read_here and train.is_read_here):
            continue
        if section.max_sequence_length not in (None, length):
            yield (
                (*at, "max_sequence_length"),
                f"is {section.max_sequence_length}, model.max_position_embeddings is {length}; make them equal",
            )
        if isinstance(section.vocab_size, int) and section.vocab_size != config.init.model.vocab_size:
            yield (
                (*at, "vocab_size"),
                f"is {section.vocab_size}, model.vocab_size is {config.init.model.vocab_size}; make them equal or "
                "remove this one, which has no effect",
            )
        if section.mixture is not None and not any(part.weight for part in section.mixture):
            yield (*at, "mixture"), "every weight is 0, so there is nothing to draw from; give the shares of each part"
        if section.use_vsl != train.use_vsl:
            yield (
                (*at, "use_vsl"),
                f"training {'is' if train.use_vsl else 'is not'} on packed examples and this "
                f"{'is' if section.use_vsl else 'is not'}; pack both alike",
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
    for index, outer in enumerate(config.init.schedulers):
        at: tuple[str | int, ...] = ("init", "schedulers", index)
        schedule: Schedule = outer.scheduler if isinstance(outer, ScalePerParamLR) else outer
        parts: list[Any] = list(schedule.schedulers) if isinstance(schedule, SequentialLR) else [schedule]
        for before, after in itertools.pairwise(parts):
            if not math.isclose(_rate(before, -1), _rate(after, 0), rel_tol=1e-6):
                yield at, f"the learning rate jumps from {_rate(before, -1):g} to {_rate(after, 0):g}; make them equal"
        if phase.ends is None or isinstance(parts[-1], ConstantLR):
            continue
        planned = sum(part.total_iters or 0 for part in parts)
        if steps <= 0:
            yield ("init", "loop", "max_steps"), f"the run begins at step {begins}; give more than that"
        elif planned < steps:
            yield (
                at,
                f"the schedule ends after {planned} steps, the run goes on for {steps}, up to max_steps "
                f"{begins + steps}; raise total_iters by {steps - planned}, lower max_steps to {begins + planned}, or "
                "name in ckpt_path the checkpoint_STEP.mdl that it goes on from",
            )
        elif planned > steps:
            yield (
                at,
                f"the schedule takes {planned} steps, the run ends after {steps} at a rate not yet at its end; lower "
                f"total_iters by {planned - steps} or raise max_steps to {begins + planned}",
            )


def _rate(schedule: Any, end: int) -> float:
    if isinstance(schedule, ConstantLR):
        return schedule.learning_rate
    return schedule.end_learning_rate if end else schedule.initial_learning_rate


# ---- several trainers -------------------------------------------------------------------------------------------

# What names and shapes of tensors follow from, and the key that says it where its own name is another.
_SAME_IN_ALL = (
    *("hidden_size", "num_hidden_layers", "num_heads", "filter_size", "vocab_size", "position_embedding_type"),
    *("num_kv_groups", "norm_type", "share_embedding_weights", "use_bias_in_output", "use_ffn_bias"),
    *("use_projection_bias_in_attention", "use_ffn_bias_in_attention"),
)
_SAID_BY = {"num_kv_groups": "extra_attention_params"}


def _problems_between(configs: Sequence[TrainerConfig]) -> Iterator[Problem]:
    first = configs[0].init
    for index, config in enumerate(configs[1:], 1):
        at: tuple[str | int, ...] = (index, "trainer", "init")
        for key in _SAME_IN_ALL:
            ours, theirs = getattr(config.init.model, key), getattr(first.model, key)
            if ours != theirs:
                name = f"{key} " if key in _SAID_BY else ""
                yield (
                    (*at, "model", _SAID_BY.get(key, key)),
                    f"{name}is {ours} here and {theirs} in the first phase, whose weights do not fit; make them equal",
                )
        if config.init.backend_type != first.backend_type:
            yield (
                (*at, "backend", "backend_type"),
                f"is {config.init.backend_type} here and {first.backend_type} in the first phase; one process has one",
            )
        if (config.init.autorestart is None) != (first.autorestart is None):
            yield (*at, "autorestart"), "is set in some phases alone; set it in all of them or in none"
