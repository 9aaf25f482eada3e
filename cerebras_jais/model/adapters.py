"""LoRA adapters in a checkpoint: told by the names of their tensors, so that they are not taken for foreign ones."""

from __future__ import annotations

import re
from collections.abc import Iterable

# `lora_A` and `lora_B` of the Model Zoo's common/utils/model/lora.py, `lora_A.default.weight` of peft.
_ADAPTER = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)(\.|$)")

FOLD_THEM = (
    "fold the LoRA adapters into the weights first: W + alpha / r * B @ A for each (the Model Zoo has "
    "tools/fold_lora_checkpoint.py, peft has merge_and_unload)"
)


def adapters_in(names: Iterable[str]) -> list[str]:
    """Those of the names that belong to LoRA adapters, in order."""
    return [name for name in names if _ADAPTER.search(name)]
