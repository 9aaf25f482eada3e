"""What one decoder is: the `model:` section of a Model Zoo trainer YAML as a frozen dataclass.

The fields are the keys of the Model Zoo's `jais` and `llama` models with the Model Zoo's own defaults
(GPT2LMHeadModelConfig and GPT2ModelConfig of release 2.10). A Jais model is ALiBi + LayerNorm + biases, an adapted
(Llama) model is rotary + RMSNorm + no biases; nothing but these fields tells them apart.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cerebras_jais.errors import UserError
from cerebras_jais.model.outside import ONLY_AT_DEFAULT, RATE_GROUPS, WITHOUT_EFFECT, is_default
from cerebras_jais.modelzoo_version import PLUGIN_NAMES, STOCK_NAMES
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


class ModelConfigError(UserError):
    """A `model:` section that does not describe a model of the family.

    `key` is the dotted path of a key below `model`, None for the section as a whole; `problem` says what is wrong.
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
            raise ModelConfigError(key, f"mean {mean} must lie between the bounds a {bound['a']} and b {bound['b']}")
        return cls(name, mean, std, bound["a"], bound["b"])

    def scaled(self, factor: float) -> Initializer:
        """The same distribution with its spread and bounds times `factor`, as muP scales it."""
        return dataclasses.replace(
            self,
            std=self.std * factor,
            a=None if self.a is None else self.a * factor,
            b=None if self.b is None else self.b * factor,
        )


_INITIALIZERS = (
    "embedding_initializer",
    "initializer",
    "output_layer_initializer",
    "ffn_initializer",
    "ffn_output_layer_initializer",
)

_RANGES: Mapping[str, Range] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    **dict.fromkeys(("max_position_embeddings", "hidden_size", "filter_size", "num_heads", "rotary_dim"), SIZE),
    **dict.fromkeys(("mup_base_hidden_size", "mup_base_filter_size"), BASE_WIDTH),
    **dict.fromkeys(("dropout_rate", "embd_pdrop", "attention_dropout_rate"), FRACTION),
    **dict.fromkeys(("pos_scaling_factor", "embeddings_scale", "attention_logits_alpha"), FACTOR),
    **dict.fromkeys(("output_logits_alpha", "output_logits_scale", "loss_weight"), FACTOR),
    "initializer_range": SPREAD,
    "layer_norm_epsilon": EPSILON,
    "rope_theta": ROTATION,
}

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


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only language model of the family; every field is a key of the YAML's `model:` section."""

    name: str = "jais"
    vocab_size: int = 50257
    max_position_embeddings: int = 1024
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_heads: int = 12
    filter_size: int = 3072

    position_embedding_type: str = "alibi"
    pos_scaling_factor: float = 1.0
    rotary_dim: int | None = None
    rope_theta: float = 10000.0
    fold_rope_consts: bool = False

    nonlinearity: str = "swiglu"
    norm_type: str = "layernorm"
    layer_norm_epsilon: float = 1e-5
    share_embedding_weights: bool = True
    use_bias_in_output: bool = False
    use_ffn_bias: bool = True
    use_projection_bias_in_attention: bool = True
    use_ffn_bias_in_attention: bool = True
    attention_module: str = "aiayn_attention"
    extra_attention_params: Mapping[str, Any] = field(default_factory=dict)
    attention_softmax_fp32: bool = True
    attention_kernel: str | None = None

    embd_pdrop: float | None = None
    dropout_rate: float = 0.1
    attention_dropout_rate: float | None = 0.1

    initializer_range: float = 0.02
    embedding_initializer: Initializer | None = None
    initializer: Initializer | None = None
    output_layer_initializer: Initializer | None = None
    ffn_initializer: Initializer | None = None
    ffn_output_layer_initializer: Initializer | None = None

    mup_base_hidden_size: float | None = None
    mup_base_filter_size: float | None = None
    embeddings_scale: float = 1.0
    scale_qk_dot_by_d: bool | None = None
    attention_logits_alpha: float = 1.0
    scale_output_logits_by_d: bool = True
    output_logits_alpha: float | None = None
    output_logits_scale: float | None = None

    loss_scaling: str = "num_tokens"
    loss_weight: float = 1.0
    boundary_casting: bool = False
    compute_eval_metrics: bool = True

    # Regular expressions searched for in tensor names (`model.freeze`); the models of the plugin have it.
    frozen_parameters: tuple[str, ...] = ()

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> DecoderConfig:
        """Read and check the `model:` section of a trainer YAML.

        Raises:
            ModelConfigError: an unknown key, a value the family does not have, or values that do not fit together.
        """
        values: dict[str, Any] = {}
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for given, value in section.items():
            key = _ALIASES.get(given, given)
            if key in fields:
                values[key] = _coerced(key, value, fields[key])
            elif key in ONLY_AT_DEFAULT:
                if not is_default(key, value):
                    raise OutsideFamilyError(str(given), value, ONLY_AT_DEFAULT[key])
            elif key not in (*NO_EFFECT_HERE, RATE_GROUPS):
                near = difflib.get_close_matches(str(given), [*fields, *ONLY_AT_DEFAULT], n=1)
                raise ModelConfigError(
                    str(given),
                    "unknown key; "
                    + (f"did you mean {near[0]!r}?" if near else "the Model Zoo 2.10 has none of a name like this"),
                )
        for key in _INITIALIZERS:
            if values.get(key) is not None and not isinstance(values[key], Initializer):
                values[key] = Initializer.from_section(values[key], key)
        config = cls(**values)
        config.check()
        return config

    def to_section(self) -> dict[str, Any]:
        """The `model:` section that describes this model, here and in the Model Zoo: every value but its defaults."""
        section: dict[str, Any] = {"name": self.name}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            default = {} if f.name == "extra_attention_params" else f.default
            # The Model Zoo's defaults of these two are no model of the family, so they are always written.
            always = f.name in ("position_embedding_type", "nonlinearity")
            if f.name == "name" or (value == default and not always):
                continue
            if isinstance(value, Initializer):
                value = {k: v for k, v in dataclasses.asdict(value).items() if v is not None}
            section[f.name] = dict(value) if isinstance(value, Mapping) else _plain(value)
        return section

    def check(self) -> None:
        """Refuse values outside the family or that contradict one another."""

        def demand(holds: bool, key: str, what: str) -> None:
            if not holds:
                raise ModelConfigError(key, f"{what} (got {shown(getattr(self, key))})")

        def demand_of_family(key: str, *values: str) -> None:
            if getattr(self, key) not in values:
                raise OutsideFamilyError(key, getattr(self, key), *values)

        if self.name not in (*STOCK_NAMES, *PLUGIN_NAMES):
            raise OutsideFamilyError("name", self.name, *PLUGIN_NAMES, *STOCK_NAMES)
        demand(
            not self.frozen_parameters or self.name in PLUGIN_NAMES,
            "frozen_parameters",
            f"the Model Zoo's own {self.name!r} freezes nothing; use name: {' or '.join(PLUGIN_NAMES)}",
        )
        for key in _RANGES:
            if getattr(self, key) is not None:
                _check_range(key, getattr(self, key))
        demand(self.hidden_size % self.num_heads == 0, "num_heads", f"must divide hidden_size {self.hidden_size}")
        demand_of_family("position_embedding_type", "alibi", "rotary")
        demand_of_family("nonlinearity", "swiglu")
        demand_of_family("norm_type", "layernorm", "rmsnorm")
        demand(
            self.loss_scaling in ("num_tokens", "batch_size"), "loss_scaling", "must be 'num_tokens' or 'batch_size'"
        )
        demand(
            self.attention_module in ("aiayn_attention", "multiquery_attention"),
            "attention_module",
            "must be 'aiayn_attention' or 'multiquery_attention'",
        )
        unknown = set(self.extra_attention_params) - {"num_kv_groups", "attention_kernel"}
        demand(not unknown, "extra_attention_params", f"unknown key {sorted(unknown)[:1]}; known: num_kv_groups")
        groups = self.extra_attention_params.get("num_kv_groups", 1)
        demand(
            isinstance(groups, int) and SIZE.holds(groups) and self.num_heads % groups == 0,
            "extra_attention_params",
            f"num_kv_groups must be a whole number that divides num_heads {self.num_heads}",
        )
        demand(
            self.attention_module == "multiquery_attention" or "num_kv_groups" not in self.extra_attention_params,
            "attention_module",
            "must be 'multiquery_attention' for num_kv_groups to have an effect",
        )
        if self.position_embedding_type == "rotary":
            dim = self.effective_rotary_dim
            demand(dim % 2 == 0 and 0 < dim <= self.head_dim, "rotary_dim", f"must be even and at most {self.head_dim}")
        demand(
            self.is_mup or self.output_logits_alpha is None,
            "output_logits_alpha",
            "has an effect only with the mup_base_* sizes: give them, or remove it",
        )
        base = [self.mup_base_hidden_size is not None, self.mup_base_filter_size is not None]
        demand(all(base) or not any(base), "mup_base_filter_size", "give both mup_base_* sizes or neither")
        demand(
            not (self.is_mup and self.output_logits_scale),
            "output_logits_scale",
            "is the deprecated form of output_logits_alpha and the mup_base_* sizes: remove one of the two forms",
        )

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
    def effective_rotary_dim(self) -> int:
        """Dimensions of each head that rotate; a quarter of the head where the YAML says nothing (Model Zoo rule)."""
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
            assert self.mup_base_hidden_size is not None
            multiplier = self.hidden_size / self.mup_base_hidden_size
            if not self.scale_output_logits_by_d:
                multiplier = math.sqrt(multiplier)
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


def _coerced(key: str, value: Any, f: dataclasses.Field) -> Any:
    """`value` in the field's type, refusing what is plainly another kind of thing."""
    wanted = str(f.type)
    if value is None:
        if "None" not in wanted and key not in ("embeddings_scale", "attention_logits_alpha", "boundary_casting"):
            raise ModelConfigError(key, f"must not be null; remove the key to use its default {f.default!r}")
        return value if "None" in wanted else f.default
    if wanted.startswith("bool"):
        if not isinstance(value, bool):
            raise ModelConfigError(key, f"must be true or false (got {shown(value)})")
    elif wanted.startswith(("int", "float")):
        _check_range(key, value)
        return int(value) if wanted.startswith("int") else float(value)
    elif wanted.startswith("str"):
        if not isinstance(value, str):
            raise ModelConfigError(key, f"must be a string (got {shown(value)})")
        return value if key in ("name", "attention_kernel") else value.lower()
    elif wanted.startswith("tuple"):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ModelConfigError(key, f"must be a list of strings (got {shown(value)})")
        return tuple(value)
    elif wanted.startswith("Mapping") and not isinstance(value, Mapping):
        raise ModelConfigError(key, f"must be a mapping (got {shown(value)})")
    return value


def _check_range(key: str, value: Any) -> None:
    problem = _RANGES[key].problem(value)
    if problem is not None:
        raise ModelConfigError(key, problem)


def _plain(value: Any) -> Any:
    """A field's value as YAML has it."""
    return list(value) if isinstance(value, tuple) else value
