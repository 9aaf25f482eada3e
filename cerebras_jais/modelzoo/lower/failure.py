"""What the Cerebras software raises while it lowers, as a problem at a key of the config, with the module of the model.

Source of the phrases: cerebras.pytorch 2.10, backend/ltc_backend.py and lib/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cerebras_jais.config.trainer import keys_of
from cerebras_jais.errors import Keys, Problem

_LONGEST = 300  # characters of a message that the software gives
# A part of a module's name, and the key of `init.model` that decides what is in the module.
_KEYS_OF_MODULES = (
    ("position_embed", "position_embedding_type"),
    ("embedding", "vocab_size"),
    ("lm_head", "vocab_size"),
    ("self_attn", "num_heads"),
    ("norm", "layer_norm_epsilon"),
    ("ln_f", "layer_norm_epsilon"),
    ("ffn", "nonlinearity"),
    ("loss", "loss_scaling"),
)
# A part of the path of the source that raised it, and the key that it serves.
_KEYS_OF_SOURCES: Sequence[tuple[str, Keys]] = (
    ("/cerebras/pytorch/optim/", ("init", "optimizer")),
    ("/cerebras/pytorch/amp/", ("init", "precision")),
    ("/trainer/callbacks/precision.py", ("init", "precision")),
    ("/cerebras/modelzoo/data/", ("fit", "train_dataloader")),
    ("/cerebras/pytorch/utils/data/", ("fit", "train_dataloader")),
    ("/trainer/callbacks/", ("init", "callbacks")),
)
# What the software says, and what it means and what to do.
_EXPLAINED = (
    (
        "number of CS devices",
        ("init", "backend", "cluster_config", "num_csx"),
        "the batch has fewer samples than there are CS systems; raise batch_size, or lower num_csx",
    ),
)


def problem_of(failure: Mapping[str, Any], trainer: Mapping[str, Any]) -> Problem:
    """The problem that a failure means, its keys below `trainer`.

    Args:
        failure: as `child.describe_failure` gives it.
        trainer: the mapping under `trainer:` that was lowered.
    """
    message = failure["message"]
    short = message if len(message) <= _LONGEST else f"{message[:_LONGEST]}..."
    for phrase, keys, meaning in _EXPLAINED:
        if phrase in message:
            return Problem(keys, meaning)
    if failure["location"]:
        return Problem(keys_of(failure["location"], trainer), f"the Model Zoo says: {short}")
    module = failure["module"]
    if module is not None:
        key = next((key for part, key in _KEYS_OF_MODULES if part in module), "name")
        return Problem(("init", "model", key), f"the module {module} cannot be lowered: {failure['kind']}: {short}")
    for source in failure["sources"]:
        for part, keys in _KEYS_OF_SOURCES:
            if part in source:
                return Problem(keys, f"cannot be lowered: {failure['kind']}: {short}")
    return Problem(("init", "model", "name"), f"cannot be lowered: {failure['kind']}: {short}")
