"""Registering the plugin with the Model Zoo, once per process; importing this module does it.

The Model Zoo starts processes of its own (autorestart, compiles ahead of need) with `spawn`, which imports the main
module again and nothing else. So registration is an effect of import, and `zoo.py`, the main module, imports this.
"""

from __future__ import annotations

from cerebras_jais.modelzoo.installed import do_without_code_evaluation, require_modelzoo
from cerebras_jais.modelzoo_version import MODEL_CLASSES, STOCK_NAME_OF


def register() -> None:
    """Make `jais_family` and `jais_adapted` models of the Model Zoo; a second call does nothing.

    Raises ModelZooMissing where it is not installed.
    """
    require_modelzoo()
    do_without_code_evaluation()
    from cerebras.modelzoo.registry import registry

    for name, stock in STOCK_NAME_OF.items():
        if name not in registry.get_model_names():
            processors = registry.get_model(stock).data_processor_paths
            registry.register_model(name=name, path=MODEL_CLASSES[name], data_processor_paths=processors)


register()
