"""Registering the plugin with the Model Zoo, once per process; whoever imports this has it registered.

The Model Zoo starts processes of its own (autorestart, compiles ahead of need) with `spawn`, which imports the main
module anew and nothing else. So registration is an effect of import, and `zoo.py`, the main module, imports this.
"""

from __future__ import annotations

import importlib.util
import sys
import types

from cerebras_jais.errors import UserError

MODELS = {
    "jais_family": "cerebras_jais.modelzoo.models.JaisFamilyModel",
    "jais_adapted": "cerebras_jais.modelzoo.models.JaisAdaptedModel",
}
_STOCK = {"jais_family": "jais", "jais_adapted": "llama"}


class ModelZooMissing(UserError):
    """The Model Zoo, or something it imports, is not installed."""


def register() -> None:
    """Make `jais_family` and `jais_adapted` models of the Model Zoo; a second call does nothing.

    Raises ModelZooMissing where it is not installed.
    """
    for package in ("cerebras.pytorch", "cerebras.modelzoo"):
        if not _installed(package):
            raise ModelZooMissing(
                f"{package} is not installed in {sys.prefix}; install cerebras_pytorch 2.10.0 and the Model Zoo "
                "2.10 (docs/launching.md says how), or train here with `cerebras-jais fit --backend cpu`"
            )
    _do_without_code_evaluation()
    from cerebras.modelzoo.registry import registry

    for name, path in MODELS.items():
        if name not in registry.get_model_names():
            processors = registry.get_model(_STOCK[name]).data_processor_paths
            registry.register_model(name=name, path=path, data_processor_paths=processors)
    from cerebras.modelzoo.trainer.extensions.eleuther.eval_harness_utils import SUPPORTED_MODELS

    SUPPORTED_MODELS.update(MODELS)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _do_without_code_evaluation() -> None:
    """The Model Zoo imports bigcode_eval at start, which is on no index; where it is absent its verb is too."""
    name = "cerebras.modelzoo.trainer.extensions.bigcode"
    if name in sys.modules or _installed("bigcode_eval"):
        return
    absent = types.ModuleType(name)
    absent.__path__ = []  # type: ignore[attr-defined]
    for symbol in ("BigCodeCLIArgs", "BigCodeEvalHarness"):
        setattr(absent, symbol, type(symbol, (), {}))
    sys.modules[name] = absent


register()
