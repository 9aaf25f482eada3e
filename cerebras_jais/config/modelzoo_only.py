"""What a trainer YAML asks of the Model Zoo 2.10 and the reference path does not do, set aside before it is typed.

The typed schema is of what is done here. The rest is known by name: on CS systems and through `cerebras-jais zoo fit`
the Model Zoo does it by its own rules, which nothing here judges; `cerebras-jais fit` on a CPU or GPU refuses it.

Source of the names: the classes that Model Zoo trainer/validate.py offers a YAML, in cerebras.pytorch optim/ and
sparse/, and the data processors of `jais` and `llama` in Model Zoo registry/registry.yaml.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cerebras_jais.config.callbacks import NOT_HERE
from cerebras_jais.errors import Keys, Problem
from cerebras_jais.model.outside import RATE_GROUPS, is_default

OPTIMIZERS = ("AdamW",)
OTHER_OPTIMIZERS = (
    *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamBase", "Adamax", "Lamb", "Lion", "Muon"),
    *("NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
)
RATE_SCHEDULES = ("LinearLR", "CosineDecayLR", "ConstantLR", "SequentialLR", "ScalePerParamLR")
OTHER_RATE_SCHEDULES = (
    *("PolynomialLR", "ExponentialLR", "InverseExponentialTimeDecayLR", "InverseSquareRootDecayLR"),
    *("PiecewiseConstantLR", "MultiStepLR", "StepLR", "CosineAnnealingLR", "CosineAnnealingWarmRestarts"),
    *("LambdaLR", "MultiplicativeLR", "ChainedLR", "ChainedScheduler", "CyclicLR", "OneCycleLR"),
)
WEIGHT_DECAY_SCHEDULES = (
    *("ConstantWD", "PolynomialWD", "LinearWD", "ExponentialWD", "InverseExponentialTimeDecayWD"),
    *("InverseSquareRootDecayWD", "CosineDecayWD", "SequentialWD", "PiecewiseConstantWD", "MultiStepWD", "StepWD"),
    *("CosineAnnealingWD", "CosineAnnealingWarmRestartsWD", "LambdaWD", "MultiplicativeWD", "ChainedWD", "CyclicWD"),
    *("OneCycleWD", "ScalePerParamWD"),
)
DATA_PROCESSORS = ("GptHDF5MapDataProcessor",)
OTHER_DATA_PROCESSORS = (
    *("GptHDF5DataProcessor", "DummyDataProcessor", "DummyIterableDataProcessor"),
    *("HuggingFaceDataProcessorEli5", "HuggingFaceIterableDataProcessorEli5"),
)

_OTHER_OPTIMIZERS = {name.lower() for name in OTHER_OPTIMIZERS}
_OTHER_SCHEDULES = {name.lower() for name in (*OTHER_RATE_SCHEDULES, *WEIGHT_DECAY_SCHEDULES)}
_NOT_HERE = {name.lower() for name in NOT_HERE}


@dataclass(frozen=True)
class Aside:
    """One thing that only the Model Zoo does: the path of its key below `trainer`, and its name in words."""

    keys: Keys
    what: str


def set_aside(trainer: Any) -> tuple[Any, tuple[Aside, ...]]:
    """A `trainer:` mapping without what only the Model Zoo does, and a list of that.

    Callbacks keep their places, since their arguments are not typed. Schedules are judged together or not at all.

    Args:
        trainer: plain values, of whatever shape; what is malformed is left for the schema to refuse.
    """
    kept = copy.deepcopy(trainer)
    found: list[Aside] = []
    if isinstance(kept, dict):
        if isinstance(init := kept.get("init"), dict):
            for take in (_optimizer, _schedules, _sparsity, _callbacks, _rate_groups):
                found += list(take(init))
        for keys, loader in _loaders(kept):
            found += [Aside((*keys, key), what) for key, what in _loader(loader)]
    return kept, tuple(found)


def not_done_here(asides: Iterable[Aside]) -> Iterator[Problem]:
    """What keeps the reference path from training a YAML, of what was set aside in it; keys below `trainer`."""
    for aside in asides:
        if aside.keys[0] in ("init", "fit"):  # the reference path reads no other section
            yield Problem(
                aside.keys,
                f"the reference path does not do {aside.what}; the Model Zoo does, by `cerebras-jais zoo fit`, and on "
                "CS systems by `cerebras-jais fit --backend csx`",
            )


def _named(entry: Any) -> Iterator[tuple[str, Any]]:
    """The name and the keys of a mapping such as {AdamW: {...}}; nothing of what has another shape."""
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, keys),) = entry.items()
        if isinstance(name, str):
            yield name, keys


def _optimizer(init: dict[str, Any]) -> Iterator[Aside]:
    for name, keys in _named(init.get("optimizer")):
        if name.lower() in _OTHER_OPTIMIZERS:
            init["optimizer"] = None
            yield Aside(("init", "optimizer", name), f"the optimizer {name}")
        elif isinstance(keys, dict) and keys.get("amsgrad") is True:
            del keys["amsgrad"]
            yield Aside(("init", "optimizer", name, "amsgrad"), "AMSGrad")


def _schedules(init: dict[str, Any]) -> Iterator[Aside]:
    schedules = init.get("schedulers")
    found = [] if not isinstance(schedules, list) else list(_other_schedules(schedules, ("init", "schedulers")))
    if found:
        init["schedulers"] = []
    yield from found


def _other_schedules(schedules: list[Any], at: Keys) -> Iterator[Aside]:
    for index, entry in enumerate(schedules):
        for name, keys in _named(entry):
            here = (*at, index, name)
            if name.lower() in _OTHER_SCHEDULES:
                yield Aside(here, f"the schedule {name}")
            elif isinstance(keys, dict):
                if isinstance(keys.get("schedulers"), list):
                    yield from _other_schedules(keys["schedulers"], (*here, "schedulers"))
                for inner, _ in _named(keys.get("scheduler")):
                    if inner.lower() in _OTHER_SCHEDULES:
                        yield Aside((*here, "scheduler", inner), f"the schedule {inner}")


def _sparsity(init: dict[str, Any]) -> Iterator[Aside]:
    if init.get("sparsity") is not None:
        init["sparsity"] = None
        yield Aside(("init", "sparsity"), "sparsity")


def _callbacks(init: dict[str, Any]) -> Iterator[Aside]:
    callbacks = init.get("callbacks")
    for index, entry in enumerate(callbacks if isinstance(callbacks, list) else []):
        for name, arguments in _named(entry):
            if name.lower() in _NOT_HERE and arguments is not None:
                yield Aside(("init", "callbacks", index, name), f"the callback {name}")


def _rate_groups(init: dict[str, Any]) -> Iterator[Aside]:
    model = init.get("model")
    if isinstance(model, dict) and not is_default(RATE_GROUPS, model.get(RATE_GROUPS)):
        yield Aside(("init", "model", RATE_GROUPS), "a learning-rate scale in the model")


def _loaders(trainer: dict[str, Any]) -> Iterator[tuple[Keys, dict[str, Any]]]:
    """Every section of a trainer that names data, with its path."""
    for section in ("fit", "validate", "validate_all"):
        parts = trainer.get(section)
        for key in ("train_dataloader", "val_dataloader", "val_dataloaders"):
            value = parts.get(key) if isinstance(parts, dict) else None
            if isinstance(value, dict):
                yield (section, key), value
            for index, item in enumerate(value if isinstance(value, list) else []):
                if isinstance(item, dict):
                    yield (section, key, index), item


def _loader(loader: dict[str, Any]) -> Iterator[tuple[str, str]]:
    named = loader.get("data_processor")
    if named in OTHER_DATA_PROCESSORS:
        for key in set(loader) - {"data_processor", "batch_size"}:
            del loader[key]
        yield "data_processor", f"the data processor {named}"
        return
    for key in ("dataset_map_fn", "data_transforms"):
        if loader.get(key) is not None:
            loader[key] = None
            yield key, f"{key} on the data"
