"""The 20 models of the family and the phases they are trained in, as data; every value says where it comes from.

Numbers are written once, here; `yaml_files` makes the trainer YAML of them. Sources, in words used below:
"card" is the family's model card, "config.json" that of the model on Hugging Face, "Model Zoo" the jais configs that
Cerebras ships with release 2.10 (they are of the older jais-13b and jais-30b).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from cerebras_jais.catalog import size_rules as rules
from cerebras_jais.catalog.types import (
    Architecture,
    Model,
    MuP,
    Optimizer,
    Phase,
    Precision,
    Rates,
    Sourced,
    TokenMix,
    assumed,
    derived,
    published,
)
from cerebras_jais.errors import UserError
from cerebras_jais.wording import suggestion

# ---- constants shared by several models -------------------------------------------------------------------------

FAMILY_MUP = MuP(
    embeddings_scale=published(9.1705785388303, "config.json of jais-family-590m and others"),
    output_logits_alpha=published(1.09518349815769, "config.json of jais-family-590m and others"),
    init_std=derived(0.0867, "the Model Zoo's config with these muP constants (mixtral params_moe_111M_base) uses it"),
    base_lr=derived(
        0.015625, "card of jais-family-590m, rounded there to 0.01563; that Model Zoo config has all its digits"
    ),
)
LARGE_MUP = MuP(
    embeddings_scale=published(14.6, "config.json of jais-30b-v3, Model Zoo params_jais_30b"),
    output_logits_alpha=published(2.22, "config.json of jais-30b-v3, Model Zoo params_jais_30b"),
    init_std=published(0.073, "Model Zoo params_jais_30b"),
    base_lr=published(0.012, "Model Zoo params_jais_30b_phase1"),
)
MUP_SETS = {"590m to 13b": FAMILY_MUP, "30b": LARGE_MUP}

_CARD_DECAY = published(0.1, "card of jais-family-590m and jais-adapted-70b-chat")
_BETAS = published((0.9, 0.95), "Model Zoo, all its jais and llama configs")
_CLIP = published(1.0, "Model Zoo, all its jais and llama configs")
FAMILY_OPTIMIZER = Optimizer(
    _BETAS, assumed(1e-8, "the Model Zoo's configs with the same muP constants use it"), _CARD_DECAY, _CLIP
)
LARGE_OPTIMIZER = Optimizer(_BETAS, published(8e-10, "Model Zoo params_jais_30b"), _CARD_DECAY, _CLIP)
ADAPTED_OPTIMIZER = Optimizer(_BETAS, assumed(1e-5, "Llama-2 was trained with it"), _CARD_DECAY, _CLIP)

CSX_PRECISION = Precision(
    assumed(
        "cbfloat16",
        "the Model Zoo's configs of jais-30b and Llama-2 use it; the card's fp32 is that of weights and optimizer",
    ),
    derived("dynamic", "cbfloat16 on a CS system needs it"),
)

FAMILY_TOKENIZER = published("jais-family (byte-level BPE, <|endoftext|> = 0)", "tokenizer.json")
ADAPTED_TOKENIZER = published("Llama-2 with 32,000 Arabic tokens added", "card")
_FAMILY_VOCABULARY = published(84992, "config.json")
_ADAPTED_VOCABULARY = published(64000, "card: 32,000 of Llama-2 and 32,000 of jais-30b")


# ---- jais-family ------------------------------------------------------------------------------------------------


def _family_architecture(hidden: int, layers: int, known: str | None) -> Architecture:
    """Sizes of 590m to 13b; `known` is the source of the published ones, None where only the layers are known."""
    heads, filter_size = hidden // rules.HEAD_WIDTH, rules.family_filter_size(hidden)
    if known is not None:
        return Architecture(
            published(hidden, known),
            published(layers, known),
            published(heads, known),
            published(heads, known),
            published(filter_size, known),
            _FAMILY_VOCABULARY,
            FAMILY_MUP,
        )
    return Architecture(
        derived(hidden, "the width that gives 1.3 billion parameters in 24 layers of heads of 128"),
        published(layers, "llama.cpp, which knows the 1.3B model by its 24 layers"),
        derived(heads, "hidden size / 128, as in every published size"),
        derived(heads, "as many as heads, as in every published size"),
        derived(filter_size, "8/3 of the hidden size, up to a multiple of 16, as in every published size"),
        _FAMILY_VOCABULARY,
        FAMILY_MUP,
    )


_LARGE = "config.json of jais-30b-v3 and Model Zoo params_jais_30b, taken to be the same"
LARGE_ARCHITECTURE = Architecture(
    derived(7168, _LARGE),
    derived(48, _LARGE),
    derived(56, _LARGE),
    derived(56, _LARGE),
    derived(19114, _LARGE),
    _FAMILY_VOCABULARY,
    LARGE_MUP,
)


def _mix(english: int, arabic: int, code: int, total: int) -> TokenMix:
    return TokenMix(*(published(billions, "card") for billions in (english, arabic, code, total)))


def _family_base(size: str, hidden: int, layers: int, known: str | None) -> Model:
    architecture = _family_architecture(hidden, layers, known)
    context = published(2048, "card")
    last = 4.21e-05
    if size == "590m":
        batch, steps = published(1120, "card of jais-family-590m"), published(209422, "card of jais-family-590m")
        warmup = published(163, "card of jais-family-590m")
        rate_end = published(last, "card of jais-family-590m")
    else:
        if size == "13b":
            batch = assumed(1920, "Model Zoo params_jais_13b, the older model of the same width and depth")
        else:
            batch = assumed(
                rules.interpolated_batch_size(architecture.parameters),
                "on the power law of parameters through 590m (1,120) and jais-13b (1,920), to a multiple of 80",
            )
        steps = derived(rules.steps_for(480e9, batch.value, 2048), "480 billion tokens (card) / (batch x 2,048)")
        warmup = derived(rules.warmup_steps(batch.value, 2048), "375 million tokens, as of 590m, jais-13b and jais-30b")
        rate_end = assumed(last, "as of jais-family-590m")
    rates = Rates(
        warmup,
        published(0.0, "card of jais-family-590m") if size == "590m" else assumed(0.0, "as of jais-family-590m"),
        FAMILY_MUP.base_lr if size == "590m" else assumed(0.015625, "muP: the base rate is that of 590m"),
        rate_end,
        assumed("linear", "as in the Model Zoo's jais configs; the card gives both ends only"),
    )
    phase = Phase("pretrain", "pretrain", context, batch, steps, rates, FAMILY_OPTIMIZER, CSX_PRECISION)
    return Model(
        f"jais-family-{size}",
        "jais-family",
        architecture,
        FAMILY_TOKENIZER,
        context,
        _mix(283, 141, 56, 480),
        published(None, "card: trained from scratch"),
        (phase,),
    )


_RATE_8K, _RATE_END = 0.00156280142255127, 0.00048
_2K = Phase(
    "2k",
    "pretrain",
    published(2048, "card: 2k, then 8k, then 16k"),
    assumed(2640, "Model Zoo params_jais_30b_phase1"),
    derived(189929, "Model Zoo params_jais_30b begins its 8k phase there: max_steps 260,648 - 70,719"),
    Rates(
        derived(
            rules.warmup_steps(2640, 2048), "375 million tokens; equal to that of Model Zoo params_jais_30b_phase1"
        ),
        assumed(0.0, "Model Zoo params_jais_30b_phase1"),
        LARGE_MUP.base_lr,
        derived(_RATE_8K, "where the 8k phase of Model Zoo params_jais_30b begins"),
        assumed("linear", "Model Zoo params_jais_30b_phase1"),
    ),
    LARGE_OPTIMIZER,
    CSX_PRECISION,
)
_8K = Phase(
    "8k",
    "extend",
    published(8192, "card: 2k, then 8k, then 16k"),
    assumed(768, "Model Zoo params_jais_30b"),
    assumed(70719, "Model Zoo params_jais_30b; with 2k it makes 1,472 of the card's 1,500 billion tokens"),
    Rates(
        assumed(0, "Model Zoo params_jais_30b: the rate continues where it was"),
        assumed(_RATE_8K, "Model Zoo params_jais_30b"),
        assumed(_RATE_8K, "Model Zoo params_jais_30b"),
        assumed(_RATE_END, "Model Zoo params_jais_30b"),
        assumed("linear", "Model Zoo params_jais_30b"),
    ),
    LARGE_OPTIMIZER,
    CSX_PRECISION,
    init_from=("jais-family-30b-8k", "2k"),
    keeps_optimizer_state=True,
)
_16K = Phase(
    "16k",
    "extend",
    published(16384, "card: 2k, then 8k, then 16k"),
    assumed(384, "as many tokens per step as in the 8k phase"),
    derived(rules.steps_for(166e9, 384, 16384), "1,666 - 1,500 billion tokens (card) / (384 x 16,384)"),
    Rates(
        assumed(0, "the rate continues where it was"),
        assumed(_RATE_END, "where the 8k phase ends"),
        assumed(_RATE_END, "where the 8k phase ends"),
        assumed(4.8e-05, "a tenth of where the phase begins"),
        assumed("linear", "as in the phases before"),
    ),
    LARGE_OPTIMIZER,
    CSX_PRECISION,
    init_from=("jais-family-30b-8k", "8k"),
    keeps_optimizer_state=True,
)


# ---- jais-adapted -----------------------------------------------------------------------------------------------

BACKBONE = (r"transformer_decoder\.", r"ln_f\.")  # everything but the embedding and the head
_STAGE_1_TOKENS = 15e9
_ADAPTED_BATCH = 1024  # 4 million tokens a step, Llama-2's


def _adapted_base(
    size: str, shape: tuple[int, int, int, int, int], known: str, llama_rate: float, mix: tuple[int, int, int, int]
) -> Model:
    hidden, layers, heads, kv_heads, filter_size = shape
    kind = published if size in ("7b", "13b") else derived
    architecture = Architecture(
        kind(hidden, known),
        kind(layers, known),
        kind(heads, known),
        kind(kv_heads, known),
        kind(filter_size, known),
        _ADAPTED_VOCABULARY,
        None,
    )
    context = published(4096, "card")
    batch = assumed(_ADAPTED_BATCH, "Llama-2 was trained with 4 million tokens a step")
    first, tenth = assumed(0.0, "as in instruction tuning"), "a tenth of the peak, as in instruction tuning"
    cosine: Sourced[Literal["linear", "cosine"]] = assumed("cosine", "as in instruction tuning")
    steps_1 = rules.steps_for(_STAGE_1_TOKENS, _ADAPTED_BATCH, 4096)
    steps_2 = rules.steps_for(mix[3] * 1e9 - _STAGE_1_TOKENS, _ADAPTED_BATCH, 4096)
    warmup = assumed(100, "about 400 million tokens, as in the base runs")
    stage_1 = Phase(
        "stage-1",
        "embed",
        context,
        batch,
        derived(steps_1, "about 15 billion tokens (card) / (1,024 x 4,096)"),
        Rates(warmup, first, assumed(llama_rate, "Llama-2's peak"), assumed(round(llama_rate / 10, 9), tenth), cosine),
        ADAPTED_OPTIMIZER,
        CSX_PRECISION,
        init_from=f"model/jais-adapted-{size}/extended.mdl",
        frozen=BACKBONE,
    )
    stage_2 = Phase(
        "stage-2",
        "adapt",
        context,
        batch,
        derived(steps_2, f"the card's {mix[3]} billion tokens less stage 1's 15, taken to be among them"),
        Rates(
            warmup,
            first,
            assumed(llama_rate / 2, "half of Llama-2's peak: the model is trained already"),
            assumed(round(llama_rate / 20, 9), tenth),
            cosine,
        ),
        ADAPTED_OPTIMIZER,
        CSX_PRECISION,
        init_from=(f"jais-adapted-{size}", "stage-1"),
    )
    return Model(
        f"jais-adapted-{size}",
        "jais-adapted",
        architecture,
        ADAPTED_TOKENIZER,
        context,
        _mix(*mix),
        published(f"Llama-2-{size}", "card"),
        (stage_1, stage_2),
    )


# ---- chat -------------------------------------------------------------------------------------------------------


def _chat(base: Model) -> Model:
    """The model tuned on instructions from `base`: published for jais-adapted-70b-chat, assumed alike for the rest."""
    context = base.context
    if base.name == "jais-adapted-70b":
        known = "card of jais-adapted-70b-chat"
        batch, steps = published(264, known), published(13175, known)
        rates = Rates(
            published(380, known),
            published(0.0, known),
            published(2.0e-05, known),
            published(2.0e-06, known),
            published("cosine", known),
        )
    else:
        batch = assumed(
            rules.chat_batch_size(context.value), "as many tokens a step as jais-adapted-70b-chat and jais-30b-chat"
        )
        steps = assumed(13175, "as many steps, and so tokens, as jais-adapted-70b-chat: the data is the same")
        if base.family == "jais-adapted":
            alike = "as of jais-adapted-70b-chat"
            rates = Rates(
                assumed(380, alike),
                assumed(0.0, alike),
                assumed(2.0e-05, alike),
                assumed(2.0e-06, alike),
                assumed("cosine", alike),
            )
        else:
            mup = base.architecture.mup
            assert mup is not None
            share = "the share of the base rate that Model Zoo params_jais_30b_chat takes (0.0016 of 0.012)"
            peak = round(mup.base_lr.value * 0.0016 / 0.012, 10)
            rates = Rates(
                assumed(380, "as of jais-adapted-70b-chat"),
                assumed(0.0, "as of jais-adapted-70b-chat"),
                assumed(peak, share),
                assumed(round(peak / 10, 11), "a tenth of the peak, as in Model Zoo params_jais_30b_chat"),
                assumed("linear", "as in Model Zoo params_jais_30b_chat"),
            )
    phase = replace(
        base.phases[-1],
        name="chat",
        kind="chat",
        batch_size=batch,
        steps=steps,
        rates=rates,
        init_from=(base.name, base.phases[-1].name),
        keeps_optimizer_state=False,
    )
    return replace(base, name=f"{base.name}-chat", mix=None, parent=published(base.name, "card"), phases=(phase,))


# ---- the 20 -----------------------------------------------------------------------------------------------------

_BASES = (
    Model(
        "jais-family-30b-16k",
        "jais-family",
        LARGE_ARCHITECTURE,
        FAMILY_TOKENIZER,
        published(16384, "card"),
        _mix(980, 490, 196, 1666),
        derived("jais-family-30b-8k", "card: the context of jais-30b grew from 8k to 16k in training"),
        (_16K,),
    ),
    Model(
        "jais-family-30b-8k",
        "jais-family",
        LARGE_ARCHITECTURE,
        FAMILY_TOKENIZER,
        published(8192, "card"),
        _mix(882, 441, 177, 1500),
        published(None, "card: trained from scratch"),
        (_2K, _8K),
    ),
    _family_base("13b", 5120, 40, "config.json of jais-family-13b-chat"),
    _family_base("6p7b", 4096, 32, "config.json of jais-family-6p7b-chat"),
    _family_base("2p7b", 2560, 32, "config.json of jais-family-2p7b-chat"),
    _family_base("1p3b", 2048, 24, None),
    _family_base("590m", 1536, 18, "config.json of jais-family-590m"),
    _adapted_base(
        "70b",
        (8192, 80, 64, 8, 28672),
        "Llama-2-70b's, whose size with 64,000 tokens is the published 69.501 billion",
        1.5e-4,
        (33, 334, 4, 371),
    ),
    _adapted_base(
        "13b", (5120, 40, 40, 40, 13824), "config.json of jais-adapted-13b-chat", 3.0e-4, (127, 140, 13, 280)
    ),
    _adapted_base("7b", (4096, 32, 32, 32, 11008), "config.json of jais-adapted-7b-chat", 3.0e-4, (18, 19, 2, 39)),
)
MODELS: tuple[Model, ...] = tuple(model for base in _BASES for model in (base, _chat(base)))


def find_model(name: str) -> Model:
    """The model of a name, in any case. Raises UserError that names the closest one."""
    by_name = {model.name: model for model in MODELS}
    found = by_name.get(name.lower())
    if found is None:
        raise UserError(
            f"{name}: not one of the family's models; "
            + suggestion(name, by_name, otherwise="`cerebras-jais models` lists them")
        )
    return found


def lineage(model: Model) -> tuple[tuple[Model, Phase], ...]:
    """All phases of a base model from its first weights on, its parents' within the family included."""
    before: tuple[tuple[Model, Phase], ...] = ()
    if not model.is_chat and any(m.name == model.parent.value for m in MODELS):
        before = lineage(find_model(str(model.parent.value)))
    return (*before, *((model, phase) for phase in model.phases))


def last_step(phase: Phase, models: Sequence[Model] = MODELS) -> int:
    """The step a phase ends at, counted from the first of those whose optimizer it carries on."""
    if not phase.keeps_optimizer_state or not isinstance(phase.init_from, tuple):
        return phase.steps.value
    named, ending = phase.init_from
    (earlier,) = (p for model in models if model.name == named for p in model.phases if p.name == ending)
    return last_step(earlier, models) + phase.steps.value
