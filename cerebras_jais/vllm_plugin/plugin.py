"""Registering Jais with vLLM, which calls `register` in each of its processes (entry point `vllm.general_plugins`)."""

from __future__ import annotations

ARCHITECTURE = "JAISLMHeadModel"
MODEL = "cerebras_jais.vllm_plugin.model:JaisForCausalLM"


def register() -> None:
    """Make Jais a model of vLLM, and its config one of transformers; a second call changes nothing.

    The model is named and not imported: an import would initialise CUDA before vLLM starts its workers. With the config
    known, vLLM does not ask for the code inside a release, and `trust_remote_code` is not needed.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from checkpoint_convert.hf_code.configuration_jais import JAISConfig

    AutoConfig.register(JAISConfig.model_type, JAISConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, MODEL)
