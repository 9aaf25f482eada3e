"""What the Cerebras software raises while it lowers, as a problem at a key of the config, with the module of the model.

Source of the phrases: cerebras.pytorch 2.10, backend/ltc_backend.py and lib/cerebras_pytorch_lib.
"""

from __future__ import annotations

import re
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
    ("/layers/AttentionLayer", ("init", "model", "num_heads")),
    ("/layers/FeedForward", ("init", "model", "nonlinearity")),
    ("/layers/activations", ("init", "model", "nonlinearity")),
    ("/layers/Embedding", ("init", "model", "vocab_size")),
    ("/modelzoo/losses/", ("init", "model", "loss_scaling")),
    ("/cerebras/pytorch/optim/", ("init", "optimizer")),
    ("/cerebras/pytorch/amp/", ("init", "precision")),
    ("/trainer/callbacks/precision.py", ("init", "precision")),
    ("/cerebras/modelzoo/data/", ("fit", "train_dataloader")),
    ("/trainer/callbacks/", ("init", "callbacks")),
)
# What the software says, what it means, and what to do; in place of its own words.
_EXPLAINED: Sequence[tuple[str, str]] = (
    (
        "_local_scalar_dense|outside of a step closure",
        "the value of a tensor is wanted while the step is traced (a condition, .item(), .cpu(), print), and a step is "
        "traced once, without values; use torch.where, or a step closure to print",
    ),
    (
        "aten::nonzero|aten::masked_select|data-dependent",
        "a shape depends on values, and the shapes of a step are fixed; use torch.where, or multiply by the mask",
    ),
)
_UNSUPPORTED = re.compile(r"does not yet support `(\S+?)\(")
_FEWER_SAMPLES = "number of CS devices"
NO_MEMORY = "not enough memory to lower it; the largest model of the family takes 3 GB, so end other programs"
_OF_MEMORY = re.compile(
    "MemoryError|bad_alloc|allocate memory|failed to map segment|not enough memory|out of memory|can't start new thread"
)
_CIRH_OPT_FAILED = "torch-to-cirh lowering failed"
_BACKEND: Keys = ("init", "backend", "cluster_config", "num_csx")
# What follows is for who wrote the software: addresses, files that are removed, advice about other compilers.
_END_OF_MESSAGE = re.compile(r"\s*(Stack Trace:|Check graph dump|You may have run into this|To re-run:).*")


def problem_of(failure: Mapping[str, Any], trainer: Mapping[str, Any], log: str = "") -> Problem:
    """The problem that a failure means, its keys below `trainer`; none where no key decides it.

    Args:
        failure: as `child.describe_failure` gives it.
        trainer: the mapping under `trainer:` that was lowered.
        log: what the process printed.
    """
    if is_of_memory(f"{failure['kind']} {failure['message']}"):
        return Problem((), NO_MEMORY)
    if _CIRH_OPT_FAILED in failure["message"]:
        said = next((line for line in log.splitlines() if "error:" in line), "it said nothing")
        return Problem((), f"torch-cirh-opt failed, as it does too where memory or disk run out: {_short(said)}")
    if failure["location"]:
        return Problem(keys_of(failure["location"], trainer), f"the Model Zoo says: {_short(failure['message'])}")
    if failure["for_users"]:
        return Problem((), failure["message"])
    if _FEWER_SAMPLES in failure["message"]:
        return Problem(_BACKEND, "a step has fewer samples than there are CS systems; raise batch_size, or lower this")
    module = failure["module"]
    keys = _keys_of(module, failure["sources"])
    subject = f"the module {module} cannot be lowered" if module else "cannot be lowered"
    return Problem(keys, f"{subject}: {_in_words(failure)}")


def is_of_memory(text: str) -> bool:
    """Whether a text, as a process that runs out of memory leaves it, says so."""
    return _OF_MEMORY.search(text) is not None


def _in_words(failure: Mapping[str, Any]) -> str:
    message = failure["message"]
    for phrases, meaning in _EXPLAINED:
        if any(phrase in message for phrase in phrases.split("|")):
            return meaning
    unsupported = _UNSUPPORTED.search(message)
    if unsupported is not None:
        return f"CS systems have no operation {unsupported[1]}; write it in operations that they have"
    return f"{failure['kind']}: {_short(message)}"


def _keys_of(module: str | None, sources: Sequence[str]) -> Keys:
    """The key that decides what is in a module, or that the source which raised an exception serves."""
    if module is not None:
        return ("init", "model", next((key for part, key in _KEYS_OF_MODULES if part in module), "name"))
    for source in sources:
        for part, keys in _KEYS_OF_SOURCES:
            if part in source:
                return keys
    return ("init", "model", "name")


def _short(message: str) -> str:
    text = _END_OF_MESSAGE.sub("", message)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
