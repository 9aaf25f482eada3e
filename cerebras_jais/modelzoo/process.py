"""Becoming `cszoo`: another process, not a function, for the sake of the processes that the Model Zoo spawns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def become_zoo(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by one whose main module is `modelzoo.zoo`, which spawned processes import again."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "cerebras_jais.modelzoo.zoo", *arguments])
