"""What one decoder is: the `model:` section of a Model Zoo trainer YAML as a frozen pydantic model.

The fields are the keys of the Model Zoo's `jais` and `llama` models with the Model Zoo's own defaults
(GPT2LMHeadModelConfig and GPT2ModelConfig of release 2.10). A Jais model is ALiBi + LayerNorm + biases, an adapted
(Llama) model is rotary + RMSNorm + no biases; nothing but these fields tells them apart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictBool,
    StrictStr,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from cerebras_jais.errors import UserError
from cerebras_jais.model.outside import ONLY_AT_DEFAULT, RATE_GROUPS, WITHOUT_EFFECT, is_default
from cerebras_jais.modelzoo_version import MODEL_CLASSES, PLUGIN_NAMES, STOCK_NAMES
from cerebras_jais.ranges import (
    BASE_WIDTH,
    EPSILON,
    FACTOR,
    FRACTION,
    LAYERS,
    OFFSET,
    ROTATION,
    SIZE,
    SPREAD,
    VOCABULARY,
    Range,
    shown,
)
from cerebras_jais.wording import suggestion

LOGITS_AT_ONCE = 2**25
"""Logits that a loss holds at a time, in float32: 128 MiB."""
SUMMED_AT_ONCE = 2**22
"""Numbers that there are at a time, at most, of a product which is added to a sum: 16 MiB in float32."""


class ModelConfigError(UserError):
    """A `model:` section that does not describe a model of the family.

    `key` is the dotted path of a key below `model`, None for the section as a whole; `problem` is the message alone.
    """

    def __init__(self, key: str | None, problem: str):
        super().__init__(f"model: {problem}" if key is None else f"model.{key}: {problem}")
        self.key = key
        self.problem = problem


class OutsideFamilyError(ModelConfigError):
    """A `model:` section that may be right, of a model that is not of the family."""

    def __init__(self, key: str, value: Any, *of_family: Any):
        known = " or ".join(map(str, of_family))
        family = f"whose models have {known}" if any(of_family) else "which has no model with it"
        super().__init__(key, f"{shown(value)} is outside the family of this project, {family}")


@dataclass(frozen=True)
class Initializer:
    """The distribution a weight is drawn from; `a` and `b` are absolute bounds of the truncated normal."""

    name: str = "truncated_normal"
    mean: float = 0.0
    std: float = 0.05
    a: float | None = None
    b: float | None = None

    @classmethod
    def from_section(cls, section: Mapping[str, Any] | str, key: str) -> Initializer:
        """Read one initializer of the YAML: a name, or a mapping with `name`, `mean`, `std`, `a`, `b`."""
        section = {"name": section} if isinstance(section, str) else section
        if not isinstance(section, Mapping):
            raise ModelConfigError(key, f"must be a name or a mapping with a name (got {shown(section)})")
        name = str(section.get("name", "")).lower()
        if name not in ("normal", "truncated_normal"):
            raise OutsideFamilyError(key, section.get("name"), "normal", "truncated_normal")
        unknown = set(section) - {"name", "mean", "std", "a", "b"}
        if unknown:
            raise ModelConfigError(key, f"unknown key {sorted(unknown)[0]!r}; known: name, mean, std, a, b")
        for part, bounds in (("mean", OFFSET), ("std", SPREAD), ("a", OFFSET), ("b", OFFSET)):
            value = section.get(part)
            if part not in section or (value is None and part in ("a", "b")):
                continue
            problem = bounds.problem(value)
            if problem is not None:
                raise ModelConfigError(f"{key}.{part}", problem)
        std = float(section.get("std", 0.05))
        truncated = name == "truncated_normal"
        bound: dict[str, Any] = {side: section.get(side) for side in ("a", "b")}
        # The Model Zoo's default bounds are two standard deviations where the keys are absent, and +-0.1 where null.
        for side, sign in (("a", -1.0), ("b", 1.0)):
            if truncated and bound[side] is None:
                bound[side] = sign * (0.1 if side in section else 2 * std)
        mean = float(section.get("mean", 0.0))
        if truncated and not (bound["a"] <= mean <= bound["b"] and bound["a"] < bound["b"]):
            raise ModelConfigError(key, f"mean {mean} must be between the bounds a {bound['a']} and b {bound['b']}")
        return cls(name, mean, std, bound["a"], bound["b"])

    def scaled(self, factor: float) -> Initializer:
        """The same distribution with its spread and bounds times `factor`, as muP scales it."""
        return dataclasses.replace(
            self,
            std=self.std * factor,
            a=None if self.a is None else self.a * factor,
            b=None if self.b is None else self.b * factor,
        )


# Keys that steer a CS system or the Model Zoo's own logging and change no number here (softmax is always float32).
NO_EFFECT_HERE = (
    "attention_kernel",
    "attention_softmax_fp32",
    "boundary_casting",
    "compute_eval_metrics",
    "fold_rope_consts",
    *WITHOUT_EFFECT,
)

_ALIASES = {"model_name": "name", "embedding_dropout_rate": "embd_pdrop"}


# ---- types of the fields -----------------------------------------------------------------------------------------


def _within(bounds: Range, kind: type[int] | type[float]) -> BeforeValidator:
    def check(value: Any) -> Any:
        problem = bounds.problem(value)
        if problem is not None:
            raise PydanticCustomError("range", "{problem}", {"problem": problem})
        return kind(value)

    return BeforeValidator(check)


def _default_where_null(value: Any, info: ValidationInfo) -> Any:
    return DecoderConfig.model_fields[str(info.field_name)].default if value is None else value


def _initializer(value: Any, info: ValidationInfo) -> Initializer:
    return value if isinstance(value, Initializer) else Initializer.from_section(value, str(info.field_name))


_LOWER = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)
_NULL_IS_DEFAULT = BeforeValidator(_default_where_null)
Size = Annotated[int, _within(SIZE, int)]
Layers = Annotated[int, _within(LAYERS, int)]
Vocabulary = Annotated[int, _within(VOCABULARY, int)]
BaseWidth = Annotated[float, _within(BASE_WIDTH, float)]
Factor = Annotated[float, _within(FACTOR, float)]
Fraction = Annotated[float, _within(FRACTION, float)]
InitializerField = Annotated[Initializer, BeforeValidator(_initializer)]


class DecoderConfig(BaseModel):
    """A decoder-only language model of the family; every field is a key of the YAML's `model:` section."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: StrictStr = "jais"
    vocab_size: Vocabulary = 50257
    max_position_embeddings: Size = 1024
    hidden_size: Size = 768
    num_hidden_layers: Layers = 12
    num_heads: Size = 12
    filter_size: Size = 3072

    position_embedding_type: Annotated[Literal["alibi", "rotary"], _LOWER] = "alibi"
    pos_scaling_factor: Factor = 1.0
    rotary_dim: Size | None = None
    rope_theta: Annotated[float, _within(ROTATION, float)] = 10000.0
    fold_rope_consts: StrictBool = False

    nonlinearity: Annotated[Literal["swiglu"], _LOWER] = "swiglu"
    norm_type: Annotated[Literal["layernorm", "rmsnorm"], _LOWER] = "layernorm"
    layer_norm_epsilon: Annotated[float, _within(EPSILON, float)] = 1e-5
    share_embedding_weights: StrictBool = True
    use_bias_in_output: StrictBool = False
    use_ffn_bias: StrictBool = True
    use_projection_bias_in_attention: StrictBool = True
    use_ffn_bias_in_attention: StrictBool = True
    attention_module: Annotated[Literal["aiayn_attention", "multiquery_attention"], _LOWER] = "aiayn_attention"
    extra_attention_params: dict[Any, Any] = {}
    attention_softmax_fp32: StrictBool = True
    attention_kernel: StrictStr | None = None

    embd_pdrop: Fraction | None = None
    dropout_rate: Fraction = 0.1
    attention_dropout_rate: Fraction | None = 0.1

    initializer_range: Annotated[float, _within(SPREAD, float)] = 0.02
    embedding_initializer: InitializerField | None = None
    initializer: InitializerField | None = None
    output_layer_initializer: InitializerField | None = None
    ffn_initializer: InitializerField | None = None
    ffn_output_layer_initializer: InitializerField | None = None

    mup_base_hidden_size: BaseWidth | None = None
    mup_base_filter_size: BaseWidth | None = None
    embeddings_scale: Annotated[Factor, _NULL_IS_DEFAULT] = 1.0
    scale_qk_dot_by_d: StrictBool | None = None
    attention_logits_alpha: Annotated[Factor, _NULL_IS_DEFAULT] = 1.0
    scale_output_logits_by_d: StrictBool = True
    output_logits_alpha: Factor | None = None
    output_logits_scale: Factor | None = None

    loss_scaling: Annotated[Literal["num_tokens", "batch_size"], _LOWER] = "num_tokens"
    loss_weight: Factor = 1.0
    boundary_casting: Annotated[StrictBool, _NULL_IS_DEFAULT] = False
    compute_eval_metrics: StrictBool = True

    # Regular expressions searched for in tensor names (`model.freeze`); the models of the plugin have it.
    frozen_parameters: tuple[StrictStr, ...] = ()

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> DecoderConfig:
        """Read and check the `model:` section of a trainer YAML.

        Raises:
            ModelConfigError: an unknown key, a value the family does not have, or values that do not fit together.
        """
        given_as = {}
        for given, value in section.items():
            key = _ALIASES.get(given, given)
            if key in cls.model_fields:
                given_as[key] = value
            elif key in ONLY_AT_DEFAULT:
                if not is_default(key, value):
                    raise OutsideFamilyError(str(given), value, ONLY_AT_DEFAULT[key])
            elif key not in (*NO_EFFECT_HERE, RATE_GROUPS):
                hint = suggestion(str(given), [*cls.model_fields, *ONLY_AT_DEFAULT])
                raise ModelConfigError(str(given), f"unknown key; {hint}")
        try:
            return cls(**given_as)
        except ValidationError as error:
            raise _refusal(error.errors(include_url=False)[0], given_as) from None

    @model_validator(mode="after")
    def _fits_together(self) -> DecoderConfig:
        """Refuse values that contradict one another."""

        def require(condition: bool, key: str, what: str) -> None:
            if not condition:
                raise ModelConfigError(key, f"{what} (got {shown(getattr(self, key))})")

        if self.name not in MODEL_CLASSES:
            raise OutsideFamilyError("name", self.name, *PLUGIN_NAMES, *STOCK_NAMES)
        require(
            not self.frozen_parameters or self.name in PLUGIN_NAMES,
            "frozen_parameters",
            f"the Model Zoo's own {self.name!r} freezes nothing; use name: {' or '.join(PLUGIN_NAMES)}",
        )
        require(self.hidden_size % self.num_heads == 0, "num_heads", f"must divide hidden_size {self.hidden_size}")
        unknown = set(self.extra_attention_params) - {"num_kv_groups", "attention_kernel"}
        require(not unknown, "extra_attention_params", f"unknown key {sorted(unknown)[:1]}; known: num_kv_groups")
        groups = self.extra_attention_params.get("num_kv_groups", 1)
        require(
            isinstance(groups, int) and SIZE.holds(groups) and self.num_heads % groups == 0,
            "extra_attention_params",
            f"num_kv_groups must be a whole number that divides num_heads {self.num_heads}",
        )
        require(
            self.attention_module == "multiquery_attention" or "num_kv_groups" not in self.extra_attention_params,
            "attention_module",
            "must be 'multiquery_attention' for num_kv_groups to have an effect",
        )
        if self.position_embedding_type == "rotary":
            dim = self.effective_rotary_dim
            require(
                dim % 2 == 0 and 0 < dim <= self.head_dim, "rotary_dim", f"must be even and at most {self.head_dim}"
            )
        require(
            self.is_mup or self.output_logits_alpha is None,
            "output_logits_alpha",
            "has an effect only with the mup_base_* sizes: give them, or remove it",
        )
        base = [self.mup_base_hidden_size is not None, self.mup_base_filter_size is not None]
        require(all(base) or not any(base), "mup_base_filter_size", "give both mup_base_* sizes or neither")
        require(
            not (self.is_mup and self.output_logits_scale),
            "output_logits_scale",
            "is the deprecated form of output_logits_alpha and the mup_base_* sizes: remove one of the two forms",
        )
        return self

    # ---- what follows from the fields -------------------------------------------------------------------------------

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_groups(self) -> int:
        """Number of key and value heads; fewer than `num_heads` in grouped-query attention."""
        if self.attention_module == "multiquery_attention":
            return int(self.extra_attention_params.get("num_kv_groups", 1))
        return self.num_heads

    @property
    def is_mup(self) -> bool:
        """Whether the model is parametrised by muP (maximal update parametrisation)."""
        return self.mup_base_hidden_size is not None

    @property
    def width_multiplier(self) -> float:
        """muP's m_d: the hidden size over that of the base model; 1 without muP."""
        return self.hidden_size / self.mup_base_hidden_size if self.mup_base_hidden_size else 1.0

    @property
    def filter_multiplier(self) -> float:
        """muP's m_f: the filter size over that of the base model; 1 without muP."""
        return self.filter_size / self.mup_base_filter_size if self.mup_base_filter_size else 1.0

    @property
    def default_initializer(self) -> Initializer:
        """What a weight without an initializer of its own is drawn from: bounds of two standard deviations."""
        std = self.initializer_range
        return Initializer("truncated_normal", 0.0, std, -2 * std, 2 * std)

    @property
    def effective_rotary_dim(self) -> int:
        """Dimensions of each head that rotate; a quarter of the head where not given (Model Zoo rule)."""
        return self.rotary_dim if self.rotary_dim is not None else int(self.head_dim * 0.25)

    @property
    def attention_scale(self) -> float:
        """Factor on q.k: 1/d under muP (`scale_qk_dot_by_d`), 1/sqrt(d) otherwise, times `attention_logits_alpha`."""
        by_d = self.is_mup if self.scale_qk_dot_by_d is None else self.scale_qk_dot_by_d
        return self.attention_logits_alpha / (self.head_dim if by_d else math.sqrt(self.head_dim))

    @property
    def logits_scale(self) -> float:
        """Factor on the logits: `output_logits_alpha` over the width multiplier (or its root) under muP."""
        if self.is_mup:
            by_d = self.scale_output_logits_by_d
            multiplier = self.width_multiplier if by_d else math.sqrt(self.width_multiplier)
            return (self.output_logits_alpha or 1.0) / multiplier
        return self.output_logits_scale or 1.0

    @property
    def embedding_dropout(self) -> float:
        """Dropout on the embeddings; `dropout_rate` where not given."""
        return self.dropout_rate if self.embd_pdrop is None else self.embd_pdrop

    @property
    def attention_dropout(self) -> float:
        """Dropout on the attention weights; `dropout_rate` where null."""
        return self.dropout_rate if self.attention_dropout_rate is None else self.attention_dropout_rate


_WORDS = {
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list of strings",
}


def _refusal(error: Any, section: Mapping[str, Any]) -> ModelConfigError:
    """The first of pydantic's errors of a section, in this project's words."""
    key = str(error["loc"][0])
    value, kind = section[key], error["type"]
    if value is None:
        default = DecoderConfig.model_fields[key].default
        return ModelConfigError(key, f"must not be null; remove the key to use its default {default!r}")
    if kind == "range":
        return ModelConfigError(key, error["ctx"]["problem"])
    if kind == "literal_error" and isinstance(value, str):
        known = get_args(DecoderConfig.model_fields[key].annotation)
        if key in ("loss_scaling", "attention_module"):
            return ModelConfigError(key, f"must be {' or '.join(map(repr, known))} (got {shown(value.lower())})")
        return OutsideFamilyError(key, value.lower(), *known)
    if key == "frozen_parameters":
        kind = "tuple_type"
    return ModelConfigError(key, f"{_WORDS.get(kind, 'must be a string')} (got {shown(value)})")
