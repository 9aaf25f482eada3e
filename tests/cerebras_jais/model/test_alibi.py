"""ALiBi slopes follow the published series, for any number of heads."""

import pytest

from cerebras_jais.model.alibi import alibi_slopes


@pytest.mark.parametrize("heads", [1, 2, 8, 32, 64])
def test_slopes_of_a_power_of_two_halve_over_eight_octaves(heads):
    assert alibi_slopes(heads) == pytest.approx([2 ** (-8 * (i + 1) / heads) for i in range(heads)], rel=1e-12)


@pytest.mark.parametrize(("heads", "power"), [(12, 8), (17, 16), (20, 16), (40, 32), (56, 32)])
def test_slopes_of_other_head_counts_add_every_second_slope_of_the_next_power(heads, power):
    rest = [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    assert alibi_slopes(heads) == pytest.approx(alibi_slopes(power) + rest, rel=1e-12)
