"""Whether a run of one of the family's models sees as many tokens as the catalog has for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cerebras_jais.launch.family_phase import family_phase
from cerebras_jais.launch.phases import Phase

_ALIKE = 0.001  # steps are whole, so tokens are not those of the catalog to the last one


def token_notes(phases: Sequence[Phase]) -> Iterator[str]:
    """A note for each phase whose steps, batch and length make other tokens than that of the catalog.

    A smaller batch is a choice, and needs as many more steps for the same run; that is easily forgotten.
    """
    for launched in phases:
        config, begins, ends = launched.config, launched.begins, launched.ends
        planned = family_phase(config)
        if planned is None or config.fit is None or ends is None or ends <= begins:
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
