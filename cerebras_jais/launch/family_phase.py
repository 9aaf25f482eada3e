"""The phase of the catalog that a trainer YAML runs, told by its model, its length and its data."""

from __future__ import annotations

from cerebras_jais.catalog.models import MODELS, last_step
from cerebras_jais.catalog.types import Model, Phase
from cerebras_jais.config.trainer import TrainerConfig
from cerebras_jais.model.config import DecoderConfig


def family_phase(config: TrainerConfig) -> tuple[Model, Phase] | None:
    """The catalog's phase of this model, length, data and frozen tensors; None for a model that is not of the family.

    The two sizes of jais-family-30b have one model; their phases differ in length.
    """
    packed = config.fit is not None and config.fit.train_dataloader.use_vsl
    found = _traits(config.init.model, packed)
    return next(((m, p) for m in MODELS for p in m.phases if _planned_traits(m, p) == found), None)


def step_before(phase: Phase) -> int:
    """The step that a phase of the catalog begins at."""
    return last_step(phase) - phase.steps.value


def _traits(model: DecoderConfig, packed: bool) -> tuple[object, ...]:
    sizes = (model.hidden_size, model.num_hidden_layers, model.num_heads, model.filter_size, model.vocab_size)
    return (*sizes, model.max_position_embeddings, bool(model.frozen_parameters), packed)


def _planned_traits(model: Model, phase: Phase) -> tuple[object, ...]:
    a = model.architecture
    sizes = (a.hidden_size, a.layers, a.heads, a.filter_size, a.vocabulary)
    return (*(size.value for size in sizes), phase.context.value, bool(phase.frozen), phase.kind == "chat")
