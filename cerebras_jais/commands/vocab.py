"""The verbs of `vocab`."""

from __future__ import annotations

import click

from cerebras_jais.commandline import LazyGroup

VERBS = {
    "transfer": (
        "cerebras_jais.commands.vocab_transfer:transfer",
        "Give a model embeddings for new tokens, learned from a donor.",
    ),
}


@click.group(cls=LazyGroup, verbs=VERBS)
def vocab() -> None:
    """Adapt a model to another language: grow its tokenizer, and its embeddings with it."""
