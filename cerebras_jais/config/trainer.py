"""The trainer YAML, typed: every key of the Model Zoo 2.10 trainer is known, and any other is an error."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainValidator, PrivateAttr, ValidationError, field_validator

from cerebras_jais.config.base import PathText, Section, Seed, refuse, unwrap
from cerebras_jais.config.callbacks import LOGGERS_WITHOUT_EFFECT, WITHOUT_EFFECT
from cerebras_jais.config.modelzoo_only import OPTIMIZERS, OTHER_OPTIMIZERS, Aside, set_aside
from cerebras_jais.config.schedules import AnySchedule
from cerebras_jais.config.sections import (
    AdamW,
    AutoRestart,
    Backend,
    CallbackSection,
    CheckpointSection,
    DataLoader,
    LoggerSection,
    Logging,
    Loop,
    Precision,
)
from cerebras_jais.config.yaml_file import ConfigError, ConfigFile, ModelZooAloneError
from cerebras_jais.errors import Keys, Problem, dotted
from cerebras_jais.model.config import NO_EFFECT_HERE, DecoderConfig, ModelConfigError, OutsideFamilyError
from cerebras_jais.modelzoo_version import PLUGIN_NAMES, STOCK_NAMES
from cerebras_jais.ranges import shown
from cerebras_jais.wording import suggestion

__all__ = [
    "ConfigError",
    "ModelZooAloneError",
    "TrainerConfig",
    "model_problem",
    "parse_trainer",
    "parse_trainers",
    "without_effect_here",
]


def _model(section: Any) -> DecoderConfig:
    if isinstance(section, DecoderConfig):
        return section
    if not isinstance(section, dict):
        raise refuse(f"must be a mapping (got {shown(section)})")
    if "name" not in section and "model_name" not in section:
        raise refuse(f"missing; use one of {', '.join(PLUGIN_NAMES + STOCK_NAMES)}", "name")
    try:
        return DecoderConfig.from_section(section)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:  # a value of a kind no check expected
        raise refuse(f"has a value of the wrong type: {' '.join(str(error).split())}") from error


class TrainerInit(Section):
    """What is trained, and how."""

    without_effect = frozenset({"autorestart"})

    device: str | None = None
    backend: Backend = Backend()
    model_dir: PathText = "./model_dir"
    seed: Seed | None = None
    model: Annotated[DecoderConfig, PlainValidator(_model)]
    optimizer: AdamW | None = None
    schedulers: list[AnySchedule] = Field(default_factory=list)
    precision: Precision | None = None
    sparsity: None = None
    loop: Loop = Loop(num_epochs=1)
    checkpoint: CheckpointSection = CheckpointSection()
    logging: Logging = Logging()
    callbacks: list[CallbackSection] = Field(default_factory=list)
    loggers: list[LoggerSection] = Field(default_factory=list)
    autorestart: AutoRestart | None = None

    @field_validator("optimizer", mode="before")
    @classmethod
    def _unwrap_optimizer(cls, value: Any) -> Any:
        if value is None or isinstance(value, AdamW):
            return value
        name, keys = unwrap(value, "optimizer")
        if name.lower() != "adamw":
            raise refuse(f"unknown optimizer; {suggestion(name, (*OPTIMIZERS, *OTHER_OPTIMIZERS))}", name)
        return keys

    @field_validator("backend", "loop", "checkpoint", "logging", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].get_default() if value is None else value

    @field_validator("schedulers", "callbacks", "loggers", mode="before")
    @classmethod
    def _null_is_empty(cls, value: Any) -> Any:
        return [] if value is None else value

    @property
    def backend_type(self) -> str | None:
        """CSX, CPU or GPU as the YAML says it, None where it does not."""
        named = self.backend.backend_type or self.device
        return named.upper() if named else None


def _one_or_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


class TrainerFit(Section):
    """The data of a training run; without `ckpt_path` it continues from the last checkpoint, null starts it again."""

    train_dataloader: DataLoader
    val_dataloader: list[DataLoader] = Field(default_factory=list)
    ckpt_path: PathText | None = None

    @field_validator("val_dataloader", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [] if value is None else _one_or_list(value)

    @property
    def autoloads(self) -> bool:
        """Whether the YAML leaves the choice of the checkpoint open."""
        return "ckpt_path" not in self.model_fields_set


class TrainerValidate(Section):
    """The data of one evaluation."""

    val_dataloader: DataLoader
    ckpt_path: PathText | None = None


class TrainerValidateAll(Section):
    """The data of evaluations of several checkpoints."""

    val_dataloaders: list[DataLoader] = Field(default_factory=list)
    ckpt_paths: PathText | list[PathText] | None = None

    @field_validator("val_dataloaders", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [] if value is None else _one_or_list(value)


class TrainerConfig(Section):
    """One trainer: the mapping under `trainer:`."""

    init: TrainerInit
    fit: TrainerFit | None = None
    # `validate` is a method of pydantic's models, so the fields have longer names.
    validation: TrainerValidate | None = Field(default=None, validation_alias="validate")
    validation_all: TrainerValidateAll | None = Field(default=None, validation_alias="validate_all")

    _raw: dict[str, Any] = PrivateAttr(default_factory=dict)
    _file: ConfigFile | None = PrivateAttr(default=None)
    _at: Keys = PrivateAttr(default=("trainer",))
    _aside: tuple[Aside, ...] = PrivateAttr(default=())

    @property
    def source(self) -> str:
        """The file this came from, for messages."""
        return str(self._file.path) if self._file is not None else "trainer"

    @property
    def at(self) -> Keys:
        """The path of keys to this trainer in its file."""
        return self._at

    def message(self, problem: Problem) -> str:
        """The line that says a problem of this trainer, whose keys are below `trainer`: file, line, key, problem."""
        return self.message_at(problem.below(self._at))

    def message_at(self, problem: Problem) -> str:
        """The line that says a problem whose keys are those of the file."""
        return _message(problem, self._file)

    @property
    def aside(self) -> tuple[Aside, ...]:
        """What it asks for that only the Model Zoo can do; the fields hold nothing of it."""
        return self._aside

    def to_dict(self) -> dict[str, Any]:
        """The YAML as plain values, `{"trainer": {...}}`: what a checkpoint carries as its parameters."""
        return {"trainer": copy.deepcopy(self._raw)}

    def with_start(self, checkpoint: Path) -> TrainerConfig:
        """The same, beginning from another checkpoint."""
        assert self.fit is not None
        return self.model_copy(update={"fit": self.fit.model_copy(update={"ckpt_path": str(checkpoint)})})

    def callback(self, name: str) -> dict[str, Any] | None:
        """The arguments of the last callback of this name, None where there is none (or it is set to null)."""
        found = [c.arguments for c in self.init.callbacks if c.name == name]
        return found[-1] if found else None

    def logger(self, name: str) -> dict[str, Any]:
        """The arguments of the last logger of this name, empty where there is none or it has none."""
        found = [entry.arguments for entry in self.init.loggers if entry.name == name]
        return (found[-1] if found else None) or {}

    def switched_off(self, name: str) -> bool:
        """Whether a callback or logger that runs by default is set to null."""
        return any(e.name == name and e.arguments is None for e in [*self.init.callbacks, *self.init.loggers])

    def dataloaders(self) -> Iterator[tuple[Keys, DataLoader]]:
        """The sections of `fit` that name data, with their paths below `trainer`."""
        if self.fit is not None:
            yield ("fit", "train_dataloader"), self.fit.train_dataloader
            several = isinstance(self._raw["fit"]["val_dataloader"], list) if self.fit.val_dataloader else False
            for index, section in enumerate(self.fit.val_dataloader):
                yield ("fit", "val_dataloader", *([index] if several else [])), section


def parse_trainers(file: ConfigFile) -> list[TrainerConfig]:
    """The typed trainers of a YAML: one for `trainer: {...}`, one for each phase of a list.

    Raises ConfigError: one line with file, line number, the path of the key, and what to do.
    """
    check_top(file)
    return [parse_trainer(section, file, at) for at, section in file.trainers]


def check_top(file: ConfigFile) -> None:
    """Raise ConfigError for a file that is no mapping with the one key `trainer`, or whose phases are not."""
    if not isinstance(file.data, dict) or "trainer" not in file.data:
        message = f"{file.path}: the file must hold a mapping with the key 'trainer'"
        if isinstance(file.data, dict) and "runconfig" in file.data:
            raise ModelZooAloneError(f"{message}; this is the old format: `cszoo config convert_legacy` rewrites it")
        raise ConfigError(message)
    for key in file.data:
        if key != "trainer":
            raise ConfigError(file.message(Problem((key,), "unknown key; the only top-level key is 'trainer'")))
    if file.data["trainer"] == []:
        raise ConfigError(file.message(Problem(("trainer",), "the list is empty")))
    for keys, _ in file.trainers:
        phase = file.data["trainer"][keys[1]] if len(keys) > 1 else file.data
        if not isinstance(phase, dict) or set(phase) != {"trainer"}:
            raise ConfigError(
                file.message(Problem(keys[:-1], "each phase must be a mapping with the one key 'trainer'"))
            )


def parse_trainer(section: Any, file: ConfigFile | None = None, at: Keys = ("trainer",)) -> TrainerConfig:
    """Type one `trainer:` mapping.

    Args:
        section: the mapping, as plain values.
        file: the file that it is from, for lines in messages.
        at: the path of keys to it there.

    Raises:
        ConfigError: the first problem, as `parse_trainers` says it.
    """
    raw = copy.deepcopy(section)
    typed, aside = set_aside(section)
    try:
        config = TrainerConfig.model_validate(typed)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] == "beyond")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        kind = ModelZooAloneError if problems[0]["type"] == "beyond" else ConfigError
        raise kind(_message(problem_of(problems[0], section).below(at), file) + more) from None
    except ModelConfigError as error:
        message = _message(model_problem(error).below(at), file)
        if isinstance(error, OutsideFamilyError):
            raise ModelZooAloneError(f"{message}; `cerebras-jais zoo fit` leaves it to the Model Zoo") from None
        raise ConfigError(message) from None
    config._raw, config._file, config._at, config._aside = raw, file, at, aside
    optimizer = config.init.optimizer
    if optimizer is not None and optimizer.learning_rate is None and not raw["init"].get("schedulers"):
        missing = Problem(("init",), "no learning rate: add init.schedulers, or learning_rate to the optimizer")
        raise ConfigError(config.message(missing))
    return config


def model_problem(error: ModelConfigError) -> Problem:
    """What is wrong with a `model:` section, at its key below `trainer`."""
    return Problem(("init", "model", *(error.key.split(".") if error.key else ())), error.problem)


def _message(problem: Problem, file: ConfigFile | None) -> str:
    return file.message(problem) if file is not None else f"{dotted(problem.keys)}: {problem.message}"


def without_effect_here(config: TrainerConfig) -> list[str]:
    """The YAML paths of the keys that only concern CS systems (or only report) and change nothing on a CPU or GPU."""
    found: list[str] = []

    def walk(section: Section, keys: Keys) -> None:
        for name in type(section).model_fields:
            if name not in section.model_fields_set:
                continue
            value = getattr(section, name)
            here = (*keys, name)
            if name in section.without_effect:
                found.append(dotted(here))
            elif isinstance(value, CallbackSection | LoggerSection):
                pass
            elif isinstance(value, Section):
                walk(value, here)
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Section) and not isinstance(item, CallbackSection | LoggerSection):
                        walk(item, (*here, index))

    walk(config.init, ("trainer", "init"))
    if config.fit is not None:
        walk(config.fit, ("trainer", "fit"))
    raw = config._raw
    found += [f"trainer.{key}" for key in ("validate", "validate_all") if raw.get(key) is not None]
    found += [f"trainer.init.model.{key}" for key in NO_EFFECT_HERE if key in config._raw["init"]["model"]]
    if config.init.model.loss_scaling == "num_tokens" and config.init.model.loss_weight != 1:
        found.append("trainer.init.model.loss_weight")  # the Model Zoo leaves it out with num_tokens too
    for kind, entries, without in (
        ("callbacks", config.init.callbacks, WITHOUT_EFFECT),
        ("loggers", config.init.loggers, LOGGERS_WITHOUT_EFFECT),
    ):
        found += [f"trainer.init.{kind}: {e.name}" for e in entries if e.name in without and e.arguments is not None]
    if "legacy_event_dirs" in config.logger("TensorBoardLogger"):
        found.append("trainer.init.loggers: TensorBoardLogger.legacy_event_dirs")
    if config.switched_off("ProgressLogger"):
        found.append("trainer.init.loggers: ProgressLogger")
    return found


def problem_of(error: Any, section: Any) -> Problem:
    """What one of pydantic's errors says, at its key of the YAML."""
    keys, context = keys_of(error["loc"], section), error.get("ctx") or {}
    if error["type"] not in ("config", "beyond"):
        return Problem(keys, _in_words(error))
    if context.get("key") is not None:
        keys = _with_key(section, keys, context["key"])
    return Problem(keys, context["message"])


def keys_of(location: Sequence[str | int], section: Any) -> Keys:
    """The path in the YAML of pydantic's error location, which has tags of unions and leaves out names of wrappers."""
    keys: list[str | int] = []
    value = section
    for part in location:
        if isinstance(value, dict) and len(value) == 1 and part not in value:
            # {AdamW: {...}} or {LinearLR: {...}}: the name is not, or differently written, in the location.
            (name,) = value
            if isinstance(value[name], dict):
                keys.append(name)
                value = value[name]
                if str(part).lower() == str(name).lower():
                    continue
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            keys.append(part)
            value = value[part]
        elif part is location[-1] and isinstance(part, str) and isinstance(value, dict):
            keys.append(part)  # a key that is missing
    return tuple(keys)


def _with_key(section: Any, keys: Keys, key: str) -> Keys:
    """The path of a key in the mapping at `keys`, through the name of a wrapper such as AdamW where it has one."""
    value = section
    for part in keys:
        value = value[part]
    if isinstance(value, dict) and key not in value and len(value) == 1:
        ((name, inner),) = value.items()
        if isinstance(inner, dict) and key in inner:
            return (*keys, name, key)
    return (*keys, key)


# What is expected where pydantic reports an error of this type.
_KINDS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "a mapping"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    "none_required": "null",
}


def _in_words(problem: Any) -> str:
    if problem["type"] == "missing":
        return "missing key"
    if problem["type"] in ("extra_forbidden",):
        return f"unknown key; {suggestion(str(problem['loc'][-1]), ())}"
    kind = _KINDS.get(problem["type"])
    message = problem["msg"].replace("Input should be", "must be") if kind is None else f"must be {kind}"
    given = problem.get("input")
    return f"{message} (got {shown(given)})" if not isinstance(given, dict | list) else message
