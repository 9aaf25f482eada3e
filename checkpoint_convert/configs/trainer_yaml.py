"""The trainer YAML: the `model:` section out of one, and one that continues training of a converted checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cerebras_jais.config.yaml_file import ConfigError, ConfigFile
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.params import section_at, trainers_of
from checkpoint_convert.configs.legacy import migrate_keys
from checkpoint_convert.configs.mup import migrate_mup
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.mapping.rules import JAIS, architecture_of

_HEAD = """\
# Continues training of {name}. Written by checkpoint-convert; `model:` is from the release.
#
# Before the first run choose:
#   fit.*_dataloader.data_dir      your data; the folders named are those that
#                                  `cerebras-jais data {command} --output {folder} --tokenizer RELEASE
#                                  --max-sequence-length {length} --held-out N` makes of Arabic and English {material}
#   batch_size, max_steps and the learning rates: no release records them; these are a cautious start
#   backend_type                   CPU, GPU or CSX
#   fit.ckpt_path                  the checkpoint, relative to where the run is started; remove it to resume a run that
#                                  has written checkpoints of its own
# {mup}
# The checkpoint holds weights only: the optimizer starts at step 0.
{notes}"""


_DATA_FOLDERS = {False: "data", True: "data/chat"}
"""Whether it holds conversations -> the folder of data."""


def read_params(config: Path | ConfigFile) -> tuple[Any, str]:
    """A trainer YAML as Python values, and what to call it in an error.

    Args:
        config: the file, the name of a config of ours, or either of them opened.

    Raises:
        ConversionError: the file cannot be read or is no YAML.
    """
    from cerebras_jais.catalog.yaml_files import open_config  # needed here alone

    try:
        file = config if isinstance(config, ConfigFile) else open_config(config)
    except ConfigError as error:
        raise ConversionError(str(error)) from error
    return file.data, str(file.path)


def read_model_section(config: Path | ConfigFile) -> dict[str, Any]:
    """The `model:` section of a trainer YAML, as `model_section_of` gives it.

    Args:
        config: as for `read_params`.

    Raises:
        ConversionError: the file cannot be read, is no YAML, or has no such section.
    """
    return model_section_of(*read_params(config))


def tunes_on_conversations(params: Any) -> bool:
    """Whether a run is instruction tuning: it starts from a checkpoint (ckpt_path) on packed examples (use_vsl).

    The chat phases of the catalog have both, and no other phase has. Pretraining on documents packed with
    `data pack --vsl` starts from random weights.
    """
    trainers = trainers_of(params)
    fit = section_at(trainers[-1][1], "fit") if trainers else None
    return bool(section_at(fit, "ckpt_path")) and section_at(fit, "train_dataloader", "use_vsl") is True


def model_section_of(params: Any, where: str) -> dict[str, Any]:
    """The `model:` section of the params of a run, in the form of Model Zoo 2.10 whichever release wrote them.

    The params are those of one trainer, of a list of trainers (the last counts), or of the older form with `model` and
    `optimizer` at the top. Keys that are gone since are left out. The deprecated form of muP, which has its width in
    the optimizer, becomes today's, with the same logits, initial weights and learning-rate scales.

    Args:
        params: the YAML as Python values.
        where: what to call it in an error.

    Raises:
        ConversionError: there is no such section, or it asks for something that no model of the family has.
        ModelConfigError: a section in the deprecated form of muP does not describe a model.
    """
    run = _run_of(params)
    section = run.get("model")
    if not isinstance(section, Mapping) or not section:
        raise ConversionError(f"{where}: has no section trainer.init.model")
    try:
        return migrate_mup(migrate_keys(_plain(section)), _adjustments_of(run))
    except ConversionError as error:
        raise ConversionError(f"{where}: {error}") from error
    except RecursionError as error:
        raise ConversionError(f"{where}: model holds itself; remove the YAML alias that does that") from error


def adjustments_left_out(params: Any) -> list[str]:
    """Notes on the optimizer's learning-rate scales that a `model:` section cannot hold, so that no release keeps them.

    They are a choice of the run, as the learning rate itself is; muP's own scales follow from the section.
    """
    left = {group: scale for group, scale in _adjustments_of(_run_of(params)).items() if group != "decoder_kernel"}
    return [
        f"left out: optimizer.adjust_learning_rate.{group} = {scale!r}, a choice of the run; "
        "give it again to continue training"
        for group, scale in left.items()
    ]


def _run_of(params: Any) -> Mapping[str, Any]:
    """The mapping that holds `model` and `optimizer`; empty where there is none."""
    found = params
    if isinstance(params, Mapping) and "trainer" in params:
        trainers = trainers_of(params)
        found = section_at(trainers[-1][1], "init") if trainers else None
    return found if isinstance(found, Mapping) else {}


def _adjustments_of(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The optimizer's learning-rate scales by group: at its top in the older form, under its name in today's."""
    optimizer = run.get("optimizer")
    if not isinstance(optimizer, Mapping):
        return {}
    for options in (optimizer, *optimizer.values()):
        found = options.get("adjust_learning_rate") if isinstance(options, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return {}


def _plain(value: Any) -> Any:
    """Nested mappings and sequences as dict and list, so that the section can be written as JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def trainer_params(section: Mapping[str, Any], checkpoint: str, *, chat: bool = False) -> dict[str, Any]:
    """Params that continue training of a converted checkpoint, in the Model Zoo and on the reference path alike.

    Args:
        section: the `model:` section.
        checkpoint: what `fit.ckpt_path` names.
        chat: whether training continues on conversations, packed examples (use_vsl).
    """
    config = DecoderConfig.from_section(section)
    # Under muP this is the rate of the base model; the groups that mup_base_* imply scale it matrix by matrix.
    peak, last = (1.5e-3, 1.5e-4) if config.is_mup else (2e-5, 2e-6)
    warmup, steps = 100, 1000
    data: dict[str, Any] = {"data_processor": "GptHDF5MapDataProcessor", "batch_size": 8, "num_workers": 0}
    evaluation: dict[str, Any] = {}
    if chat:
        data["use_vsl"] = True
        evaluation["batch_size"] = 1  # conversations held out fill few rows
    folder = _DATA_FOLDERS[chat]
    held_out = [f"{folder}/held_out/{language}" for language in ("ar", "en")]
    return {
        "trainer": {
            "init": {
                "backend": {"backend_type": "CPU"},
                "model_dir": "./model_dir",
                "seed": 1,
                "model": _plain(section),
                "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "correct_bias": True}},
                "schedulers": [
                    {
                        "SequentialLR": {
                            "schedulers": [
                                _schedule("LinearLR", 0.0, peak, warmup),
                                _schedule("CosineDecayLR", peak, last, steps - warmup),
                            ]
                        }
                    }
                ],
                "precision": {"enabled": False, "max_gradient_norm": 1.0},
                "loop": {"max_steps": steps, "eval_frequency": 200, "eval_steps": 10},
                "checkpoint": {"steps": 200},
                "logging": {"log_steps": 10},
            },
            "fit": {
                "train_dataloader": {**data, "data_dir": f"{folder}/train", "shuffle": True, "shuffle_seed": 1},
                "val_dataloader": {**data, **evaluation, "data_dir": held_out, "shuffle": False},
                "ckpt_path": checkpoint,
            },
        }
    }


def _schedule(kind: str, start: float, end: float, steps: int) -> dict[str, Any]:
    return {kind: {"initial_learning_rate": start, "end_learning_rate": end, "total_iters": steps}}


def yaml_text(params: Mapping[str, Any], notes: list[str]) -> str:
    """The params as YAML under a comment with what is left to choose, followed by the notes of the conversion."""
    fit = params["trainer"]["fit"]
    config = DecoderConfig.from_section(params["trainer"]["init"]["model"])
    kind = "Jais" if architecture_of(config) is JAIS else "Llama"
    mup = f"{kind} without muP groups: one learning rate for all weights."
    if config.is_mup:
        mup = (
            "mup_base_hidden_size and mup_base_filter_size imply the muP learning-rate groups; nothing else is needed."
        )
    chat = tunes_on_conversations(params)
    head = _HEAD.format(
        name=Path(fit["ckpt_path"]).name,
        command="chat" if chat else "pack",
        material="conversations" if chat else "text",
        folder=_DATA_FOLDERS[chat],
        length=config.max_position_embeddings,
        mup=mup,
        notes="".join(f"# Note: {note}\n" for note in notes),
    )
    return head + yaml.safe_dump(dict(params), sort_keys=False, allow_unicode=True)
