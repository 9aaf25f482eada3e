"""The rules the family's sizes and runs follow, each tested against the numbers that are published."""

from __future__ import annotations

import math

HEAD_WIDTH = 128  # of every published jais-family and Llama-2 model
MUP_BASE_WIDTH = 256  # width of the small model whose learning rate and spread muP carries over
WARMUP_TOKENS = 375_000_000  # of every published jais base run
CHAT_TOKENS_PER_STEP = 264 * 4096  # jais-adapted-70b-chat; jais-30b-chat has the same in 132 sequences of 8,192


def family_filter_size(hidden_size: int) -> int:
    """Width of the feed-forward layer of jais-family 256m to 13b: 8/3 of the hidden size, up to a multiple of 16."""
    return -(-8 * hidden_size // 48) * 16


def old_filter_size(hidden_size: int) -> int:
    """Width of the feed-forward layer of the older jais-13b and jais-30b: 8/3 of the hidden size, rounded down."""
    return 8 * hidden_size // 3


def mup_base_filter_size(hidden_size: int, filter_size: int, base: int = MUP_BASE_WIDTH) -> float:
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
    return round(small[1] * (parameters / small[0]) ** exponent / 80) * 80


def loss_weight(context: int) -> float:
    """`loss_weight` that makes the Model Zoo's per-sequence loss the mean over tokens when all of them count."""
    return 1 / context


def alibi_parameters(hidden: int, layers: int, heads: int, filter_size: int, vocabulary: int) -> int:
    """Parameters of a Jais model: tied embedding, biases everywhere, LayerNorm, one ALiBi slope per head."""
    attention = 4 * (hidden * hidden + hidden)
    feed_forward = 2 * (hidden * filter_size + filter_size) + filter_size * hidden + hidden
    norms = 2 * 2 * hidden
    return vocabulary * hidden + layers * (attention + feed_forward + norms) + 2 * hidden + heads


def rotary_parameters(hidden: int, layers: int, heads: int, kv_heads: int, filter_size: int, vocabulary: int) -> int:
    """Parameters of a Llama model: untied embedding and head, no biases, RMSNorm, grouped keys and values."""
    attention = 2 * hidden * hidden + 2 * hidden * (hidden // heads) * kv_heads
    feed_forward = 3 * hidden * filter_size
    return 2 * vocabulary * hidden + layers * (attention + feed_forward + 2 * hidden) + hidden
