"""The rules the family's sizes and runs follow, each tested against the numbers that are published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# What the models of a family share beside their sizes: the keys of `model:` that decide which tensors there are.
JAIS_FORM: Mapping[str, Any] = {
    "position_embedding_type": "alibi",
    "norm_type": "layernorm",
    "share_embedding_weights": True,
    "use_bias_in_output": False,
    "use_ffn_bias": True,
    "use_ffn_bias_in_attention": True,
    "use_projection_bias_in_attention": True,
}
ADAPTED_FORM: Mapping[str, Any] = {
    "position_embedding_type": "rotary",
    "norm_type": "rmsnorm",
    "share_embedding_weights": False,
    "use_bias_in_output": False,
    "use_ffn_bias": False,
    "use_ffn_bias_in_attention": False,
    "use_projection_bias_in_attention": False,
}

HEAD_WIDTH = 128  # of every published jais-family and Llama-2 model
# Width of the small model whose learning rate and initial weights muP carries over: every published config that states
# it has mup_width_scale = 256 / n_embd.
MUP_BASE_WIDTH = 256
WARMUP_TOKENS = 375_000_000  # of every published jais base run
CHAT_TOKENS_PER_STEP = 264 * 4096  # jais-adapted-70b-chat; jais-30b-chat has the same in 132 sequences of 8,192


def family_filter_size(hidden_size: int) -> int:
    """Width of the feed-forward layer of jais-family 256m to 13b: 8/3 of the hidden size, up to a multiple of 16."""
    return -(-8 * hidden_size // 48) * 16


def mup_base_filter_size(hidden_size: int, filter_size: int, base: float = MUP_BASE_WIDTH) -> float:
    """The base model's filter size, such that both of muP's width multipliers are hidden_size / base exactly."""
    return filter_size * base / hidden_size


def warmup_steps(batch_size: int, context: int) -> int:
    """Steps of warm-up of a base run: 375 million tokens, rounded down."""
    return WARMUP_TOKENS // (batch_size * context)


def steps_for(tokens: float, batch_size: int, context: int) -> int:
    """Optimizer steps that see `tokens` tokens, to the nearest."""
    return round(tokens / (batch_size * context))


def chat_batch_size(context: int) -> int:
    """Sequences per step of instruction tuning: always the tokens of the published runs."""
    return CHAT_TOKENS_PER_STEP // context


def interpolated_batch_size(parameters: int) -> int:
    """Batch of a base run nobody published: on the power law through 590m (1,120) and jais-13b (1,920), to 80s."""
    small, large = (640_555_020, 1120), (13_027_571_240, 1920)
    exponent = math.log(large[1] / small[1]) / math.log(large[0] / small[0])
    return round(small[1] * math.pow(parameters / small[0], exponent) / 80) * 80


def loss_weight(context: int) -> float:
    """`loss_weight` that makes the Model Zoo's per-sequence loss the mean over tokens when all of them count."""
    return 1 / context
