"""Configs lowered by the Model Zoo, their programs run, and the reference path beside them; not a test itself."""

import contextlib

import numpy as np
import torch

from cerebras_jais.catalog.yaml_files import open_config
from cerebras_jais.checkpoint import open_checkpoint
from cerebras_jais.checkpoint.tensors import StoredTensor
from cerebras_jais.cirh.program import read_program
from cerebras_jais.cirh.rounding import FLOAT32
from cerebras_jais.cirh.run import initial_state, run_steps
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.model.decoder import LanguageModel
from cerebras_jais.model.freeze import freeze_parameters
from cerebras_jais.model.load import to_torch
from cerebras_jais.modelzoo.lower.phase import lower_phase, phases_to_lower
from cerebras_jais.optimizer.groups import groups_of
from tests.cerebras_jais.modelzoo.runs import reference


def programs_of(path, folder):
    """The programs of a YAML: for each phase, step ("train" or "evaluate") -> Program."""
    file = open_config(path)
    found = []
    for phase, raw in phases_to_lower(file):
        lowered = lower_phase(file, phase, raw, folder / f"phase-{phase.number}")
        found.append({each.step: read_program(each.cirh.read_text(encoding="utf-8")) for each in lowered.programs})
    return found


def with_constants_of(program, config):
    """A config whose muP constants are those that the program holds, in 16 bits."""
    model = config.init.model
    if not model.is_mup:
        return config
    held = {
        operation.result_types[0].shape[-1]: operation.attributes["value"].values[0]
        for operation in program.operations
        if operation.kind == "Const" and operation.source == "model.fwd/aten::mul"
    }
    update = {
        "embeddings_scale": held[model.hidden_size],
        "output_logits_alpha": held[model.vocab_size] * model.width_multiplier,
    }
    init = config.init.model_copy(update={"model": model.model_copy(update=update)})
    return config.model_copy(update={"init": init})


def change_of_constants(program, config):
    """The largest relative change that 16 bits make to the muP constants of a config."""
    before, after = config.init.model, with_constants_of(program, config).init.model
    pairs = [(after.embeddings_scale, before.embeddings_scale), (after.logits_scale, before.logits_scale)]
    return max(abs(new / old - 1) for new, old in pairs)


def reference_with_constants(folder, path, model_dir, programs):
    """All phases on the reference path, with the constants of their programs: (phase, result, start) of each."""

    def change(configs):
        return [with_constants_of(each["train"], config) for each, config in zip(programs, configs, strict=True)]

    return reference(folder, path, model_dir, change)


def steps_of(folder, program, phase, start, count, *, types=FLOAT32, floats=torch.float32, **keys):
    """The first steps of a phase by its program, from where the reference path began."""
    with contextlib.chdir(folder):
        data = HDF5Samples(**phase.config.fit.train_dataloader.reader_keys())
        states = start.states or ("model",)
        with open_checkpoint(start.checkpoint) as checkpoint:
            state = initial_state(program, checkpoint.leaves, states, **keys)
        batches = [{name: torch.from_numpy(v) for name, v in data.batch(i).items()} for i in range(count)]
    return run_steps(program, state, batches, types=types, floats=floats)


def tensors_of(path):
    """Weights and states of a checkpoint by flat key."""
    with open_checkpoint(path) as checkpoint:
        return {name: to_torch(leaf) for name, leaf in checkpoint.leaves.items() if isinstance(leaf, StoredTensor)}


def without_effect(config):
    """Prefixes of what has no gradient but rounding: softmax takes no notice of a key's bias under ALiBi."""
    model = LanguageModel(config.init.model)
    if config.init.model.position_embedding_type != "alibi":
        return ()
    freeze_parameters(model, config.init.model.frozen_parameters)
    names = [name for group in groups_of(model, config.init.model, config.init.optimizer) for name in group.names]
    biases = [(number, name) for number, name in enumerate(names) if name.endswith("proj_k_dense_layer.bias")]
    return tuple(prefix for number, name in biases for prefix in (f"optimizer.state.{number}.", f"model.{name}"))


def apart(state, stored, left_out=()):
    """Name -> norm of the difference over the norm, of every tensor that both have."""
    found = {}
    for name, value in state.items():
        if name in stored and not name.startswith(left_out):
            difference = torch.linalg.vector_norm(value.double() - stored[name].double())
            found[name] = (difference / torch.linalg.vector_norm(stored[name].double()).clamp(min=1e-30)).item()
    return found


def learning_rates(result, groups):
    """Of each group; the program names equal ones once, so a rate without a name is that of a group that has one."""
    named = {int(name.split("/")[1]): v.item() for name, v in result.outputs.items() if name.startswith("metrics_lr/")}
    return np.asarray([named.get(group, next(iter(named.values()))) for group in range(groups)])
