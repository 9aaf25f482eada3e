"""Becoming `cszoo`: another process, not a function, for the sake of the processes that the Model Zoo spawns."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from typing import NoReturn

CIRH_OPT = "torch-cirh-opt"  # the program of cerebras_pytorch that lowers, which it looks for on PATH


def add_programs_to_path() -> None:
    """Put the programs of this Python's environment before others on PATH, as activating the environment would.

    cerebras_pytorch lowers with `torch-cirh-opt`. If that is not on PATH, it says "torch-to-cirh lowering failed".
    """
    scripts = sysconfig.get_path("scripts")
    paths = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if os.path.exists(os.path.join(scripts, CIRH_OPT)) and paths[:1] != [scripts]:
        os.environ["PATH"] = os.pathsep.join([scripts, *paths])


def become_zoo(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by one whose main module is `modelzoo.zoo`, which spawned processes import again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "cerebras_jais.modelzoo.zoo", *arguments])
