"""The release of the Cerebras Model Zoo that this project matches, and what that release calls the family's models.

Source: Model Zoo 2.10 registry/registry.yaml (names and classes) and trainer/callbacks/metadata.py (what a checkpoint
records).
"""

from __future__ import annotations

from collections.abc import Mapping

VERSION = "2.10.0"
"""Written into checkpoints and releases; also the version of `cerebras_pytorch` in them."""
RELEASE = VERSION.rpartition(".")[0]
"""Major and minor version: the Model Zoo's trainer refuses a checkpoint of another release."""

JAIS_FAMILY, JAIS_ADAPTED = "jais_family", "jais_adapted"
"""The names of the plugin's models."""

MODEL_CLASSES: Mapping[str, str] = {
    "jais": "cerebras.modelzoo.models.nlp.jais.model.JAISModel",
    "llama": "cerebras.modelzoo.models.nlp.llama.model.LlamaModel",
    "gpt2": "cerebras.modelzoo.models.nlp.gpt2.model.Gpt2Model",
    JAIS_FAMILY: "cerebras_jais.modelzoo.models.JaisFamilyModel",
    JAIS_ADAPTED: "cerebras_jais.modelzoo.models.JaisAdaptedModel",
}
"""`model.name` of a trainer YAML -> the class that the Model Zoo builds for it."""

STOCK_NAME_OF: Mapping[str, str] = {JAIS_FAMILY: "jais", JAIS_ADAPTED: "llama"}
"""A model of the plugin -> the Model Zoo's own model of the same tensors and data processors."""

PLUGIN_NAMES = tuple(STOCK_NAME_OF)
STOCK_NAMES = tuple(name for name in MODEL_CLASSES if name not in STOCK_NAME_OF)


def class_name(model_name: str) -> str:
    """The name of the class of one of these models, as the Model Zoo's trainer records it in a checkpoint."""
    return MODEL_CLASSES[model_name].rpartition(".")[2]


def is_of_this_release(version: object) -> bool:
    """Whether a version, such as that recorded in a checkpoint, is one of this release."""
    return str(version).split(".")[:2] == RELEASE.split(".")
