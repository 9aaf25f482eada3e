"""Whether the Model Zoo is here, and what is done about the one package that it imports and no index has."""

from __future__ import annotations

import importlib.util
import sys
import types

from cerebras_jais.errors import UserError
from cerebras_jais.modelzoo_version import RELEASE, VERSION


class ModelZooMissing(UserError):
    """The Model Zoo is not installed."""


def require_modelzoo() -> None:
    """Raise ModelZooMissing where cerebras_pytorch or the Model Zoo is not installed; imports neither."""
    for package in ("cerebras.pytorch", "cerebras.modelzoo"):
        if not _installed(package):
            raise ModelZooMissing(
                f"{package} is not installed in {sys.prefix}; install cerebras_pytorch {VERSION} and the Model Zoo "
                f"{RELEASE} as docs/launching.md says, or train here with `cerebras-jais fit --backend cpu`"
            )
    if not _installed("rich"):
        raise ModelZooMissing(
            f"rich is not installed in {sys.prefix}; the Model Zoo {RELEASE} imports it: pip install rich"
        )


def modelzoo_is_installed() -> bool:
    """Whether `require_modelzoo` would pass."""
    try:
        require_modelzoo()
    except ModelZooMissing:
        return False
    return True


def do_without_code_evaluation() -> None:
    """Put an empty module where the Model Zoo imports bigcode_eval, if that is absent; its verb is absent then too."""
    name = "cerebras.modelzoo.trainer.extensions.bigcode"
    if name in sys.modules or _installed("bigcode_eval"):
        return
    absent = types.ModuleType(name)
    for symbol in ("BigCodeCLIArgs", "BigCodeEvalHarness"):
        setattr(absent, symbol, type(symbol, (), {}))
    sys.modules[name] = absent


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
