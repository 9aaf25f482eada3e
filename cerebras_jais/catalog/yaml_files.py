"""Catalog rows to trainer YAML: what each file under configs/ says, with where its numbers come from beside them.

Wherever a file is asked for, a built-in config is found by its name too (`open_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import write_text
from cerebras_jais.catalog import size_rules as rules
from cerebras_jais.catalog.miniatures import MINIATURES
from cerebras_jais.catalog.models import MODELS, last_step, lineage
from cerebras_jais.catalog.types import Architecture, Model, Phase
from cerebras_jais.catalog.yaml_writer import Alias, Anchor, Note, Remark, to_yaml
from cerebras_jais.config.yaml_file import ConfigError, ConfigFile, parse_yaml, read_yaml
from cerebras_jais.modelzoo_version import JAIS_ADAPTED, JAIS_FAMILY, RELEASE
from cerebras_jais.wording import suggestion

EVERY = (*MODELS, *MINIATURES)


@dataclass(frozen=True)
class Preset:
    """One file under configs/: `name` is its path there without .yaml; several trainers are a list of phases."""

    name: str
    summary: str
    trainers: tuple[tuple[Model, Phase], ...]

    @property
    def model(self) -> Model:
        """The model that the last trainer leaves."""
        return self.trainers[-1][0]

    @property
    def is_miniature(self) -> bool:
        """Whether it is for a CPU."""
        return self.model in MINIATURES


_SUMMARIES = {
    "pretrain": "pretraining from random weights, loss on all tokens",
    "extend": "pretraining continues in a longer context",
    "embed": "the backbone is frozen, the embedding of the extended vocabulary and the head train",
    "adapt": "continued pretraining of all parameters",
    "chat": "instruction tuning, examples packed (VSL), loss on responses alone",
}
_TINY_SUMMARIES = {
    "tiny/jais": "jais-family in miniature: ALiBi, SwiGLU, muP and 12 heads as in jais-family-590m",
    "tiny/adapted": "jais-adapted in miniature: Llama-2 with grouped queries as in jais-adapted-70b",
    "tiny/context": "the context extension of jais-family-30b in miniature: three phases in one launch",
    "tiny/stages": "the adaptation of jais-adapted in miniature: stage 1 with the backbone frozen, then stage 2",
    "tiny/chat": "instruction tuning in miniature, from what tiny/jais leaves: packed examples (VSL)",
    "small/jais": "a jais-family model for real text on a CPU (README: On your own text)",
}


@cache
def presets() -> tuple[Preset, ...]:
    """All of them: each model's phases singly, several in a row as a list too, then the miniatures."""
    found: list[Preset] = []
    for model in MODELS:
        for phase in model.phases:
            name = f"{model.name}/{phase.name}"
            found.append(Preset(name, f"{model.name}, {phase.name}: {_SUMMARIES[phase.kind]}", ((model, phase),)))
        line = lineage(model)
        if len(line) > 1 and not model.is_chat:
            names = ", ".join(phase.name for _, phase in line)
            found.append(Preset(f"{model.name}/phases", f"{model.name}: the phases {names} in one launch", line))
    for model in MINIATURES:
        size = f"{model.parameters / 1e6:.1f} million parameters"
        found.append(
            Preset(model.name, f"{_TINY_SUMMARIES[model.name]}; {size}", tuple((model, p) for p in model.phases))
        )
    return tuple(found)


def find_preset(name: str) -> Preset:
    """The config of a name such as jais-family-590m/pretrain; a model with one phase may be named alone.

    Raises ConfigError that names the closest one.
    """
    by_name = {preset.name: preset for preset in presets()}
    key = name.lower().removesuffix(".yaml").removeprefix("configs/")
    of_model = [preset for preset in presets() if preset.name.startswith(f"{key}/")]
    if key in by_name:
        return by_name[key]
    if len(of_model) == 1:
        return of_model[0]
    if of_model:
        raise ConfigError(f"{name}: matches several configs; give one of {', '.join(r.name for r in of_model)}")
    raise ConfigError(
        f"{name}: no such file or built-in config; "
        + suggestion(key, by_name, otherwise="give the path of a YAML file, or a name of `cerebras-jais config list`")
    )


def open_config(name: str | Path) -> ConfigFile:
    """The YAML file of a path; where there is none, or a folder, the built-in config of that name.

    Raises ConfigError for what is neither, and as `read_yaml` does.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return read_yaml(path)
    try:
        preset = find_preset(str(name))
    except ConfigError:
        if path.is_dir():
            return read_yaml(path)  # which refuses a folder as such
        raise
    return parse_yaml(preset_yaml(preset), Path(preset.name))


def preset_yaml(preset: Preset, tasks: str | None = None) -> str:
    """The text of a config's YAML file.

    Args:
        tasks: names of lm_eval's tasks, with commas, that the Model Zoo evaluates the last trainer's model on.
    """
    several = len(preset.trainers) > 1  # a file has each anchor once
    trainers = [
        _trainer(model, phase, f"initializer_{phase.name}" if several else "initializer")
        for model, phase in preset.trainers
    ]
    if tasks is not None:
        trainers[-1]["init"].setdefault("callbacks", []).append({"EleutherEvalHarness": _harness(preset, tasks)})
    tree = {"trainer": trainers[0] if len(trainers) == 1 else [{"trainer": trainer} for trainer in trainers]}
    return to_yaml(tree, _header(preset))


def write_configs(folder: str | Path) -> list[Path]:
    """Write every config's file below a folder; their paths."""
    paths = []
    for preset in presets():
        path = Path(folder) / f"{preset.name}.yaml"
        write_text(path, preset_yaml(preset))
        paths.append(path)
    return paths


def model_dir_of(model: Model, phase: Phase) -> str:
    """Where a phase writes its checkpoints, relative to where the run is started."""
    if model in MODELS:
        return f"model/{model.name}/{phase.name}"
    place = {"tiny/jais": "jais", "tiny/adapted": "adapted", "small/jais": "model"}.get(model.name)
    tail = "" if len(model.phases) == 1 else f"/{phase.name}"
    return place or model.name.removeprefix("tiny/") + tail


def checkpoint_of(model: Model, phase: Phase) -> str:
    """The path of the last checkpoint that a phase writes."""
    return f"{model_dir_of(model, phase)}/checkpoint_{last_step(phase, EVERY)}.mdl"


def _header(preset: Preset) -> list[str]:
    lines = [f"{preset.summary[0].upper() if preset.is_miniature else preset.summary[0]}{preset.summary[1:]}."]
    runs = f"`cerebras-jais fit configs/{preset.name}.yaml`"
    if preset.is_miniature:
        lines += [
            f"Runs on the reference path ({runs}) and in the Model Zoo {RELEASE}",
            f"(`cerebras-jais zoo fit configs/{preset.name}.yaml`). Paths are relative to the folder it is started in.",
        ]
    else:
        lines += [
            "Comments say where a number is from: published, derived by a rule, or assumed for a reason.",
            f"Starts on CS systems with {runs[:-1]} --backend csx`.",
            "Paths are relative to the folder it is started in; data_dir must be on a volume that the cluster mounts.",
        ]
    lines.append("Made by `cerebras-jais config write`: to change it for good, change the catalog.")
    return lines


def _trainer(model: Model, phase: Phase, anchor: str) -> dict[str, Any]:
    tiny = model in MINIATURES
    every = _steps_between_checkpoints(phase) if not tiny else min(100, phase.steps.value)
    init: dict[str, Any] = {
        "backend": {"backend_type": "CPU" if tiny else "CSX"},
        "model_dir": model_dir_of(model, phase),
        "seed": 1,
        "model": _model(model, phase, anchor),
        "optimizer": {
            "AdamW": {
                "betas": phase.optimizer.betas,
                "eps": phase.optimizer.eps,
                "weight_decay": phase.optimizer.weight_decay,
                "correct_bias": True,
            }
        },
        "schedulers": _schedulers(phase),
        "precision": _precision(phase, tiny),
        "loop": {
            "max_steps": _max_steps(phase),
            "eval_frequency": phase.steps.value // 4 if tiny else every,
        },
        "checkpoint": {"steps": every},
        "logging": {"log_steps": 10},
    }
    callbacks: list[Any] = []
    if not tiny:
        flags = {"csx.performance.micro_batch_size": Note("auto", "found at compile time; a number fixes it")}
        callbacks.append({"ScopedTrainFlags": flags})
    if phase.init_from is not None:
        callbacks.append({"LoadCheckpointStates": {"load_checkpoint_states": _states(phase)}})
    if callbacks:
        init["callbacks"] = callbacks
    return {"init": init, "fit": _fit(model, phase, tiny)}


def _harness(preset: Preset, tasks: str) -> dict[str, Any]:
    """The arguments of the Model Zoo's callback that runs lm_eval, after each validation."""
    model, phase = preset.trainers[-1]
    adapted = model.architecture.mup is None
    return {
        "eeh_args": {"tasks": Note(tasks, "names of lm_eval"), "num_fewshot": 0},
        "batch_size": 4,
        "data_dir": Note(f"{model_dir_of(model, phase)}/evaluation", "on a volume that the cluster mounts"),
        "max_sequence_length": phase.context.value,
        "tokenizer_file_path": Note("tokenizer/tokenizer.json", "that of the data"),
        "eos_id": Note(2 if adapted else 0, "</s> of Llama-2" if adapted else "<|endoftext|>"),
        "shuffle": False,
        "num_workers": 0,
        "keep_data_dir": False,
        "every_n_vals": 1,
    }


def _states(phase: Phase) -> Note:
    if phase.keeps_optimizer_state:
        return Note("model,optimizer,global_step", "the data and the schedule restart")
    return Note("model", "optimizer, schedule, data and step restart")


def _max_steps(phase: Phase) -> Any:
    before = last_step(phase, EVERY) - phase.steps.value
    if not before:
        return phase.steps
    source = f"; {phase.steps.origin}: {phase.steps.why}" if phase.steps.why else ""
    return Note(before + phase.steps.value, f"{before} before and {phase.steps.value} here{source}")


def _steps_between_checkpoints(phase: Phase) -> int:
    return 5000 if phase.steps.value > 50_000 else 1000 if phase.steps.value > 5000 else 500


def _model(model: Model, phase: Phase, anchor: str) -> dict[str, Any]:
    a = model.architecture
    section: dict[str, Any] = {
        "name": JAIS_FAMILY if a.mup is not None else JAIS_ADAPTED,
        "vocab_size": Note(a.vocabulary.value, f"tokenizer: {model.tokenizer.value}"),
        "max_position_embeddings": phase.context,
        "hidden_size": a.hidden_size,
        "num_hidden_layers": a.layers,
        "num_heads": a.heads,
        "filter_size": a.filter_size,
        "nonlinearity": "swiglu",
    }
    if a.mup is not None:
        section |= {"position_embedding_type": "alibi", "layer_norm_epsilon": 1e-5, **_ties_and_biases(rules.JAIS_FORM)}
    else:
        section |= {
            "position_embedding_type": "rotary",
            "rotary_dim": Note(a.hidden_size.value // a.heads.value, "the whole head"),
            "rope_theta": 10000.0,
            "norm_type": "rmsnorm",
            "layer_norm_epsilon": 1e-5,
        }
        if a.kv_heads.value != a.heads.value:
            section["attention_module"] = "multiquery_attention"
            section["extra_attention_params"] = {"num_kv_groups": a.kv_heads}
        section |= _ties_and_biases(rules.ADAPTED_FORM)
    section |= {"dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    section |= _loss(model, phase)
    if model in MODELS and a.mup is not None:
        section["attention_kernel"] = Note("optimized_beta", "on CS systems; assumed: Model Zoo, all its jais configs")
    section |= _mup(a, anchor) if a.mup is not None else {"initializer_range": 0.02}
    if phase.frozen:
        section["frozen_parameters"] = Note(
            list(phase.frozen), "searched in tensor names: no gradient, no optimizer state"
        )
    return section


def _ties_and_biases(form: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in form.items() if isinstance(value, bool)}


def _loss(model: Model, phase: Phase) -> dict[str, Any]:
    # As in the Model Zoo's jais configs where every token counts; elsewhere the number of tokens that count varies.
    whole = model.architecture.mup is not None and phase.kind in ("pretrain", "extend")
    if whole and (model in MODELS or len(model.phases) > 1):
        weight = rules.loss_weight(phase.context.value)
        return {
            "loss_scaling": "batch_size",
            "loss_weight": Note(weight, "1 / max_position_embeddings: the mean over tokens"),
        }
    return {"loss_scaling": "num_tokens"}


def _mup(a: Architecture, anchor: str) -> dict[str, Any]:
    mup = a.mup
    assert mup is not None
    base_filter = rules.mup_base_filter_size(a.hidden_size.value, a.filter_size.value, mup.base_width)
    initializer = {"name": "truncated_normal", "mean": 0.0, "std": mup.init_std}
    return {
        "remark": Remark("muP: constants found on a model of the base width, used whole or not at all."),
        "mup_base_hidden_size": mup.base_width,
        "mup_base_filter_size": Note(base_filter, "filter_size x base width / hidden_size"),
        "embeddings_scale": mup.embeddings_scale,
        "output_logits_alpha": mup.output_logits_alpha,
        "scale_qk_dot_by_d": True,
        "embedding_initializer": Anchor(anchor, initializer),
        "initializer": Alias(anchor),
        "output_layer_initializer": Alias(anchor),
        "ffn_output_layer_initializer": Alias(anchor),
    }


def _schedulers(phase: Phase) -> list[Any]:
    rates = phase.rates
    rest = phase.steps.value - rates.warmup_steps.value
    name = "LinearLR" if rates.decay.value == "linear" else "CosineDecayLR"
    decay: dict[str, Any] = {
        "initial_learning_rate": rates.peak_lr,
        "end_learning_rate": rates.final_lr,
        "total_iters": rest,
    }
    shape: Any = Note(decay, f"{rates.decay.origin}: {rates.decay.why}" if rates.decay.why else "")
    if not rates.warmup_steps.value:
        return [{name: shape}]
    decay["initial_learning_rate"] = rates.peak_lr.value
    warmup = {
        "initial_learning_rate": rates.initial_lr,
        "end_learning_rate": rates.peak_lr,
        "total_iters": rates.warmup_steps,
    }
    return [{"SequentialLR": {"schedulers": [{"LinearLR": warmup}, {name: shape}]}}]


def _precision(phase: Phase, tiny: bool) -> dict[str, Any]:
    if tiny:
        return {"enabled": False, "max_gradient_norm": phase.optimizer.max_gradient_norm}
    return {
        "enabled": True,
        "fp16_type": phase.precision.half_type,
        "loss_scaling_factor": phase.precision.loss_scaling,
        "max_gradient_norm": phase.optimizer.max_gradient_norm,
    }


def _fit(model: Model, phase: Phase, tiny: bool) -> dict[str, Any]:
    reader = {"data_processor": "GptHDF5MapDataProcessor"}
    packed = (
        {"use_vsl": Note(True, "packed examples; their mask counts responses alone")} if phase.kind == "chat" else {}
    )
    root = _data_root(model, phase, tiny)
    if tiny:
        where: dict[str, Any] = {"data_dir": f"{root}/train"}
        order: dict[str, Any] = {"shuffle": True, "shuffle_seed": 1}
    else:
        where, order = _full_data(model, phase, root), {"shuffle": Note(False, "shuffled when it was packed")}
    workers = {"num_workers": 0} if tiny else {"num_workers": 1, "prefetch_factor": 10, "persistent_workers": True}
    held_out: Any = [f"{root}/held_out/ar", f"{root}/held_out/en"]
    if not tiny and model.mix is not None:  # each part is packed by itself, with what it holds out
        held_out = [f"{root}/arabic/held_out/ar", f"{root}/english/held_out/en"]
    fit: dict[str, Any] = {
        "train_dataloader": {**reader, **where, "batch_size": phase.batch_size, **packed, **order, **workers},
        "val_dataloader": {
            **reader,
            "data_dir": held_out,
            "batch_size": 2 if tiny else 32,
            **({"use_vsl": True} if packed else {}),
            "shuffle": False,
            **workers,
        },
    }
    if isinstance(phase.init_from, str):
        fit["ckpt_path"] = Note(phase.init_from, "Llama-2 with its vocabulary, embedding and head extended")
    elif phase.init_from is not None:
        named, ending = phase.init_from
        (parent,) = ((m, p) for m in EVERY if m.name == named for p in m.phases if p.name == ending)
        fit["ckpt_path"] = Note(checkpoint_of(*parent), f"what {ending} of {named} leaves")
    return fit


def _data_root(model: Model, phase: Phase, tiny: bool) -> str:
    if not tiny:
        return f"data/{model.family}/{'chat-' if phase.kind == 'chat' else ''}{phase.context.value}"
    if phase.kind == "chat":
        return "data/chat"
    return f"data/context/{phase.name}" if model.name == "tiny/context" else "data"


def _full_data(model: Model, phase: Phase, root: str) -> dict[str, Any]:
    if model.mix is None:
        return {"data_dir": f"{root}/train"}
    mix = model.mix
    parts = [("english", mix.english), ("arabic", mix.arabic)]
    if phase.kind != "embed":  # card: the embedding is trained on text in both languages
        parts.append(("code", mix.code))
    return {
        "mixture": [
            {"data_dir": f"{root}/{language}/train", "weight": Note(share.value, "published: card, billions of tokens")}
            for language, share in parts
        ]
    }
