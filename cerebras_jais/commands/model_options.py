"""The options of the verbs that open a model: which one, with what tokenizer, in what form, and where."""

from __future__ import annotations

from pathlib import Path

import click

MODEL = click.argument("path", metavar="MODEL", type=click.Path(path_type=Path))
TOKENIZER = click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder of the tokenizer. Default: the release's own."
)
CONFIG = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Trainer YAML of the model, where the checkpoint does not record it.",
)
ALLOW_PICKLE = click.option(
    "--allow-pickle", is_flag=True, help="Read a release's weights in pickle files too (.bin); nothing in them is run."
)

WEIGHTS = click.option(
    "--weights",
    type=click.Choice(["float32", "bfloat16", "int4"]),
    default="float32",
    show_default=True,
    help="Type of the matrices in memory. int4 is the quickest on a CPU and rounds: docs/chat.md says which when.",
)
DEVICE = click.option("--device", default="cpu", show_default=True, help="As torch names it, such as cuda.")
