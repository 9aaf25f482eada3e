"""One-edit variants of a good trainer YAML that use features of the Model Zoo, and how each is judged; no test itself.

The YAML is configs/tiny/jais.yaml under the stock name, for a CS system. `check` is what `config check` says of it: good,
noted (good, with a note of what it did not judge) or refused. `modelzoo` is whether the Model Zoo's validation, and the
constructors of its trainer, take it.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.commands.config import check_file
from cerebras_jais.launch.checks import notes_of

ROOT = Path(__file__).parents[3]
GOOD, NOTED, REFUSED = "good", "noted", "refused"


@dataclass(frozen=True)
class Variant:
    """A value put at a path below `trainer` (a list is appended to with the index -1; `...` takes the key out)."""

    name: str
    keys: str
    value: Any
    check: str
    modelzoo: bool

    def document(self) -> dict:
        document = base()
        if self.keys == "":
            return self.value(document)
        at = document["trainer"]
        *path, last = self.keys.split(".")
        for key in path:
            at = at[int(key)] if isinstance(at, list) else at.setdefault(key, {})
        if self.value is ...:
            del at[last]
        elif isinstance(at, list):
            at.append(copy.deepcopy(self.value))
        else:
            at[last] = copy.deepcopy(self.value)
        return document


def judge(path) -> str:
    """What `config check` says of a file without the Model Zoo: good, noted or refused."""
    if check_file(path)[0]:
        return REFUSED
    return NOTED if notes_of(read_trainer_yaml(path)) else GOOD


def same_model(one, other) -> bool:
    """Whether two trainers have one model; the Model Zoo writes the dropout of the embeddings where it was left out."""
    models = (one.init.model, other.init.model)
    a, b = (model.model_copy(update={"embd_pdrop": model.embedding_dropout}) for model in models)
    return a == b


def base() -> dict:
    """The YAML that the variants are edits of."""
    document = yaml.safe_load((ROOT / "configs" / "tiny" / "jais.yaml").read_text(encoding="utf-8"))
    init = document["trainer"]["init"]
    init["model"]["name"] = "jais"
    init["backend"] = {"backend_type": "CSX"}
    init["precision"] = {"enabled": True, "fp16_type": "cbfloat16", "loss_scaling_factor": "dynamic"}
    init["callbacks"] = [{"ScopedTrainFlags": {"csx.performance.micro_batch_size": "auto"}}]
    init["loggers"] = [{"TensorBoardLogger": {}}]
    return document


def _two_phases(document):
    first, second = copy.deepcopy(document["trainer"]), copy.deepcopy(document["trainer"])
    second["init"]["loop"]["max_steps"] = 2 * first["init"]["loop"]["max_steps"]
    return {"trainer": [{"trainer": first}, {"trainer": second}]}


def _bare_list(document):
    return {"trainer": [document["trainer"]]}


def _empty_list(document):
    return {"trainer": []}


def _foreign_second(document):
    both = _two_phases(document)
    both["trainer"][1]["trainer"]["init"]["callbacks"].append({"SaveCheckpointState": {"k": 2}})
    return both


def _slow_embedding():
    written = yaml.safe_load((Path(__file__).parent / "trainer_params" / "given.yaml").read_text(encoding="utf-8"))
    groups = written["trainer"]["init"]["model"]["lr_adjustment_groups"]
    groups["embedding"]["scale"] = 0.5
    return groups


_LINEAR = {"LinearLR": {"initial_learning_rate": 0.01, "end_learning_rate": 0.001, "total_iters": 50}}
_VAL = {"data_processor": "GptHDF5MapDataProcessor", "data_dir": "data/held_out/ar", "batch_size": 4}
_CB = "init.callbacks.-1"

VARIANTS = (
    # callbacks and loggers
    Variant("callback CheckLoss off", _CB, {"CheckLoss": None}, GOOD, True),
    Variant("callback KeepNCheckpoints", _CB, {"KeepNCheckpoints": {"n": 3}}, GOOD, True),
    Variant("callback name in small letters", _CB, {"keepncheckpoints": {"n": 3}}, GOOD, True),
    Variant("callback SaveCheckpointState", _CB, {"SaveCheckpointState": {"k": 2}}, NOTED, True),
    Variant("callback Lora", _CB, {"Lora": {"lora_params": {"r": 4, "target_modules": ["Linear"]}}}, NOTED, True),
    Variant("callback SkipSamples", _CB, {"SkipSamples": {"n": 4}}, NOTED, True),
    Variant("callback SelectiveGrad", _CB, {"SelectiveGrad": {"selective_grads": {"init_method": "outlier"}}}, NOTED, True),
    Variant("callback NaNChecker", _CB, {"NaNChecker": {"num_steps": 1}}, GOOD, True),
    Variant("callback unknown", _CB, {"KeepCheckpoints": {"n": 3}}, REFUSED, False),
    Variant("callback with an unknown key", _CB, {"KeepNCheckpoints": {"m": 3}}, REFUSED, False),
    Variant("callback without a mapping", _CB, {"KeepNCheckpoints": 3}, REFUSED, False),
    Variant("logger TelemetryLogger", "init.loggers.-1", {"TelemetryLogger": {"max_buffer_size": 64}}, GOOD, True),
    Variant("logger among the callbacks", _CB, {"TensorBoardLogger": {}}, REFUSED, False),
    Variant("logger unknown", "init.loggers.-1", {"TensorLogger": {}}, REFUSED, False),
    # schedules
    Variant("one schedule alone", "init.schedulers", [{"LinearLR": {**_LINEAR["LinearLR"], "total_iters": 100}}], GOOD, True),
    Variant("schedule CosineDecayLR", "init.schedulers", [{"CosineDecayLR": {**_LINEAR["LinearLR"], "total_iters": 100}}], GOOD, True),
    Variant("schedule ConstantLR", "init.schedulers", [{"ConstantLR": {"learning_rate": 0.01}}], GOOD, True),
    Variant("schedule ExponentialLR", "init.schedulers", [{"ExponentialLR": {"initial_learning_rate": 0.01, "total_iters": 100, "decay_rate": 0.9}}], NOTED, True),
    Variant("schedule of weight decay", "init.schedulers.-1", {"ConstantWD": {"val": 0.1}}, NOTED, True),
    Variant("schedule within SequentialLR", "init.schedulers", [{"SequentialLR": {"schedulers": [_LINEAR, {"PolynomialLR": {**_LINEAR["LinearLR"], "total_iters": 50}}]}}], NOTED, True),
    Variant("SequentialLR within SequentialLR", "init.schedulers", [{"SequentialLR": {"schedulers": [_LINEAR, {"SequentialLR": {"schedulers": [_LINEAR]}}]}}], REFUSED, True),
    Variant("ScalePerParamLR", "init.schedulers", [{"ScalePerParamLR": {"scheduler": {"ConstantLR": {"learning_rate": 0.01}}}}], GOOD, True),
    Variant("milestones that follow", "init.schedulers", [{"SequentialLR": {"schedulers": [_LINEAR, {"ConstantLR": {"learning_rate": 0.001}}], "milestones": [50]}}], GOOD, True),
    Variant("milestones that do not", "init.schedulers", [{"SequentialLR": {"schedulers": [_LINEAR, {"ConstantLR": {"learning_rate": 0.001}}], "milestones": [40]}}], REFUSED, False),
    Variant("schedule without a length", "init.schedulers", [{"LinearLR": {"initial_learning_rate": 0.1, "end_learning_rate": 0.1}}], REFUSED, False),
    Variant("schedule unknown", "init.schedulers", [{"ExpLR": {}}], REFUSED, False),
    # optimizers
    Variant("optimizer Adam", "init.optimizer", {"Adam": {"weight_decay": 0.1}}, NOTED, True),
    Variant("optimizer SGD", "init.optimizer", {"SGD": {"momentum": 0.9}}, NOTED, True),
    Variant("optimizer with AMSGrad", "init.optimizer.AdamW.amsgrad", True, NOTED, True),
    Variant("optimizer unknown", "init.optimizer", {"AdamX": {}}, REFUSED, False),
    Variant("optimizer with an unknown key", "init.optimizer.AdamW.beta", 0.9, REFUSED, True),
    Variant("learning rate of the optimizer", "init.optimizer.AdamW.learning_rate", 0.01, GOOD, True),
    Variant("no optimizer", "init.optimizer", ..., REFUSED, False),
    # precision
    Variant("precision bfloat16", "init.precision", {"fp16_type": "bfloat16"}, GOOD, True),
    Variant("precision float16 with dynamic scaling", "init.precision.fp16_type", "float16", GOOD, True),
    Variant("precision with a null scaling factor", "init.precision", {"fp16_type": "bfloat16", "loss_scaling_factor": None}, REFUSED, False),
    Variant("precision level 3", "init.precision.precision_opt_level", 3, REFUSED, False),
    Variant("precision of an unknown type", "init.precision.fp16_type", "fp16", REFUSED, False),
    Variant("sparsity", "init.sparsity", 0.5, NOTED, True),
    # model
    Variant("sliding window", "init.model.attention_sliding_window_length", 64, REFUSED, True),
    Variant("sliding window at its default", "init.model.attention_sliding_window_length", None, GOOD, True),
    Variant("experts", "init.model.moe_params", {"num_experts": 4, "top_k": 2}, REFUSED, True),
    Variant("experts off", "init.model.moe_params", {"num_experts": 0}, GOOD, True),
    Variant("another activation", "init.model.nonlinearity", "gelu", REFUSED, True),
    Variant("misspelt activation", "init.model.nonlinearity", "swigloo", REFUSED, False),
    Variant("generation key", "init.model.temperature", 0.5, GOOD, True),
    Variant("rate groups of the model", "init.model.lr_adjustment_groups", _slow_embedding(), NOTED, True),
    # loop, checkpoints, several trainers
    Variant("length in epochs", "init.loop", {"num_epochs": 2}, GOOD, True),
    Variant("two lengths", "init.loop", {"num_epochs": 2, "num_steps": 5}, REFUSED, False),
    Variant("accumulated gradients", "init.loop.grad_accum_steps", 4, NOTED, True),
    Variant("checkpoints in object storage", "init.checkpoint.checkpoint_root", "s3://bucket/run", REFUSED, True),
    Variant("checkpoint names with a format", "init.checkpoint.checkpoint_name", "c_{step:05d}.mdl", REFUSED, False),
    Variant("checkpoint names without a step", "init.checkpoint.checkpoint_name", "last.mdl", REFUSED, False),
    Variant("two phases in a list", "", _two_phases, GOOD, True),
    Variant("two phases, a callback in the second", "", _foreign_second, NOTED, True),
    Variant("list without the word trainer", "", _bare_list, REFUSED, False),
    Variant("empty list", "", _empty_list, REFUSED, True),
    # data and evaluation
    Variant("data GptHDF5DataProcessor", "fit.train_dataloader", {"data_processor": "GptHDF5DataProcessor", "data_dir": "data/train", "batch_size": 8, "shuffle": False}, NOTED, True),
    Variant("data processor unknown", "fit.train_dataloader.data_processor", "GptHDF5", REFUSED, False),
    Variant("no evaluation", "fit.val_dataloader", ..., GOOD, True),
    Variant("one evaluation", "fit.val_dataloader", _VAL, GOOD, True),
    Variant("validate", "validate", {"val_dataloader": _VAL}, GOOD, True),
    Variant("validate with a list", "validate", {"val_dataloader": [_VAL]}, REFUSED, False),
    Variant("validate_all", "validate_all", {"val_dataloaders": [_VAL, _VAL], "ckpt_paths": ["a.mdl"]}, GOOD, True),
    Variant("validate_all of other data", "validate_all", {"val_dataloaders": {"data_processor": "GptHDF5DataProcessor", "data_dir": "data/train", "batch_size": 8, "shuffle": False}}, NOTED, True),
    Variant("validate_all with a misspelt key", "validate_all", {"val_dataloader": _VAL}, REFUSED, False),
)  # fmt: skip
