"""The state that written_by_cerebras.mdl holds, and how that file was made.

    python -m tests.cerebras_jais.checkpoint.written_by_cerebras FILE     (with cerebras_pytorch 2.10)

writes it anew with `cerebras.pytorch.save`. The file is kept beside this module, so that reading what Cerebras itself
wrote is tested also where cerebras_pytorch is not installed.
"""

import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("written_by_cerebras.mdl")

# Flat names of the tensors: torch's name of the type, and the values row by row.
TENSORS: dict[str, tuple[str, Any]] = {
    "model.model.embedding.weight": ("float32", [[0.5, -1.5, 2.25], [3.0, -0.0, 1e-30]]),
    "model.model.lm_head.weight": ("float32", [[0.5, -1.5, 2.25], [3.0, -0.0, 1e-30]]),
    "model.half": ("float16", [1.5, 65504.0]),
    "model.brain": ("bfloat16", [[1.0, -3.140625], [1e30, 0.0]]),
    "model.long": ("int64", [1 << 40, -1]),
    "model.int": ("int32", [7, -8]),
    "model.byte": ("uint8", [0, 255]),
    "model.bool": ("bool", [True, False, True]),
    "model.scalar": ("float32", 0.75),
    "model.none": ("float32", []),
    "optimizer.state.0.exp_avg": ("float32", [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
    "optimizer.state.1.beta1_power": ("float32", 0.5),
    "constant": ("bfloat16", [1.5, 1.5]),
}


def state(torch: Any, constant: Any) -> dict[str, Any]:
    """Build the nested state out of torch tensors and `constant(shape, dtype, value)`."""
    tensors = {key: torch.tensor(values, dtype=getattr(torch, name)) for key, (name, values) in TENSORS.items()}
    embedding = tensors["model.model.embedding.weight"]
    model = OrderedDict((key.removeprefix("model."), t) for key, t in tensors.items() if key.startswith("model."))
    model["model.lm_head.weight"] = embedding
    return {
        "model": model,
        "optimizer": {
            "state": {
                0: {"exp_avg": tensors["optimizer.state.0.exp_avg"]},
                1: {"beta1_power": tensors["optimizer.state.1.beta1_power"]},
            },
            "param_groups": [
                {"lr": 0.1, "betas": (0.9, 0.95), "params": [0, 1], "name": "ش", "none": None, "on": True}
            ],
        },
        "schedulers": [],
        "global_step": 1,
        "constant": constant((2,), torch.bfloat16, 1.5),
        "pickled": {"of": complex(1, 2)},
        "__metadata__": [{"version": "2.10.0", "params": {"trainer": {"init": {"seed": 1}}}}],
    }


def main(path: str) -> None:
    """Write the state with Cerebras' own writer."""
    import cerebras.pytorch as cstorch
    import torch
    from cerebras.pytorch.storage.serializers import DeferredFullTensor

    cstorch.save(state(torch, DeferredFullTensor), path)


if __name__ == "__main__":
    main(sys.argv[1])
