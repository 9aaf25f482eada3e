"""A program in numbers: what it holds, changes and costs, and when two programs are one.

Contract: FLOPs are 2 m n k of each product; a tensor that is returned as it was given is only read; programs that
differ in constants alone share a digest, programs that differ in anything else do not.
"""

import pytest

from cerebras_jais.cirh.program import read_program
from cerebras_jais.cirh.summary import summarize
from tests.cerebras_jais.cirh.text import REGRESSION, operation, regression


def test_products_cost_two_flops_for_each_term():
    assert summarize(read_program(REGRESSION)).product_flops == 2 * 4 * 3 * 2 * 2
    attributes = ", ".join(
        f"{side}_{kind}_dimensions = dense<{value}> : tensor<{count}xi64>"
        for side, kind, value, count in [
            ("lhs", "batching", "[0, 1]", 2),
            ("lhs", "contracting", 3, 1),
            ("rhs", "batching", "[0, 1]", 2),
            ("rhs", "contracting", 2, 1),
        ]
    )
    product = operation("DotGeneral", ["2x3x5x7xf32", "2x3x7x11xf32"], ["2x3x5x11xf32"], attributes)
    assert summarize(read_program(product)).product_flops == 2 * (2 * 3) * 5 * 7 * 11


def test_what_a_step_changes_reads_and_leaves_alone():
    summary = summarize(read_program(REGRESSION))
    assert summary.changed == (
        "model.model.w",
        "optimizer.state.0.momentum",
        "schedulers.0.last_epoch",
        "optimizer.state.0.power",
    )
    assert summary.read == ()
    assert summary.untouched == ("model.model.frozen",)
    assert list(summary.inputs) == ["x", "y"]
    assert (summary.weights.elements, summary.weights.bytes) == (8, 32)
    assert summary.states.elements_by_dtype == {"f32": 7, "i64": 1}
    assert summary.operations["Mul"] == 6


def test_another_rate_is_the_same_program_but_for_its_numbers():
    one, other = (summarize(read_program(regression(start=start))) for start in ("2.000000e+00", "4.000000e+00"))
    assert one.digest == other.digest
    assert one.exact_digest != other.exact_digest


def test_layout_and_sources_of_the_text_do_not_count():
    text = REGRESSION.replace("a.py", "elsewhere.py").replace("    %", "  %").replace(" loc(unknown)", "")
    assert summarize(read_program(text)) == summarize(read_program(REGRESSION))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("4x", "8x"),
        ("f16", "bf16"),
        ("cirh.Reciprocal", "cirh.Sqrt"),
        ('"state.model.model.w"', '"state.model.model.v"'),
    ],
)
def test_another_shape_type_operation_or_name_is_another_program(before, after):
    other = REGRESSION.replace(before, after)
    assert summarize(read_program(other)).digest != summarize(read_program(REGRESSION)).digest
