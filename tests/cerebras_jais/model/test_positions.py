"""ALiBi biases are exact at long range, rotation keeps relative position."""

import pytest
import torch

from cerebras_jais.model.alibi import alibi_slopes
from cerebras_jais.model.positions import alibi_bias_HLS, packed_mask_B1LS, rotary_angles, rotate_BHLD


def test_distances_are_exact_far_beyond_what_half_precision_counts():
    near, far = torch.tensor([100_000]), torch.tensor([1, 99_999])
    bias = alibi_bias_HLS(torch.tensor([[0.5]]), near, far, 1.0)
    assert bias.tolist() == [[[-49_999.5, -0.5]]]


def test_interpolation_divides_the_slopes():
    there = torch.arange(5)
    slopes = torch.tensor(alibi_slopes(4))[:, None]
    assert torch.equal(alibi_bias_HLS(slopes, there, there, 4.0), alibi_bias_HLS(slopes / 4, there, there, 1.0))


def test_packed_mask_shows_each_document_to_itself_and_backwards_only():
    document = torch.tensor([0, 0, 0, 1, 1, 2])
    span = torch.tensor([[2, 1, 0, 1, 0, 0]], dtype=torch.int32)
    back = torch.arange(6)[:, None] >= torch.arange(6)[None, :]
    assert torch.equal(packed_mask_B1LS(span)[0, 0], back & (document[:, None] == document[None, :]))


def test_rotated_products_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 16, generator=generator), torch.randn(1, 1, 1, 16, generator=generator)

    def product(i, j):
        turned = [rotate_BHLD(x, *rotary_angles(torch.tensor([p]), 8, 10000.0, 1.0)) for x, p in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum().item()

    assert product(7, 3) == pytest.approx(product(27, 23), abs=1e-5)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-2)
