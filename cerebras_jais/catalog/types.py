"""What the catalog states about a model: architecture, phases, data and scores, each value with where it comes from."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any, Generic, Literal, TypeVar

from cerebras_jais.catalog import size_rules as rules
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import parameter_count

T = TypeVar("T")
Origin = Literal["published", "derived", "assumed"]
Family = Literal["jais-family", "jais-adapted"]
Kind = Literal["pretrain", "extend", "embed", "adapt", "chat"]


@dataclass(frozen=True)
class Sourced(Generic[T]):
    """A value with where it comes from: the publication, the rule it follows, or the reason it was chosen."""

    value: T
    origin: Origin
    why: str


def published(value: T, source: str) -> Sourced[T]:
    """A value that `source` states."""
    return Sourced(value, "published", source)


def derived(value: T, rule: str) -> Sourced[T]:
    """A value that follows from published ones by `rule`."""
    return Sourced(value, "derived", rule)


def assumed(value: T, reason: str) -> Sourced[T]:
    """A value nobody published, chosen for `reason`."""
    return Sourced(value, "assumed", reason)


@dataclass(frozen=True)
class MuP:
    """A set of muP constants, found on a model of `base_width`; a set is used whole or not at all."""

    embeddings_scale: Sourced[float]
    output_logits_alpha: Sourced[float]
    init_std: Sourced[float]  # standard deviation of the base model's initial weights
    base_lr: Sourced[float]  # learning rate of the base model
    base_width: int = rules.MUP_BASE_WIDTH


@dataclass(frozen=True)
class Architecture:
    """What a model is: sizes in units of weights, heads and layers; `mup` None for the adapted models."""

    hidden_size: Sourced[int]
    layers: Sourced[int]
    heads: Sourced[int]
    kv_heads: Sourced[int]
    filter_size: Sourced[int]
    vocabulary: Sourced[int]
    mup: MuP | None

    @property
    def parameters(self) -> int:
        """Trained weights, each tied one counted once, with the fixed ALiBi slopes."""
        sizes: dict[str, Any] = {
            "vocab_size": self.vocabulary.value,
            "hidden_size": self.hidden_size.value,
            "num_hidden_layers": self.layers.value,
            "num_heads": self.heads.value,
            "filter_size": self.filter_size.value,
        }
        if self.mup is not None:
            return parameter_count(DecoderConfig.from_section({**rules.JAIS_FORM, **sizes}))
        groups = {
            "attention_module": "multiquery_attention",
            "extra_attention_params": {"num_kv_groups": self.kv_heads.value},
        }
        return parameter_count(DecoderConfig.from_section({**rules.ADAPTED_FORM, **groups, **sizes}))


@dataclass(frozen=True)
class Optimizer:
    """AdamW's constants."""

    betas: Sourced[tuple[float, float]]
    eps: Sourced[float]
    weight_decay: Sourced[float]
    max_gradient_norm: Sourced[float]


@dataclass(frozen=True)
class Precision:
    """Numbers on a CS system: weights and optimizer state are always float32, products are of the half type."""

    half_type: Sourced[str]
    loss_scaling: Sourced[str]


@dataclass(frozen=True)
class Rates:
    """The base model's learning rate: from `initial_lr` to `peak_lr` in `warmup_steps`, then down to `final_lr`."""

    warmup_steps: Sourced[int]
    initial_lr: Sourced[float]
    peak_lr: Sourced[float]
    final_lr: Sourced[float]
    decay: Sourced[Literal["linear", "cosine"]]


@dataclass(frozen=True)
class Phase:
    """One training run of a model.

    `init_from` is (model, phase) of an earlier run, a path of a checkpoint to be made first, or None for random
    weights. `keeps_optimizer_state` keeps the optimizer's state and step of that run; otherwise both restart.
    """

    name: str
    kind: Kind
    context: Sourced[int]
    batch_size: Sourced[int]
    steps: Sourced[int]
    rates: Rates
    optimizer: Optimizer
    precision: Precision
    init_from: tuple[str, str] | str | None = None
    keeps_optimizer_state: bool = False
    frozen: tuple[str, ...] = ()  # regular expressions, searched in the names of the tensors that do not train

    @property
    def tokens(self) -> int:
        """Positions the phase goes through."""
        return self.batch_size.value * self.context.value * self.steps.value


@dataclass(frozen=True)
class TokenMix:
    """Training tokens of a base model in billions; a chat model's is None, its data is counted in pairs."""

    english: Sourced[int]
    arabic: Sourced[int]
    code: Sourced[int]
    total: Sourced[int]


@dataclass(frozen=True)
class Model:
    """One published model."""

    name: str
    family: Family
    architecture: Architecture
    tokenizer: Sourced[str]
    context: Sourced[int]
    mix: TokenMix | None
    parent: Sourced[str | None]
    phases: tuple[Phase, ...]

    @property
    def is_chat(self) -> bool:
        """Whether it is tuned on instructions."""
        return self.mix is None

    @property
    def parameters(self) -> int:
        """See `Architecture.parameters`."""
        return self.architecture.parameters

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Published zero-shot scores in percent by language and benchmark (card).

        Some cells are likely slips of the card, no targets; `copied_cells` of `evaluate.report.card` finds them.
        """
        return {language: dict(found) for language, found in _scores().get(self.name, {}).items()}


@cache
def _scores() -> dict[str, dict[str, dict[str, float]]]:
    text = resources.files("cerebras_jais.catalog").joinpath("published_scores.csv").read_text(encoding="utf-8")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in csv.DictReader(text.splitlines()):
        found.setdefault(row["model"], {}).setdefault(row["language"], {})[row["benchmark"]] = float(row["score"])
    return found
