"""The slopes of ALiBi, without torch (Press et al. 2022, arXiv 2108.12409, section 3 and reference code).

A head adds -slope * distance to its attention scores. Position interpolation divides every slope by the same factor,
`pos_scaling_factor` of the config; tensors hold the slopes before the division.
"""

from __future__ import annotations


def alibi_slopes(num_heads: int) -> list[float]:
    """Slopes of ALiBi for any number of heads, steepest first within each of the two series.

    A power of two n gives 2^(-8(i+1)/n). Any other n takes the series of the power of two below it, then every second
    slope of the power of two above it (Model Zoo: layers/AlibiPositionEmbeddingLayer.py). The list is not sorted: 12
    heads give 8 slopes and then 4.
    """

    def series(power: int) -> list[float]:
        ratio = 2.0 ** (-8.0 / power)
        return [ratio**i * ratio for i in range(power)]

    power = 1 << (num_heads.bit_length() - 1)
    return series(power) + series(2 * power)[0::2][: num_heads - power]
