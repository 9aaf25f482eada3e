"""AdamW with the update of cerebras.pytorch's AdamW, by PyTorch's fused kernel, and its state in a checkpoint.

The update (cerebras.pytorch optim/AdamBase.py), with c1 = 1 - beta1^t and c2 = 1 - beta2^t at step t, from 1:

    p <- p - lr (m / (sqrt(v) + eps) * sqrt(c2) / c1 + wd p)

PyTorch divides v by c2 under the root, so eps / sqrt(c2) in the place of eps gives the same update. Without bias
correction lr is also replaced by lr c1 / sqrt(c2), and wd by wd sqrt(c2) / c1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerebras_jais.checkpoint import read_number
from cerebras_jais.optimizer.groups import OptimizerError, ParameterGroup
from cerebras_jais.ranges import SHARE


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW whose groups hold `lr`, `eps` and `weight_decay` as cerebras.pytorch defines them.

    All parameters have taken the same number of steps. `fused` is PyTorch's: one kernel for all parameters of a group.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], *, correct_bias: bool = True, fused: bool = True, **defaults: Any
    ):
        self.correct_bias = correct_bias
        self.steps_taken = 0
        super().__init__([dict(group) for group in groups], fused=fused or None, **defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update the parameters by their gradients."""
        t = self.steps_taken + 1
        original = [(group["lr"], group["eps"], group["weight_decay"]) for group in self.param_groups]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            c1, root_c2 = 1 - beta1**t, math.sqrt(1 - beta2**t)
            group["eps"] /= root_c2
            if not self.correct_bias:
                group["lr"] *= c1 / root_c2
                group["weight_decay"] *= root_c2 / c1
        try:
            result = super().step(closure)
        finally:
            for group, (lr, eps, weight_decay) in zip(self.param_groups, original, strict=True):
                group["lr"], group["eps"], group["weight_decay"] = lr, eps, weight_decay
        self.steps_taken = t
        return result


def build_adamw(
    groups: Sequence[ParameterGroup],
    parameters: Mapping[str, Tensor],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    correct_bias: bool,
    fused: bool = True,
) -> AdamW:
    """The optimizer over `groups`; `parameters` gives the tensors by name (see `groups.named_tensors`)."""
    settings = [
        {"params": [parameters[name] for name in group.names], "weight_decay": group.weight_decay} for group in groups
    ]
    return AdamW(settings, lr=learning_rate, betas=tuple(betas), eps=eps, correct_bias=correct_bias, fused=fused)


def optimizer_state(
    optimizer: AdamW,
    groups: Sequence[ParameterGroup],
    learning_rates: Sequence[float],
    *,
    scheduled: bool,
    to_array: Callable[[Tensor], Any],
) -> dict[str, Any]:
    """The checkpoint's `optimizer` entry, as cerebras.pytorch's AdamW.state_dict() gives it.

    Args:
        groups: as given to `build_adamw`.
        learning_rates: of the next step, one per group; 0-d float32 arrays in the file where a schedule made them.
        to_array: tensor to something that save_checkpoint takes.
    """
    powers = _powers(optimizer)
    state: dict[int, Any] = {}
    saved_groups = []
    for group, own, lr in zip(groups, optimizer.param_groups, learning_rates, strict=True):
        first = len(state)
        for parameter in own["params"]:
            moments = optimizer.state.get(parameter, {})
            entry = {
                name: to_array(moments[name] if name in moments else torch.zeros_like(parameter))
                for name in ("exp_avg", "exp_avg_sq")
            }
            if optimizer.correct_bias:
                entry |= {"beta1_power": np.asarray(powers[0]), "beta2_power": np.asarray(powers[1])}
            state[len(state)] = entry
        saved: dict[str, Any] = {"weight_decay": group.weight_decay}
        if group.adjust_learning_rate is not None:
            saved["adjust_learning_rate"] = group.adjust_learning_rate
        if group.tags:
            saved["tags"] = set(group.tags)
        saved_groups.append(
            saved
            | {
                "lr": np.asarray(np.float32(lr)) if scheduled else float(lr),
                "betas": tuple(own["betas"]),
                "eps": own["eps"],
                "l2_regularization_rate": 0.0,
                "correct_bias": optimizer.correct_bias,
                "amsgrad": False,
                "params": list(range(first, len(state))),
            }
        )
    return {"state": state, "param_groups": saved_groups}


def _powers(optimizer: AdamW) -> tuple[np.float32, np.float32]:
    beta1, beta2 = optimizer.param_groups[0]["betas"]
    t = optimizer.steps_taken + 1
    return np.float32(beta1**t), np.float32(beta2**t)


def load_optimizer_state(
    optimizer: AdamW,
    groups: Sequence[ParameterGroup],
    saved: Mapping[str, Any],
    global_step: int,
    *,
    source: str,
    load: Callable[[Any, Tensor], Tensor],
) -> None:
    """Load moments and step count from a checkpoint's `optimizer` entry.

    Args:
        global_step: the checkpoint's, used where the powers of beta do not tell the step.
        source: the file, for messages.
        load: reads a tensor of the checkpoint, and gives it the device, dtype and sharding of its parameter.

    Raises OptimizerError when the groups differ: another muP base, other weight decay exclusions, a frozen part.
    """
    remedy = "use the YAML it was trained with, or load the weights alone (LoadCheckpointStates: model)"
    try:
        saved_groups = [[int(i) for i in group["params"]] for group in saved["param_groups"]]
        entries = {int(index): entry for index, entry in saved["state"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise OptimizerError(f"{source}: its optimizer state is not that of a Cerebras AdamW; {remedy}") from None
    sizes, wanted = [len(g) for g in saved_groups], [len(g.names) for g in groups]
    if sizes != wanted:
        raise OptimizerError(
            f"{source}: its optimizer has groups of {sizes} parameters, this YAML makes groups of {wanted}; {remedy}"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [index for group in saved_groups for index in group]
    names = [name for group in groups for name in group.names]
    steps = global_step
    for index, name, parameter in zip(numbers, names, parameters, strict=True):
        entry = entries.get(index)
        if entry is None or "exp_avg" not in entry or "exp_avg_sq" not in entry:
            raise OptimizerError(f"{source}: its optimizer state lacks the moments of {name}; {remedy}")
        for key in ("exp_avg", "exp_avg_sq"):
            if tuple(entry[key].shape) != tuple(parameter.shape):
                raise OptimizerError(
                    f"{source}: optimizer state {key} of {name} is {list(entry[key].shape)}, "
                    f"the parameter {list(parameter.shape)}; {remedy}"
                )
        if index == numbers[0]:
            steps = _steps_from_powers(entry, optimizer.param_groups[0]["betas"], global_step, source)
        step = torch.tensor(float(steps), device=parameter.device if optimizer.param_groups[0]["fused"] else "cpu")
        optimizer.state[parameter] = {
            "step": step,
            "exp_avg": load(entry["exp_avg"], parameter),
            "exp_avg_sq": load(entry["exp_avg_sq"], parameter),
        }
    optimizer.steps_taken = steps


def _steps_from_powers(entry: Mapping[str, Any], betas: tuple[float, float], global_step: int, source: str) -> int:
    """Steps taken, from beta^(t + 1); the power of the beta nearer to 1 underflows last in float32."""
    known = [("beta2_power", betas[1]), ("beta1_power", betas[0])]
    for key, beta in sorted(known, key=lambda pair: -pair[1]):
        if key not in entry or not 0 < beta < 1:
            continue
        power = read_number(entry[key], SHARE, f"optimizer.state.{key}", source)
        if not np.finfo(np.float32).tiny <= power < 1:
            continue
        estimate = math.log(power) / math.log(beta) - 1
        # The power is a product in float32: where its error allows the file's own step, that step is right.
        error = 0.5 + (estimate + 1) * float(np.finfo(np.float32).eps) / -math.log(beta)
        return global_step if abs(estimate - global_step) <= error else max(0, round(estimate))
    return global_step
