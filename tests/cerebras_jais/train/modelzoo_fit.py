"""Runs `cszoo fit` of the Model Zoo on a YAML; not a test itself.

The Model Zoo imports every extension at start; its code-evaluation one needs a package that is not on any index, and
is replaced by an empty one.
"""

import sys
import types


def main() -> None:
    bigcode = types.ModuleType("cerebras.modelzoo.trainer.extensions.bigcode")
    bigcode.BigCodeCLIArgs = type("BigCodeCLIArgs", (), {})
    bigcode.BigCodeEvalHarness = type("BigCodeEvalHarness", (), {})
    sys.modules[bigcode.__name__] = bigcode
    from cerebras.modelzoo.cli.main import main as cszoo

    sys.argv = ["cszoo", "fit", *sys.argv[1:]]
    cszoo()


if __name__ == "__main__":
    main()
