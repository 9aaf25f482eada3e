"""Runs `cszoo fit` of the Model Zoo on each YAML given, one after another in one process; not a test itself.

The Model Zoo imports every extension at start; its code-evaluation one needs a package that is not on any index, and
is replaced by an empty one.
"""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import yaml

_BEGINS = "cszoo fit begins"


def modelzoo_fits(folder, sections):
    """Losses by step of the Model Zoo's runs, by name; one process, since nearly all of its time is its imports.

    Args:
        folder: where the YAMLs are put and the runs are started.
        sections: name -> the mapping under `trainer:`.
    """
    from tests.process import PATIENCE  # not where this file is the program

    for name, section in sections.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"trainer": section}, sort_keys=False))
    done = subprocess.run(
        [sys.executable, str(Path(__file__)), *(f"{name}.yaml" for name in sections)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    runs = done.stdout.split(_BEGINS)[1:]
    return {name: _losses(text) for name, text in zip(sections, runs, strict=True)}


def modelzoo_fit(folder, section, name):
    """Losses by step of one run of the Model Zoo."""
    return modelzoo_fits(folder, {name: section})[name]


def _losses(text):
    return {int(step): float(loss) for step, loss in re.findall(r"Train Device=.*?Step=(\d+), Loss=([\d.]+)", text)}


def main() -> None:
    bigcode = types.ModuleType("cerebras.modelzoo.trainer.extensions.bigcode")
    bigcode.BigCodeCLIArgs = type("BigCodeCLIArgs", (), {})
    bigcode.BigCodeEvalHarness = type("BigCodeEvalHarness", (), {})
    sys.modules[bigcode.__name__] = bigcode
    from cerebras.modelzoo.cli.main import main as cszoo

    for path in sys.argv[1:]:
        print(_BEGINS, path, file=sys.stderr, flush=True)
        sys.argv = ["cszoo", "fit", path]
        cszoo()


if __name__ == "__main__":
    main()
