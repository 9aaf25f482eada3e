"""The table of docs/scaling.md is what the program prints today.

Contract: the committed table is word for word that of runs/scaling.py, a row for each model of the catalog.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from cerebras_jais.catalog.models import MODELS
from tests.process import PATIENCE

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_committed_table_is_what_the_program_prints():
    program = ROOT / "runs" / "scaling.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines()[2:]] == [model.name for model in MODELS]
    assert done.stdout in (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
