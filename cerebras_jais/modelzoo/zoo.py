"""`cszoo` with the plugin: run as `python -m cerebras_jais.modelzoo.zoo ARGS`, by `cerebras-jais zoo ARGS`.

This is the main module of its process on purpose: the Model Zoo's spawned processes import it anew, and so have the
plugin too. Three verbs differ from cszoo's: `fit` continues phases (`modelzoo.phases`), `checkpoint convert` of the
family's models goes through this project's converter, since the Model Zoo's own knows no release 2.10, and `lm_eval`
takes the plugin's names.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cerebras_jais.commandline import say_error
from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo import plugin
from cerebras_jais.modelzoo.connection import explained

CONVERTED_HERE = frozenset({*plugin.MODELS, "jais", "llama"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one cszoo command line; a UserError is one line on standard error and exit status 1."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:2] == ["checkpoint", "convert"]:
            status = _convert(words[2:])
            if status is not None:
                sys.exit(status)
        with explained():
            _cszoo(words)
    except UserError as error:
        say_error(error)
        sys.exit(1)


def _cszoo(words: Sequence[str]) -> None:
    from cerebras.modelzoo.cli.main import ModelZooCLI

    if words[:1] == ["lm_eval"]:
        from cerebras.modelzoo.trainer.extensions.eleuther.eval_harness_utils import SUPPORTED_MODELS

        SUPPORTED_MODELS.update(plugin.MODELS)
    theirs = ModelZooCLI.run_trainer
    ModelZooCLI.run_trainer = staticmethod(lambda args: _fit(args, theirs) if args.cmd == "fit" else theirs(args))
    sys.argv = ["cszoo", *words]
    ModelZooCLI()


def _fit(args: argparse.Namespace, theirs: Any) -> None:
    """`fit`: the Model Zoo's, but with phases continued."""
    from cerebras.modelzoo.cli.utils import _args_to_params

    from cerebras_jais.modelzoo.phases import run_fit, unpacked
    from cerebras_jais.recipes.schema import PLUGIN_NAMES, parse_trainer, read_trainer_yaml

    try:
        read_trainer_yaml(args.params)
    except UserError as error:
        # The Model Zoo trains more than this project's schema knows; then its own rules hold, and its own alone.
        file = Path(args.params)
        if not file.is_file() or any(f"name: {name}" in file.read_text(encoding="utf-8") for name in PLUGIN_NAMES):
            raise
        print(f"note: trained by the Model Zoo's own rules alone: {error}", file=sys.stderr)
        theirs(args)
        return
    given = {name for name in ("model_dir", "checkpoint_path") if name in args.seen_args}
    model_dir = args.model_dir if "model_dir" in given else None
    checkpoint = args.checkpoint_path if "checkpoint_path" in given else None
    args.seen_args = [name for name in args.seen_args if name not in given]
    params = _args_to_params(args)
    configs = [parse_trainer(dict(trainer)) for trainer in unpacked(params)]
    run_fit(params, configs, model_dir=model_dir, checkpoint=checkpoint)


def _convert(words: Sequence[str]) -> int | None:
    """`checkpoint convert` of a model of the family, as the `checkpoint-convert` command; None: not one of ours."""
    parser = argparse.ArgumentParser(prog="cerebras-jais zoo checkpoint convert", add_help=False)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--src-fmt", required=True)
    parser.add_argument("--tgt-fmt", required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--hf-shard-size")
    for flag in ("--export-safetensors", "--drop-unmatched-keys", "--no-progress-bar", "--debug"):
        parser.add_argument(flag, action="store_true")
    if "-h" in words or "--help" in words or not any(name in words for name in CONVERTED_HERE):
        return None
    args = parser.parse_args(words)
    command = converter_command(args)
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
        return ["checkpoint-convert", "to-cerebras", str(release), "--output", str(folder / f"{release.name}.mdl")]
    raise UserError(
        f"from {args.src_fmt} to {args.tgt_fmt}: converted are cs-auto or cs-2.x to hf, and hf to cs-current; tensors "
        "of one Cerebras release to another are the same since 2.1, and the file needs no conversion"
    )


if __name__ == "__main__":
    main()
