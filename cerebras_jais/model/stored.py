"""The tensors of a model in a checkpoint, by their names in release 2.10 whatever the file calls them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cerebras_jais.checkpoint import Checkpoint, StoredTensor
from cerebras_jais.errors import UserError
from cerebras_jais.model.tensors import state_key

# Names of other releases of the Model Zoo, each in full: 2.0 kept the slopes of ALiBi outside the embedding layer.
_OTHER_NAMES = {state_key("relative_pe_helper.slopes"): state_key("embedding_layer.position_embed_helper.slopes")}
# `lora_A` and `lora_B` of the Model Zoo's common/utils/model/lora.py, `lora_A.default.weight` of peft.
_ADAPTER = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)")

FOLD_THEM = (
    "fold the LoRA adapters into the weights first: W + alpha / r * B @ A for each (the Model Zoo has "
    "tools/fold_lora_checkpoint.py, peft has merge_and_unload)"
)


class WeightsError(UserError):
    """Weights that do not fit the model they are loaded into."""


def stored_weights(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors of the model in a checkpoint, each by its name in release 2.10.

    Files of the Model Zoo's own converter leave out the leading `model.`, and earlier releases had other names. Of a
    tensor with two names either may be absent (`tensors.under_both_names`).

    Raises:
        WeightsError: the checkpoint holds no model, or something that is not a tensor among its tensors, or a tensor
            stored in a way that is not read.
    """
    for key in checkpoint.skipped_objects:
        if key.startswith("model."):
            reason = checkpoint.leaves[key].reason
            raise WeightsError(f"{checkpoint.path}: '{key}' is {reason}; save the model's tensors as plain tensors")
    model = checkpoint.tree.get("model") if isinstance(checkpoint.tree, Mapping) else None
    if not isinstance(model, Mapping) or not model:
        raise WeightsError(
            f"{checkpoint.path}: holds no model (no entry 'model' in its state); give a trainer's checkpoint"
        )
    found: dict[str, StoredTensor] = {}
    for key, leaf in model.items():
        if not isinstance(leaf, StoredTensor):
            raise WeightsError(f"{checkpoint.path}: model.{key} is not a tensor; save the model's tensors alone there")
        name = state_key(str(key))
        name = _OTHER_NAMES.get(name, name)
        if name in found:
            raise WeightsError(f"{checkpoint.path}: has {name} twice, under two names of one tensor; remove one")
        found[name] = leaf
    return found


def adapters_in(names: Iterable[str]) -> list[str]:
    """Those of the names that belong to LoRA adapters, in order."""
    return [name for name in names if _ADAPTER.search(name)]
