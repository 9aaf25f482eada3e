"""`checkpoint convert` of cszoo for the family's models, as this project's own `checkpoint-convert` command.

The Model Zoo's converter does not support release 2.10 and refuses every checkpoint of it. The command is run as
one: nothing in this package imports the converter.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo_version import STOCK_NAME_OF

CONVERTED_HERE = frozenset({*STOCK_NAME_OF, *STOCK_NAME_OF.values()})


def convert(words: Sequence[str]) -> int | None:
    """`checkpoint convert` of a model of the family, as the `checkpoint-convert` command; None: not one of ours."""
    name = "cerebras-jais zoo checkpoint convert"
    chooser = argparse.ArgumentParser(prog=name, add_help=False)
    chooser.add_argument("--model")
    chosen, _ = chooser.parse_known_args(words)
    if "-h" in words or "--help" in words or chosen.model not in CONVERTED_HERE:
        return None
    parser = argparse.ArgumentParser(prog=name, add_help=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--src-fmt", required=True)
    parser.add_argument("--tgt-fmt", required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--hf-shard-size")
    for flag in ("--export-safetensors", "--drop-unmatched-keys", "--no-progress-bar", "--debug"):
        parser.add_argument(flag, action="store_true")
    args = parser.parse_args(words)
    command = converter_command(args)
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)  # as the Model Zoo's converter does
    print(f"converting with: {' '.join(command)}", file=sys.stderr)
    return subprocess.run([sys.executable, "-m", "checkpoint_convert.cli", *command[1:]], check=False).returncode


def converter_command(args: argparse.Namespace) -> list[str]:
    """The `checkpoint-convert` command line that does what `cszoo checkpoint convert` was asked.

    Raises UserError for a pair of formats that it does not convert between.
    """
    folder = args.output_dir or args.checkpoint.parent
    source, target = args.src_fmt.lower(), args.tgt_fmt.lower()
    if source.startswith("cs") and target == "hf":
        command = ["checkpoint-convert", "to-hf", str(args.checkpoint), "--output", str(folder / "hf")]
        command += ["--config", str(args.config)] if args.config else []
        return command + (["--max-shard-size", args.hf_shard_size] if args.hf_shard_size else [])
    if source == "hf" and target.startswith("cs"):
        release = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
        if args.config and args.config.resolve() != (release / "config.json").resolve():
            raise UserError(f"{args.config}: a release is converted by its own config.json; put yours at {release}")
        return ["checkpoint-convert", "to-cerebras", str(release), "--output", str(folder / f"{release.name}.mdl")]
    raise UserError(
        f"from {args.src_fmt} to {args.tgt_fmt}: converted are cs-auto or cs-2.x to hf, and hf to cs-current; tensors "
        "of one Cerebras release to another are the same since 2.1, and the file needs no conversion"
    )
