"""`cszoo` with the plugin: run as `python -m cerebras_jais.modelzoo.zoo ARGS`, by `cerebras-jais zoo ARGS`.

This is the main module of its process on purpose: the Model Zoo's spawned processes import it again, and so have the
plugin too. Three verbs differ from cszoo's: `fit` continues phases (`modelzoo.phases`), `checkpoint convert` of the
family's models goes through this project's converter, since the Model Zoo's own does not support release 2.10, and
`lm_eval` takes the plugin's names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import pydantic

from cerebras_jais.commandline import leave
from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo import plugin  # noqa: F401  # registers the plugin in this and in spawned processes
from cerebras_jais.modelzoo.connection import explained
from cerebras_jais.modelzoo.converting import convert
from cerebras_jais.modelzoo.process import add_programs_to_path
from cerebras_jais.modelzoo_version import PLUGIN_NAMES


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one cszoo command line and leave with an exit status."""
    add_programs_to_path()
    words = list(sys.argv[1:] if arguments is None else arguments)
    leave("cerebras-jais", lambda: _run(words))


def _run(words: Sequence[str]) -> int | None:
    status = convert(words[2:]) if words[:2] == ["checkpoint", "convert"] else None
    if status is None:
        with explained():
            _cszoo(words)
    return status


def _cszoo(words: Sequence[str]) -> None:
    from cerebras.modelzoo.cli.main import ModelZooCLI

    if words[:1] == ["lm_eval"]:
        from cerebras.modelzoo.trainer.extensions.eleuther.eval_harness_utils import SUPPORTED_MODELS

        SUPPORTED_MODELS.update(PLUGIN_NAMES)
    theirs = ModelZooCLI.run_trainer
    ModelZooCLI.run_trainer = staticmethod(lambda args: _fit(args, theirs) if args.cmd == "fit" else theirs(args))
    sys.argv = ["cszoo", *words]
    try:
        ModelZooCLI()
    except pydantic.ValidationError as error:
        told = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors(include_url=False)]
        raise UserError(f"the Model Zoo refuses it: {'; '.join(told)}") from error


def _fit(args: argparse.Namespace, theirs: Any) -> None:
    """`fit`: the Model Zoo's, but with phases continued."""
    from cerebras.modelzoo.cli.utils import _args_to_params

    from cerebras_jais.catalog.yaml_files import open_config
    from cerebras_jais.config.trainer import parse_trainer
    from cerebras_jais.launch.checks import notes_of, rate_notes
    from cerebras_jais.launch.start import plan_launch
    from cerebras_jais.modelzoo.phases import run_fit
    from cerebras_jais.modelzoo.reading import read_unless_alone
    from cerebras_jais.params import trainers_of

    read = read_unless_alone(open_config(args.params))
    if read is None:
        theirs(args)
        return
    given = {name for name in ("model_dir", "checkpoint_path") if name in args.seen_args}
    model_dir = args.model_dir if "model_dir" in given else None
    checkpoint = args.checkpoint_path if "checkpoint_path" in given else None
    args.seen_args = [name for name in args.seen_args if name not in given]
    params = _args_to_params(args)
    configs = [parse_trainer(trainer, at=at) for at, trainer in trainers_of(params)]
    launch = plan_launch(configs, model_dir=model_dir, checkpoint=checkpoint)
    for note in (*notes_of(read), *rate_notes(launch.phases)):
        print(f"note: {note}", file=sys.stderr)
    run_fit(params, launch)


if __name__ == "__main__":
    main()
