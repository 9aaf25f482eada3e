"""What a checkpoint or a release contains, from its headers; also for one that cannot be converted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cerebras_jais.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.errors import UserError
from checkpoint_convert.configs.convert import check_convertible, default_special_tokens, public_keys, to_config_json
from checkpoint_convert.formats.tensors import FileTensor
from checkpoint_convert.mapping.plan import make_plan
from checkpoint_convert.mapping.rules import architecture_of, tensor_count
from checkpoint_convert.open_model import Model, cerebras_tensors, opening, refuse_gguf, weights_of
from checkpoint_convert.verify.manifest import manifest_path, read_manifest

_SIZES = {
    "layers": "num_hidden_layers",
    "hidden size": "hidden_size",
    "filter size": "filter_size",
    "heads": "num_heads",
    "key-value heads": "num_kv_groups",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
}


def inspect(
    path: Path | str,
    *,
    config: Path | ConfigFile | None = None,
    allow_pickle: bool = False,
    descriptions: Descriptions | None = None,
) -> dict[str, Any]:
    """What a .mdl file or a release contains, as JSON values: label -> value.

    Args:
        path: the file or directory.
        config: trainer YAML of a .mdl file; None takes the config stored in it.
        allow_pickle: whether weights in pickle files may be read.
        descriptions: a child that was started with the .mdl file among others; None starts one where it is needed.

    Raises:
        UserError: it cannot be opened, or has no tensors of a model.
    """
    path = Path(path)
    found: dict[str, Any] = {"path": str(path)}
    if path.is_dir():
        found["format"] = "Hugging Face release"
        found |= _of_tensors(weights_of(path, allow_pickle))
    else:
        refuse_gguf(path)
        with open_checkpoint(path, on_object="skip", descriptions=descriptions) as opened:
            found |= _of_checkpoint(opened)
            found |= _of_tensors(cerebras_tensors(opened))
    try:
        with opening(path, config=config, allow_pickle=allow_pickle, descriptions=descriptions) as model:
            found |= _of_model(model)
    except UserError as error:
        found["converts"] = f"no: {error}"
    try:
        manifest = read_manifest(manifest_path(path))
        found["manifest"] = f"{len(manifest.tensors)} tensors" if manifest else "none"
    except UserError as error:
        found["manifest"] = f"cannot be used: {error}"
    return found


def _of_checkpoint(opened: Checkpoint) -> dict[str, Any]:
    last = opened.metadata[-1] if opened.metadata else None
    about = last if isinstance(last, Mapping) else {}
    step = opened.tree.get("global_step") if isinstance(opened.tree, Mapping) else None
    if isinstance(step, StoredTensor) and not step.shape:
        step = step.read().item()
    return {
        "format": f"Cerebras checkpoint, format {opened.version}",
        "release": about.get("version") or "not stated",
        "model class": about.get("model_name") or "not stated",
        "training step": step if isinstance(step, int) else "not stated",
        "state": ", ".join(str(key) for key in opened.tree) if isinstance(opened.tree, Mapping) else "",
    }


def _of_tensors(tensors: Mapping[str, StoredTensor | FileTensor]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    for tensor in tensors.values():
        kinds[tensor.dtype] += math.prod(tensor.shape)
    links = [name for name, tensor in tensors.items() if getattr(tensor, "linked_to", None)]
    return {
        "names": len(tensors),
        "bytes": sum(tensor.nbytes for tensor in tensors.values() if not getattr(tensor, "linked_to", None)),
        "element types": {dtype: f"{count:,} values" for dtype, count in kinds.most_common()},
        "links": ", ".join(links) or "none",
    }


def _of_model(model: Model) -> dict[str, Any]:
    config = model.config
    keys = public_keys(config)
    found: dict[str, Any] = {"model": architecture_of(config).transformers_class, "tensors": tensor_count(config)}
    found |= {label: getattr(config, key) for label, key in _SIZES.items()}
    found["head"] = "tied to the embedding" if config.share_embedding_weights else "separate"
    if model.files:
        found["files"] = len(model.files)
    mup = {key: value for key, value in keys.items() if key.startswith("mup_")}
    if mup:
        found["muP"] = mup
    found["position scaling"] = config.pos_scaling_factor
    try:
        if model.side == "cerebras":
            check_convertible(config)
        plan = make_plan(config, model.side, model.tensors)
        found["parameters"] = plan.parameters
        if model.side == "cerebras":
            to_config_json(model.section, plan.dtypes[0], default_special_tokens(config))
        found["converts"] = "yes"
    except UserError as error:
        found["converts"] = f"no: {error}"
    if model.notes:
        found["notes"] = list(model.notes)
    return found
