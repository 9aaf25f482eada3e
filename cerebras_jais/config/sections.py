"""The sections of a Model Zoo 2.10 trainer YAML as frozen pydantic models, with the Model Zoo's defaults.

Source: Model Zoo trainer/validate.py and the constructors it reads (trainer/callbacks/{loop,checkpoint,precision,
logging,autorestart}.py, data/common/h5_map_dataset/dataset.py), cerebras.pytorch optim/AdamBase.py.
`without_effect` names the keys of a section that only concern CS systems.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from cerebras_jais.config.base import (
    Count,
    CountOrNone,
    Epsilon,
    Factor,
    Fraction,
    LossScale,
    PathText,
    Rate,
    RateScale,
    Section,
    Seed,
    Size,
    StepsOrFraction,
    Subset,
    Weight,
    refuse,
    refuse_beyond,
)
from cerebras_jais.config.callbacks import (
    ARGUMENT_KINDS,
    FLAG_CALLBACKS,
    HONOURED,
    LOGGERS,
    LOGGERS_WITHOUT_EFFECT,
    NOT_HERE,
    WITHOUT_EFFECT,
    harness_problem,
    named_states,
)
from cerebras_jais.config.cluster import ClusterConfig, flag_problem
from cerebras_jais.config.modelzoo_only import DATA_PROCESSORS, OTHER_DATA_PROCESSORS
from cerebras_jais.files import is_in_object_storage
from cerebras_jais.ranges import COUNT_OR_NONE, SHARE, shown
from cerebras_jais.wording import suggestion

BACKENDS = ("CSX", "CPU", "GPU")
Paths = Annotated[list[PathText], Field(min_length=1)]


class TaggedParams(Section):
    """Parameters that glob patterns pick out, for schedulers that name the tag."""

    params: str | list[str]
    tag: str


class AdamW(Section):
    """AdamW as Cerebras defines it (decoupled weight decay, optional bias correction)."""

    learning_rate: Rate | None = Field(default=None, validation_alias=AliasChoices("learning_rate", "lr"))
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Epsilon = 1e-6
    weight_decay: Rate = 0.0
    correct_bias: bool = True
    amsgrad: Literal[False] = False  # true is for the Model Zoo alone, see modelzoo_only.py
    params: list[TaggedParams] = Field(default_factory=list)
    adjust_learning_rate: dict[str, RateScale] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_params_may_stand_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("params"), dict):
            value = {**value, "params": [value["params"]]}
        return value


class Precision(Section):
    """Mixed precision and gradient clipping."""

    without_effect = frozenset({"precision_opt_level", "log_loss_scale", "min_loss_scale", "max_loss_scale"})

    enabled: bool = True
    fp16_type: Literal["float16", "bfloat16", "cbfloat16"] = "bfloat16"
    precision_opt_level: Literal[0, 1, 2] | None = None
    loss_scaling_factor: LossScale | Literal["dynamic"] = 1.0
    initial_loss_scale: LossScale | None = None
    steps_per_increase: Count = 2000
    min_loss_scale: LossScale | None = None
    max_loss_scale: LossScale | None = None
    max_gradient_norm: Factor | None = None
    max_gradient_value: Factor | None = None
    log_loss_scale: bool | None = None

    @model_validator(mode="after")
    def _one_way_of_clipping(self) -> Precision:
        if self.max_gradient_norm is not None and self.max_gradient_value is not None:
            raise refuse(
                "gradients are clipped by norm or by value: remove max_gradient_norm or this", "max_gradient_value"
            )
        return self


class Loop(Section):
    """How long to train and when to evaluate; a step is one optimizer step of `grad_accum_steps` batches."""

    num_steps: Count | None = None
    max_steps: Count | None = None
    num_epochs: Count | None = None
    steps_per_epoch: Count | None = None
    eval_frequency: StepsOrFraction | None = 1.0
    eval_steps: Count | None = None
    grad_accum_steps: Size = 1

    @model_validator(mode="after")
    def _lengths_that_fit_together(self) -> Loop:
        if self.num_steps is not None and self.num_epochs is not None:
            raise refuse("give num_steps or num_epochs, not both", "num_epochs")
        if self.num_steps is None and self.num_epochs is None and self.max_steps is None:
            raise refuse("give one of max_steps, num_steps and num_epochs")
        bounds = SHARE if isinstance(self.eval_frequency, float) else COUNT_OR_NONE
        if self.eval_frequency is not None and not bounds.holds(self.eval_frequency):
            raise refuse(
                "must be a whole number of steps, or a fraction from 0 to 1 of the run "
                f"(got {shown(self.eval_frequency)})",
                "eval_frequency",
            )
        return self


class CheckpointSection(Section):
    """When checkpoints are written, how they are named, and whether the last one is taken up."""

    steps: CountOrNone | None = None
    autoload_last_checkpoint: bool = True
    disable_strict_checkpoint_loading: bool = False
    save_initial_checkpoint: bool = False
    checkpoint_root: PathText | None = None
    checkpoint_name: str = "checkpoint_{step}.mdl"
    strict_version: bool = True

    @model_validator(mode="after")
    def _names_and_places(self) -> CheckpointSection:
        # The last checkpoint is found again by this name, so it has the step once and without a format.
        head, found, tail = self.checkpoint_name.partition("{step}")
        if not found or set(head + tail) & set("{}"):
            raise refuse("must hold {step}, once and without a format, and no other braces", "checkpoint_name")
        if "/" in self.checkpoint_name:  # folders are not searched below, by the Model Zoo neither
            raise refuse("must be a file name without folders; name the folder in checkpoint_root", "checkpoint_name")
        if self.checkpoint_root and is_in_object_storage(self.checkpoint_root):
            raise refuse_beyond("object storage is neither read nor written from here", "checkpoint_root")
        return self


class Logging(Section):
    """How often progress is reported."""

    without_effect = frozenset({"log_level", "wsc_log_level", "enable_act_frequency"})

    log_steps: CountOrNone = 1
    log_level: str | int = "INFO"
    wsc_log_level: dict[str, Any] | None = None
    enable_act_frequency: bool = False


class AutoRestart(Section):
    """Restarts of a run on a cluster."""

    max_num_restarts: CountOrNone | None = None
    min_num_csx: Count = 1


class Backend(Section):
    """Where the run goes; here CPU or GPU."""

    without_effect = frozenset(
        {"artifact_dir", "compile_dir", "compile_only", "validate_only", "cluster_config", "enable_distributed"}
        | {"main_process_id", "dist_backend", "init_method", "sync_batchnorm"}
    )

    backend_type: Literal["CSX", "CPU", "GPU"] | None = None
    artifact_dir: str | None = None
    compile_dir: str | None = None
    compile_only: bool = False
    validate_only: bool = False
    cluster_config: ClusterConfig | None = None
    enable_distributed: bool = False
    main_process_id: CountOrNone = 0
    dist_backend: str = "nccl"
    init_method: str | None = None
    sync_batchnorm: bool = False

    @model_validator(mode="before")
    @classmethod
    def _any_case(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("backend_type"), str):
            named = value["backend_type"].upper()
            if named not in BACKENDS:
                raise refuse(f"unknown backend {value['backend_type']!r}; use CSX, CPU or GPU", "backend_type")
            value = {**value, "backend_type": named}
        return value


class MixturePart(Section):
    """One data set of a mixture and the share of samples drawn from it."""

    data_dir: PathText | Paths
    weight: Weight
    data_subset: Subset | None = None


class DataLoader(Section):
    """Where samples come from and in which order: the keys of GptHDF5MapDataProcessor; of others `batch_size` alone."""

    without_effect = frozenset(
        {"num_workers", "prefetch_factor", "persistent_workers", "use_worker_cache", "vocab_size", "repeat"}
    )

    data_processor: str
    data_dir: PathText | Paths | None = None
    mixture: list[MixturePart] | None = None
    batch_size: Count
    shuffle: bool = False
    shuffle_seed: Seed = 0
    use_worker_cache: bool = False
    max_sequence_length: Size | None = None
    data_subset: Subset | None = None
    drop_last: bool = True
    num_samples: Count | None = None
    sort_files: bool = True
    use_vsl: bool = False
    pad_last: bool = False
    num_workers: CountOrNone = 0
    prefetch_factor: Count | None = 10
    persistent_workers: bool = True
    dataset_map_fn: None = None
    data_transforms: None = None
    vocab_size: Any = None
    repeat: Any = None

    @model_validator(mode="after")
    def _names_its_data(self) -> DataLoader:
        known = (*DATA_PROCESSORS, *OTHER_DATA_PROCESSORS)
        if self.data_processor not in known:
            raise refuse(f"unknown; {suggestion(self.data_processor, known)}", "data_processor")
        if self.is_read_here and (self.data_dir is None) == (self.mixture is None):
            raise refuse("give exactly one of data_dir and mixture")
        return self

    @property
    def is_read_here(self) -> bool:
        """Whether this project reads the data too, and not the Model Zoo alone."""
        return self.data_processor in DATA_PROCESSORS

    @property
    def folders(self) -> list[str]:
        """Every folder that it names, those of a mixture too."""
        named = [self.data_dir] if self.mixture is None else [part.data_dir for part in self.mixture]
        return [folder for entry in named for folder in (entry if isinstance(entry, list) else [entry]) if folder]

    def reader_keys(self) -> dict[str, Any]:
        """The keyword arguments of `data.hdf5.HDF5Samples`."""
        names = {"data_dir", "batch_size", "shuffle", "shuffle_seed", "drop_last", "use_vsl", "num_samples"}
        names |= {"max_sequence_length", "data_subset", "sort_files", "pad_last", "use_worker_cache"}
        keys = {name: getattr(self, name) for name in names}
        parts = self.mixture
        keys["mixture"] = None if parts is None else [p.model_dump(exclude_unset=True) for p in parts]
        return keys


class Named(Section):
    """A callback or logger by its name, with its arguments; `arguments` is None where the YAML switches it off."""

    name: str
    arguments: dict[str, Any] | None

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"name", "arguments"}:
            return value
        if not isinstance(value, dict) or len(value) != 1:
            raise refuse(f"expected one mapping from a name to its arguments (got {shown(value)})")
        ((given, arguments),) = value.items()
        known: dict[str, Any] = cls._known()
        name = {k.lower(): k for k in known}.get(str(given).lower())
        if name is None:
            raise refuse(cls._unknown(str(given)), str(given))
        allowed = known[name]
        if arguments is not None and not isinstance(arguments, dict):
            keys = f"the keys {', '.join(allowed)}" if allowed else "keys"
            raise refuse(f"its arguments must be a mapping with {keys} (got {shown(arguments)})", str(given))
        for key in arguments or {}:
            if allowed is not None and key not in allowed:
                raise refuse(f"unknown key {key!r}; {suggestion(str(key), allowed)}", str(given))
            problem = flag_problem(str(key), (arguments or {})[key]) if name in FLAG_CALLBACKS else None
            if problem is not None:
                raise refuse(problem, str(given))
        for key, (kind, what) in ARGUMENT_KINDS.get(name, {}).items():
            if arguments and key in arguments and not kind(arguments[key]):
                raise refuse(f"{key} must be {what} (got {shown(arguments[key])})", str(given))
        wrong = harness_problem(arguments) if name == "EleutherEvalHarness" and arguments is not None else None
        if wrong is not None:
            raise refuse(wrong, str(given))
        if name == "LoadCheckpointStates" and arguments and "load_checkpoint_states" in arguments:
            try:
                named_states(arguments["load_checkpoint_states"])
            except ValueError as problem:
                raise refuse(str(problem), "load_checkpoint_states") from None
        return {"name": name, "arguments": arguments}

    @classmethod
    def _known(cls) -> dict[str, Any]:
        raise NotImplementedError

    @classmethod
    def _unknown(cls, given: str) -> str:
        return f"unknown; {suggestion(given, cls._known())}"


class CallbackSection(Named):
    """One entry of `callbacks`."""

    @classmethod
    def _known(cls) -> dict[str, Any]:
        return {**HONOURED, **WITHOUT_EFFECT, **dict.fromkeys(NOT_HERE)}

    @classmethod
    def _unknown(cls, given: str) -> str:
        is_logger = given.lower() in {name.lower() for name in (*LOGGERS, *LOGGERS_WITHOUT_EFFECT)}
        return "is a logger; write it under loggers" if is_logger else super()._unknown(given)


class LoggerSection(Named):
    """One entry of `loggers`."""

    @classmethod
    def _known(cls) -> dict[str, Any]:
        return {**LOGGERS, **LOGGERS_WITHOUT_EFFECT}
