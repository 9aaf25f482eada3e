"""Programs written by hand; not a test itself.

`REGRESSION` (regression.mlir) is one step of gradient descent with momentum on the squared error of x W, the product in
16 bits: loss = sum (x W - y)^2 / 8, m <- 0.5 m + g, W <- W - lr m, with lr = 1 / (2 + epoch).
"""

from pathlib import Path


def operation(kind, operands, result, attributes="", names=None):
    """A program of one operation: arguments are features a, b, c, ..., results are outputs r0, r1, ...

    Args:
        operands, result: types such as "4x8xf32", in lists.
        names: of the results, where there are several.
    """
    arguments = ", ".join(
        f'%arg{i}: tensor<{type_}> {{cs.input_name = "input_{"abcd"[i]}"}} loc(unknown)'
        for i, type_ in enumerate(operands)
    )
    values = ", ".join(f"%arg{i}" for i in range(len(operands)))
    given, taken = (", ".join(f"tensor<{type_}>" for type_ in types) for types in (result, operands))
    heads = ", ".join(f'tensor<{type_}> {{cs.output_name = "output_r{i}"}}' for i, type_ in enumerate(result))
    names = names or [f"%{i}" for i in range(len(result))]
    braces = f" {{{attributes}}}" if attributes else ""
    return (
        f"module  {{\n  func @graph({arguments}) -> ({heads}) {{\n"
        f"    {', '.join(names)} = cirh.{kind} {values}{braces} : ({taken}) -> ({given}) loc(#loc1)\n"
        f"    return {', '.join(names)} : {given} loc(#loc0)\n  }} loc(#loc0)\n}} loc(#loc0)\n"
        '#loc1 = loc("model.fwd/aten::op"(callsite("f"("a.py":1:0) at "g"("b.py":2:0))))\n'
    )


_STEP = (Path(__file__).parent / "regression.mlir").read_text(encoding="utf-8")


def regression(*, half="cbfloat16", start="2.000000e+00"):
    """The text of REGRESSION with a half type, and another first rate than 1 / 2."""
    return _STEP.replace("HALF", half).replace("START", start)


REGRESSION = regression()
