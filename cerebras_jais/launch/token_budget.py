"""Whether a run of one of the family's models sees as many tokens as the catalog has for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cerebras_jais.catalog.models import MODELS
from cerebras_jais.catalog.types import Model, Phase
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.launch.checks import steps_of
from cerebras_jais.model.config import DecoderConfig

_ALIKE = 0.001  # steps are whole, so tokens are not those of the catalog to the last one


def token_notes(configs: Sequence[TrainerConfig]) -> Iterator[str]:
    """A note for each trainer whose steps, batch and length make other tokens than its phase in the catalog.

    A smaller batch is a choice, and needs as many more steps for the same run; that is easily forgotten.
    """
    for config, begins, ends in steps_of(configs):
        planned = _phase_of(config)
        if planned is None or config.fit is None or ends <= begins:
            continue
        model, phase = planned
        sequences = config.fit.train_dataloader.batch_size * config.init.loop.grad_accum_steps
        steps, length = ends - begins, config.init.model.max_position_embeddings
        tokens = steps * sequences * length
        if math.isclose(tokens, phase.tokens, rel_tol=_ALIKE):
            continue
        wanted = round(phase.tokens / (sequences * length))
        yield (
            f"{steps:,} steps of {sequences:,} sequences of {length:,} tokens are {tokens / 1e9:,.4g} billion tokens; "
            f"{model.name}/{phase.name} has {phase.tokens / 1e9:,.4g} billion, which are {wanted:,} steps of this "
            "batch, in max_steps and in the schedules"
        )


def _phase_of(config: TrainerConfig) -> tuple[Model, Phase] | None:
    """The catalog's phase of this model, length, data and frozen tensors; None for a model that is not of the family.

    The two sizes of jais-family-30b have one model; their phases differ in length.
    """
    packed = config.fit is not None and config.fit.train_dataloader.use_vsl
    found = _traits(config.init.model, packed)
    return next(((m, p) for m in MODELS for p in m.phases if _planned_traits(m, p) == found), None)


def _traits(model: DecoderConfig, packed: bool) -> tuple[object, ...]:
    sizes = (model.hidden_size, model.num_hidden_layers, model.num_heads, model.filter_size, model.vocab_size)
    return (*sizes, model.max_position_embeddings, bool(model.frozen_parameters), packed)


def _planned_traits(model: Model, phase: Phase) -> tuple[object, ...]:
    a = model.architecture
    sizes = (a.hidden_size, a.layers, a.heads, a.filter_size, a.vocabulary)
    return (*(size.value for size in sizes), phase.context.value, bool(phase.frozen), phase.kind == "chat")
