"""Imports run one way: command lines, then rooms, then the model and the checkpoint; and never back.

Contract: every `import` in the two packages, found by walking their syntax trees, follows an arrow of ALLOWED; only
`cerebras_jais.modelzoo` imports Cerebras packages; the code shipped in a release imports nothing of this project;
the command lines import nothing heavy before a verb runs.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"errors", "ranges", "encoding", "files", "progress", "commandline"}  # used by every room
LOW = BASE | {"model", "checkpoint"}
ALLOWED = {
    "errors": set(),
    "ranges": set(),
    "encoding": {"errors"},
    "progress": {"errors"},
    "files": {"errors"},
    "commandline": {"errors", "ranges", "files"},
    "model": BASE | {"checkpoint"},  # weights.py fills a model from a file
    "checkpoint": BASE,
    "data": LOW,
    "vocabulary": LOW,
    "recipes": LOW,
    "train": LOW | {"recipes", "data"},
    "evaluate": LOW | {"recipes", "data"},
    "modelzoo": LOW | {"recipes", "data"},  # the pre-flight check opens the data
    "cli": LOW | {"train", "modelzoo", "evaluate", "data", "vocabulary", "recipes"},
}
CONVERTER = LOW | {"recipes"}
READS_RELEASES = Path("evaluate", "cli.py")  # stands above the converter, which imports nothing of its room


def imports_of(path):
    """Absolute names of everything a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield ".".join([*path.relative_to(ROOT).parts[: -node.level], node.module or ""])
            else:
                yield node.module or ""
                if node.module in ("cerebras_jais", "checkpoint_convert"):
                    yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(names):
    """The rooms of cerebras_jais among the imported names."""
    return {n.split(".")[1] for n in names if n.startswith("cerebras_jais.") and not n.endswith("__version__")}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("cerebras_jais"), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path):
    room = path.relative_to(ROOT / "cerebras_jais").parts[0].removesuffix(".py")
    if path.name == "cli.py":  # a room's command line stands above all rooms, as `cerebras_jais.cli` does
        room = "cli"
    names = list(imports_of(path))
    if room != "__init__":
        assert rooms(names) <= ALLOWED[room] | {room}
    if path.relative_to(ROOT / "cerebras_jais") != READS_RELEASES:
        assert not [n for n in names if n.split(".")[0] == "checkpoint_convert"]
    assert path.name == "cli.py" or not [n for n in names if n.endswith(".cli")]
    if path.parent.name != "modelzoo":
        assert not [n for n in names if n.split(".")[0] == "cerebras"]


@pytest.mark.parametrize("path", files("checkpoint_convert"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_converter_stands_on_the_model_and_the_checkpoint_alone(path):
    names = list(imports_of(path))
    if "hf_code" in path.parts:
        shipped_together = "checkpoint_convert.hf_code"
        ours = [n for n in names if n.split(".")[0] in ("cerebras_jais", "checkpoint_convert")]
        assert not [n for n in ours if not n.startswith(shipped_together)]
    assert rooms(names) <= CONVERTER
    assert not [n for n in names if n.split(".")[0] == "cerebras"]


@pytest.mark.parametrize("module", ["cerebras_jais.cli", "checkpoint_convert.cli"])
def test_a_command_line_imports_nothing_heavy_before_a_verb_runs(module):
    heavy = ["torch", "transformers", "h5py", "numpy", "pydantic", "tokenizers", "matplotlib"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["cerebras_jais.checkpoint", "checkpoint_convert.rules"])
def test_the_core_of_conversion_does_not_import_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
