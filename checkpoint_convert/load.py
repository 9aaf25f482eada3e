"""A release loaded as a model of the reference path, without the release's code and without a temporary file.

The weights pass through the steps of a conversion (mapping/plan.py), so a release is read as `to-cerebras` reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.load import check_finite, empty_model
from cerebras_jais.model.tensors import state_key
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.mapping.operations import forward
from checkpoint_convert.mapping.plan import make_plan
from checkpoint_convert.open_model import opening


def load_release(path: str | Path, *, allow_pickle: bool = False, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """The model of a Hugging Face release in eval mode, on the CPU.

    Args:
        path: directory with config.json and weights.
        allow_pickle: whether weights in pickle files may be read; no code in them is run.
        dtype: of the weights, to which stored ones are rounded as they are read; ALiBi's slopes are float32.

    Raises:
        UserError: the release cannot be read, is not a model of the family, does not have the tensors of its config, or
            has a tensor with NaN or infinity.
    """
    with opening(Path(path), allow_pickle=allow_pickle) as release:
        try:
            plan = make_plan(release.config, release.side, release.tensors, link_ties=True)
        except ConversionError as error:
            raise ConversionError(f"{release.path}: {error}") from error
        model = empty_model(release.config, dtype)
        targets = model.state_dict()
        with torch.no_grad():
            for step in plan.steps:
                arrays = forward(step.operation, [source.read() for source in step.inputs])
                for name, array in zip(step.outputs, arrays, strict=True):
                    values = torch.from_numpy(array.astype(np.float32, copy=False))
                    check_finite(values, release.path, ", ".join(step.rule.names(release.side)))
                    target = targets[state_key(name)]
                    if step.writes:
                        target.copy_(values)
                    elif not torch.equal(
                        target, values.to(target.dtype)
                    ):  # a second name of a tensor that is filled already
                        raise ConversionError(
                            f"{release.path}: {', '.join(step.rule.names(release.side))} differs from the "
                            "embedding, but config.json ties them; set tie_word_embeddings: false"
                        )
    return model.eval()
