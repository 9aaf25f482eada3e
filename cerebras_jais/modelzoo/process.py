"""Becoming `cszoo`: another process, not a function, for the sake of the processes that the Model Zoo spawns."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from typing import NoReturn

from cerebras_jais.errors import UserError


class ProgramMissing(UserError):
    """A program of the Cerebras software that is not on PATH."""


CIRH_OPT = "torch-cirh-opt"  # the program of cerebras_pytorch that lowers, which it looks for on PATH


def add_programs_to_path() -> None:
    """Put the programs of this Python's environment before others on PATH, as activating the environment would.

    cerebras_pytorch lowers with `torch-cirh-opt`. If that is not on PATH, it says "torch-to-cirh lowering failed".
    """
    scripts = sysconfig.get_path("scripts")
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if os.path.exists(os.path.join(scripts, CIRH_OPT)) and paths[:1] != [scripts]:
        os.environ["PATH"] = os.pathsep.join([scripts, *paths])


def require_cirh_opt() -> None:
    """Raise ProgramMissing where `torch-cirh-opt` is not on PATH."""
    if shutil.which(CIRH_OPT) is None:
        raise ProgramMissing(
            f"{CIRH_OPT} is not on PATH, and cerebras_pytorch lowers with it; activate the environment of "
            f"{sys.executable}, or install cerebras_pytorch again"
        )


def become_zoo(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by one whose main module is `modelzoo.zoo`, which spawned processes import again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "cerebras_jais.modelzoo.zoo", *arguments])
