"""A program's text is read whole: every argument, operation and result, or an error that names the line.

Contract: names, types, attributes, constants and sources are those of the text; a changed, cut or foreign text is
refused in one line with its number, whatever is cut away.
"""

import math
import random

import pytest

from cerebras_jais.cirh.program import ProgramError, TensorType, read_program
from cerebras_jais.cirh.summary import summarize
from tests.cerebras_jais.cirh.text import REGRESSION, operation


def constant(text, type_):
    program = (
        f"module  {{\n  func @graph() -> tensor<{type_}> {{\n    %c = cirh.Const dense<{text}> : tensor<{type_}>\n"
    )
    return read_program(program + f"    return %c : tensor<{type_}>\n  }}\n}}\n").operations[0].attributes["value"]


def test_arguments_have_their_names_in_a_checkpoint_and_their_next_values():
    program = read_program(REGRESSION)
    weight, momentum, epoch, x, *_ = program.arguments
    assert (weight.resource, weight.alias, weight.input) == ("model.model.w", 1, None)
    assert weight.type == TensorType((3, 2), "f32")
    assert (momentum.resource, epoch.type) == ("optimizer.state.0.momentum", TensorType((), "i64"))
    assert (x.resource, x.input, x.alias) == (None, "x", None)
    assert [result.output for result in program.results] == ["loss", *[None] * 5]
    assert program.results[weight.alias].value == "%17"
    assert program.attributes == {"cs.fp16_type": "cbfloat16", "cs.pol": 1}


def test_operations_have_their_types_attributes_and_source():
    program = read_program(REGRESSION)
    assert len(program.operations) == 28
    product = next(each for each in program.operations if each.kind == "MatMul")
    assert product.results == ("%2",)
    assert product.operands == ("%0", "%1")
    assert product.attributes == {"cs.internal": {}, "transpose_a": False, "transpose_b": False}
    assert [str(type_) for type_ in product.operand_types] == ["tensor<4x3xf16>", "tensor<3x2xf16>"]
    assert product.result_types == (TensorType((4, 2), "f16"),)
    assert product.source == "model.fwd/aten::mm"
    shared = next(each for each in program.operations if each.kind == "Sub")
    assert shared.operand_types == (TensorType((4, 2), "f32"),) * 2


def test_an_operation_may_have_several_results():
    names = ["%result", "%beta_grad", "%gamma_grad"]
    text = operation("LayerNormGrad", ["4x8xf32"] * 2 + ["8xf32"] * 2, ["4x8xf32", "8xf32", "8xf32"], names=names)
    assert read_program(text).operations[0].results == tuple(names)


@pytest.mark.parametrize(
    ("text", "type_", "values"),
    [
        ("9.99999993E-9", "512xf32", (9.99999993922529e-09,)),
        ("3.652340e-01", "8xbf16", (0.365234375,)),
        ("3.649900e-01", "8xf16", (0.364990234375,)),
        ("[0, 2, 1, 3]", "4xi64", (0, 2, 1, 3)),
        ("[[1.0, -2.5], [3.0, 4.0]]", "2x2xf32", (1.0, -2.5, 3.0, 4.0)),
        ("0xFF80", "8xbf16", (-math.inf,)),
        ("0xFF800000", "f32", (-math.inf,)),
        ("0xFC00", "f16", (-math.inf,)),
        ("true", "4xi1", (True,)),
        ('"0x0000803F000000C0"', "2xf32", (1.0, -2.0)),
        ('"0xFFFFFFFFFFFFFFFF0200000000000000"', "2xi64", (-1, 2)),
        ("", "0xi64", ()),
    ],
)
def test_constants_are_splats_lists_bits_or_bytes(text, type_, values):
    assert constant(text, type_).values == values


def test_a_constant_of_another_length_is_refused():
    with pytest.raises(ProgramError, match="line 3: a constant of 4 elements, not 3"):
        constant("[1, 2, 3]", "4xi64")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("cirh.Sub", "cirh2.Sub", r"line 14: not a line of a CIRH program: '%4 = cirh2.Sub"),
        ("%4, %4 : tensor<4x2xf32>", "%4, %99 : tensor<4x2xf32>", "line 15: %99 is not defined"),
        ("%4, %4 : tensor<4x2xf32>", "%4, %4 : tensor<4x3xf32>", r"line 15: %4 is tensor<4x2xf32>, and is used as"),
        ("%4, %4 : tensor<4x2xf32>", "%4, %4", "line 15: cirh.Mul without its types"),
        ("tensor<4x3xf16> loc", "tensor<4x3xf8> loc", "line 10: an element type that is not known"),
        ("tensor<4x3xf16> loc", "memref<4x3xf16> loc", "line 10: not types of tensors"),
        ("Truncate = false}", "Truncate = false", "line 10: braces that do not close"),
        ("Truncate = false}", "Truncate = @}", "line 10: a value is expected before"),
        ("aliasing_output = 2", "aliasing_output = 1", "results that tf.aliasing_output names are not one for each"),
        ("aliasing_output = 5", "aliasing_output = 9", "results that tf.aliasing_output names are not one for each"),
        ("return %7, %17", "return %17, %7", "line 32: %17 is tensor<3x2xf32>, and is used as tensor<f32>"),
        ("(tensor<f32> {cs.output", "(tensor<i64> {cs.output", "line 32: returns other types than the head"),
    ],
)
def test_what_is_not_understood_is_one_line_with_its_number(before, after, message):
    assert before in REGRESSION
    with pytest.raises(ProgramError, match=message) as error:
        read_program(REGRESSION.replace(before, after, 1))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ("tf.resource_name = 5", "tf.resource_name must be a text"),
        ('tf.resource_name = "\x1b[31m"', r"tf.resource_name must be printable text \(got '\\x1b\[31m'\)"),
        ("cs.input_name = true", "cs.input_name must be a text"),
        ("tf.aliasing_output = {a = 1}", "tf.aliasing_output must be a whole number"),
        ("tf.aliasing_output = 0.0 : f32", "tf.aliasing_output must be a whole number"),
        ("tf.aliasing_output = true", "tf.aliasing_output must be a whole number"),
        ("x = 1.0 : f80", "a value that its type can have is expected before"),
        ("x = 99999999999999999999", "a value that its type can have is expected before"),
    ],
)
def test_an_attribute_of_another_type_is_one_line_with_its_number(attributes, message):
    with pytest.raises(ProgramError, match=f"^line 1: {message}"):
        read_program(
            f"func @graph(%arg0: tensor<f32> {{{attributes}}}) -> tensor<f32> {{\n  return %arg0 : tensor<f32>\n}}"
        )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%0 = cirh.Const {value = 5} : tensor<f32>", "cirh.Const must have a value dense"),
        ("%0 = cirh.Const : tensor<f32>", "cirh.Const must have a value dense"),
        ("cirh.Const dense<5.0> : tensor<f32>", "cirh.Const must have a value dense"),
        ("%0 = cirh.Const {value = dense<> : tensor<0xf32>} : tensor<f32>", "cirh.Const must have a value dense"),
        (f"%0 = cirh.Const dense<5.0> : tensor<{'9' * 5000}xf32>", "the type of a tensor is expected"),
        (f"%0 = cirh.Abs %arg0 : tensor<{'9' * 5000}xf32>", "not types of tensors"),
        ("%0 = \x1b[31m", r"not a line of a CIRH program: '%0 = \\x1b\[31m'$"),
    ],
)
def test_an_operation_that_is_not_whole_is_one_line_with_its_number(line, message):
    with pytest.raises(ProgramError, match=f"^line 2: {message}"):
        read_program(f"func @graph(%arg0: tensor<f32>) -> tensor<f32> {{\n{line}\n  return %arg0 : tensor<f32>\n}}")


def test_a_name_that_is_no_text_is_refused_among_results_too():
    with pytest.raises(ProgramError, match=r"line 1: cs.output_name must be a text"):
        read_program("func @graph() -> (tensor<f32> {cs.output_name = 7}) {\n}")


def test_a_text_that_is_cut_anywhere_is_read_whole_or_refused():
    whole = read_program(REGRESSION)
    generator = random.Random(0)
    for _ in range(300):
        at = generator.randrange(len(REGRESSION))
        try:
            program = read_program(REGRESSION[:at])
        except ProgramError:
            continue
        assert program.results == whole.results
        assert len(program.operations) == len(whole.operations)


@pytest.mark.parametrize("text", ["1e10", '"0xZZ"', "[" * 5000])
def test_a_constant_that_its_type_cannot_have_is_refused(text):
    with pytest.raises(ProgramError, match="line 3"):
        constant(text, "8xf16")


def test_a_text_that_is_changed_anywhere_is_read_or_refused():
    generator = random.Random(1)
    for _ in range(500):
        at, length = generator.randrange(len(REGRESSION)), generator.choice([0, 1, 5])
        other = generator.choice(["", "%", "{", "[", "<", ">", "9" * 9, "dense<", "\n", REGRESSION[at : at + 40]])
        try:
            program = read_program(REGRESSION[:at] + other + REGRESSION[at + length :])
            assert summarize(program).digest
        except ProgramError:
            continue
        assert program.results


@pytest.mark.parametrize("text", ["", "module  {\n}\n", "{}", "\0", "func @graph("])
def test_other_text_is_not_a_program(text):
    with pytest.raises(ProgramError):
        read_program(text)
