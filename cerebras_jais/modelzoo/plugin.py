"""Registering the plugin with the Model Zoo, once per process; importing this module does it.

The Model Zoo starts processes of its own (autorestart, compiles ahead of need) with `spawn`, which imports the main
module anew and nothing else. So registration is an effect of import, and `zoo.py`, the main module, imports this.
"""

from __future__ import annotations

from cerebras_jais.modelzoo.installed import do_without_code_evaluation, require_modelzoo

# Our class for each name, and the Model Zoo's own model whose data processors it takes.
MODELS = {
    "jais_family": ("cerebras_jais.modelzoo.models.JaisFamilyModel", "jais"),
    "jais_adapted": ("cerebras_jais.modelzoo.models.JaisAdaptedModel", "llama"),
}


def register() -> None:
    """Make `jais_family` and `jais_adapted` models of the Model Zoo; a second call does nothing.

    Raises ModelZooMissing where it is not installed.
    """
    require_modelzoo()
    do_without_code_evaluation()
    from cerebras.modelzoo.registry import registry

    for name, (path, stock) in MODELS.items():
        if name not in registry.get_model_names():
            processors = registry.get_model(stock).data_processor_paths
            registry.register_model(name=name, path=path, data_processor_paths=processors)


register()
