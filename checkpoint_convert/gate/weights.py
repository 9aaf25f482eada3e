"""Checks of a release's weights: headers against the config, values, digests against the manifest."""

from __future__ import annotations

import numpy as np

from checkpoint_convert.errors import first_few
from checkpoint_convert.formats.release_directory import CONFIG, MANIFEST
from checkpoint_convert.formats.tensors import Tensor
from checkpoint_convert.gate.report import require_none
from checkpoint_convert.gate.subject import Subject
from checkpoint_convert.mapping.plan import same_values
from checkpoint_convert.mapping.rules import grouped, ties
from checkpoint_convert.verify.compare import check_manifest
from checkpoint_convert.verify.manifest import manifest_path

_BLOCK_VALUES = 1 << 24


def check_weights(subject: Subject) -> str:
    """Every tensor of the config is there with its shape, in the type that config.json names, slopes in float32."""
    with subject.opened() as (model, plan):
        problems = []
        slopes = [step for step in plan.steps if step.rule.holds_slopes]
        for step in slopes:
            if step.inputs[0].dtype != "float32":
                problems.append(
                    f"{step.rule.hugging_face[0]} is {step.inputs[0].dtype}; ALiBi's slopes must be float32, since "
                    "rounded ones move every position: convert again"
                )
        stated = subject.config_json.get("torch_dtype", subject.config_json.get("dtype"))
        if stated != plan.dtypes[0]:
            problems.append(
                f"{CONFIG} has torch_dtype {stated!r}, but the weights are {plan.dtypes[0]}, in which they must load; "
                f"set it to {plan.dtypes[0]!r}"
            )
        for second, first in ties(model.config, model.side).items():
            if not same_values(model.tensors[second], model.tensors[first]):
                problems.append(f"{second} differs from {first}, but is tied to it; set tie_word_embeddings: false")
        require_none([f"{subject.path}: {problem}" for problem in problems])
        return f"{len(model.tensors)} tensors, {plan.parameters:,} parameters, {', '.join(plan.dtypes)}"


def check_values(subject: Subject) -> str:
    """No weight is NaN or infinite, and every tensor has its digest of the manifest."""
    with subject.opened() as (model, _):
        bad = [name for name, tensor in model.tensors.items() if not _is_finite(tensor)]
    require_none([f"{subject.path}: {name}: has NaN or infinity; convert again" for name in grouped(bad)])
    if not manifest_path(subject.path).exists():
        return f"all finite; no {MANIFEST}, so no digests"
    result = check_manifest(subject.path, allow_pickle=subject.allow_pickle)
    reasons = dict.fromkeys(result.differences.values())
    problems = [
        f"{subject.path}: {first_few(grouped(name for name, what in result.differences.items() if what == why))}: {why}"
        f"; take the weights of the conversion again"
        for why in reasons
    ]
    require_none(problems)
    return f"all finite; {result.identical} digests as {MANIFEST} lists them"


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are numbers; read in blocks of rows."""
    if not tensor.shape or not tensor.nbytes:
        return bool(np.isfinite(tensor.read()).all())
    rows = max(1, _BLOCK_VALUES * tensor.shape[0] // tensor.nbytes)
    starts = range(0, tensor.shape[0], rows)
    return all(np.isfinite(tensor.read_rows(s, min(s + rows, tensor.shape[0]))).all() for s in starts)
