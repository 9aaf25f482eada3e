"""`run-program` refuses what it cannot run in one line, before it prints anything.

Contract: a file that is no program, a program of another batch, and a phase that is not there are UserErrors that name
the file; nothing is printed before them.
"""

import pytest
from click.testing import CliRunner

from cerebras_jais.commands.run_program import run_program
from cerebras_jais.errors import UserError
from tests.cerebras_jais.cirh.text import REGRESSION
from tests.cerebras_jais.modelzoo.runs import TINY, prepare


def refused(*words):
    """The message of the error that a command line ends with."""
    result = CliRunner().invoke(run_program, [str(word) for word in words])
    assert isinstance(result.exception, UserError), result.exception
    assert result.output == ""
    return str(result.exception)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "a.cirh.mlir").write_text(REGRESSION)
    prepare(folder, "jais.yaml", steps=1)
    return folder


def test_what_is_not_a_program_is_named(folder):
    assert refused(TINY / "jais.yaml", "--config", TINY / "jais.yaml").startswith(f"{TINY / 'jais.yaml'}: line 1: not")
    (folder / "\x1b[31m.mlir").write_text("\x1b[32m")
    message = refused(folder / "\x1b[31m.mlir", "--config", TINY / "jais.yaml")
    assert message.endswith(r"/\x1b[31m.mlir': line 1: not a line of a CIRH program: '\x1b[32m'")
    assert "no such file" in refused(folder / "b.mlir", "--config", TINY / "jais.yaml")


def test_a_phase_that_is_not_there_is_named(folder):
    message = refused(folder / "a.cirh.mlir", "--config", TINY / "context.yaml", "--phase", 4)
    assert message.endswith("has 3 phases; there is no phase 4")
    message = refused(folder / "a.cirh.mlir", "--config", TINY / "jais.yaml", "--phase", 2)
    assert message.endswith("has 1 phase; there is no phase 2")


def test_a_program_of_another_model_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder)
    message = refused("a.cirh.mlir", "--config", "jais.yaml", "--checkpoint", "initial.mdl")
    assert message == "a.cirh.mlir: the checkpoint has no model.model.w; the program is of another model"
