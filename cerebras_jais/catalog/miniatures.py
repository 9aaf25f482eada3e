"""A small twin of each kind of run, for a CPU: the family's rules at sizes that train in seconds."""

from __future__ import annotations

from typing import TypeVar

from cerebras_jais.catalog import size_rules as rules
from cerebras_jais.catalog.models import BACKBONE, FAMILY_MUP, LARGE_MUP
from cerebras_jais.catalog.types import (
    Architecture,
    Family,
    Model,
    MuP,
    Optimizer,
    Phase,
    Precision,
    Rates,
    Sourced,
    assumed,
    derived,
    published,
)

T = TypeVar("T")
CPU_PRECISION = Precision(assumed("float32", ""), assumed("none", ""))
BASE_WIDTH = 64  # of the miniatures' own muP base


def _small(value: T) -> Sourced[T]:
    return assumed(value, "")


_OPTIMIZER = Optimizer(_small((0.9, 0.95)), _small(1e-8), _small(0.1), _small(1.0))


def _alibi(hidden: int, layers: int, heads: int, vocabulary: int, mup: MuP) -> Architecture:
    return Architecture(
        _small(hidden),
        _small(layers),
        _small(heads),
        _small(heads),
        derived(rules.family_filter_size(hidden), "8/3 of the hidden size, the family's rule"),
        _small(vocabulary),
        MuP(mup.embeddings_scale, mup.output_logits_alpha, mup.init_std, mup.base_lr, BASE_WIDTH),
    )


_ROTARY = Architecture(
    _small(192),
    _small(4),
    _small(12),
    derived(4, "grouped queries, as in jais-adapted-70b"),
    _small(512),
    _small(2048),
    None,
)


def _rates(warmup: int, peak: float, last: float, decay: str, why: str = "", first: float = 0.0) -> Rates:
    return Rates(
        _small(warmup),
        _small(first),
        assumed(peak, why),
        _small(last),
        _small("cosine" if decay == "cosine" else "linear"),
    )


def _model(name: str, architecture: Architecture, *phases: Phase) -> Model:
    family: Family = "jais-family" if architecture.mup is not None else "jais-adapted"
    tokenizer = _small("as trained on the text: `cerebras-jais data tokenizer`")
    return Model(name, family, architecture, tokenizer, phases[-1].context, None, published(None, ""), phases)


def _phase(
    name: str,
    kind: str,
    context: int,
    batch: int,
    steps: int,
    rates: Rates,
    init_from: tuple[str, str] | None = None,
    keeps_optimizer_state: bool = False,
    frozen: tuple[str, ...] = (),
) -> Phase:
    return Phase(
        name,
        kind,  # type: ignore[arg-type]
        _small(context),
        _small(batch),
        _small(steps),
        rates,
        _OPTIMIZER,
        CPU_PRECISION,
        init_from,
        keeps_optimizer_state,
        frozen,
    )


_TINY = _alibi(192, 4, 12, 2048, FAMILY_MUP)
_PEAK = FAMILY_MUP.base_lr.value

JAIS = _model(
    "tiny/jais",
    _TINY,
    _phase(
        "pretrain", "pretrain", 128, 8, 100,
        _rates(10, _PEAK, 0.0005, "linear", "the family's base rate; muP scales it down for the matrices"),
    ),
)  # fmt: skip
ADAPTED = _model(
    "tiny/adapted", _ROTARY, _phase("pretrain", "pretrain", 128, 8, 100, _rates(10, 0.003, 0.0003, "cosine"))
)
# As in jais-family-30b the context grows twice, each phase sees as many tokens a step, and the rate continues.
CONTEXT = _model(
    "tiny/context",
    _alibi(192, 4, 12, 2048, LARGE_MUP),
    _phase("32", "pretrain", 32, 32, 30, _rates(10, 0.012, 0.008, "linear", "the base rate of 30b")),
    _phase(
        "64", "extend", 64, 16, 30, _rates(0, 0.008, 0.004, "linear", first=0.008), ("tiny/context", "32"), True
    ),
    _phase(
        "128", "extend", 128, 8, 30, _rates(0, 0.004, 0.0012, "linear", first=0.004), ("tiny/context", "64"), True
    ),
)  # fmt: skip
STAGES = _model(
    "tiny/stages",
    _ROTARY,
    _phase("stage-1", "embed", 128, 8, 30, _rates(5, 0.003, 0.0003, "cosine"), frozen=BACKBONE),
    _phase("stage-2", "adapt", 128, 8, 30, _rates(5, 0.0015, 0.00015, "cosine"), ("tiny/stages", "stage-1")),
)
# The prompt alone is about 200 tokens of a vocabulary this small; ALiBi has no weights that belong to positions.
CHAT = _model(
    "tiny/chat",
    _TINY,
    _phase("chat", "chat", 512, 8, 30, _rates(5, 0.002, 0.0002, "linear"), ("tiny/jais", "pretrain")),
)
SMALL = _model(
    "small/jais",
    _alibi(384, 8, 12, 4096, FAMILY_MUP),
    _phase(
        "pretrain", "pretrain", 256, 4, 400,
        _rates(20, 0.004, 0.0004, "linear", "a quarter of the family's base rate: batches are small"),
    ),
)  # fmt: skip
MINIATURES = (JAIS, ADAPTED, CONTEXT, STAGES, CHAT, SMALL)
