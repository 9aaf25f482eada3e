"""Imports run one way, each module only to what stands before it, and never in a circle.

Contract: every `import` in the two packages, found by walking their syntax trees, goes to a folder that stands before
its own in ORDER, or stays within it; within a folder too no module leads back to itself; only `cerebras_jais.modelzoo`
imports Cerebras packages, only `cerebras_jais.vllm_plugin` vLLM and only `cerebras_jais.evaluate.harness` lm_eval; the
code shipped in a release imports nothing of this project; the command lines import nothing heavy before a verb runs.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Folders and modules of cerebras_jais, and the converter; those of one line import neither one another nor later ones.
ORDER = (
    ("errors", "modelzoo_version", "ranges"),
    ("encoding", "files", "interrupts", "machine", "params", "wording"),
    ("atomic", "commandline"),
    ("endpoint",),
    ("checkpoint",),
    ("model",),
    ("config",),
    ("catalog",),
    ("optimizer",),
    ("data",),
    ("cirh",),
    ("launch",),
    ("checkpoint_convert",),
    ("vocabulary",),
    ("chat",),
    ("serve",),
    ("evaluate",),
    ("train", "modelzoo", "vllm_plugin"),
    ("commands",),
    ("cli",),
)
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line}
NOT_FOR_THE_CONVERTER = {"data", "launch"}


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for package in ("cerebras_jais", "checkpoint_convert") for path in files(package)}

FOLDERS = sorted({path.parent for path in MODULES.values()} - {ROOT / "cerebras_jais" / "data" / "sample"})


def imports_of(path):
    """Absolute names of everything a file imports, at any depth; a module where it is one of ours."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*path.relative_to(ROOT).parts[: -node.level], module]).removesuffix(".")
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield name if name in MODULES else module


def folder_of(module):
    """The line of ORDER that a module of ours belongs to, or "" for the package itself, whose version all may read."""
    package, _, rest = module.partition(".")
    return package if package == "checkpoint_convert" else rest.partition(".")[0]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_stands_before_it(module):
    names = set(imports_of(MODULES[module]))
    own = folder_of(module)
    others = {folder_of(name) for name in names if name in MODULES} - {own, ""}
    assert not {other for other in others if RANK[other] >= RANK[own]}
    if own == "checkpoint_convert":
        assert not others & NOT_FOR_THE_CONVERTER
    if "hf_code" in module:
        assert not [name for name in names if name in MODULES and "hf_code" not in name]
    if own != "modelzoo":
        assert not [name for name in names if name.split(".")[0] == "cerebras"]
    if not module.startswith("cerebras_jais.evaluate.harness."):
        assert not [name for name in names if name.split(".")[0] == "lm_eval"]
    if own != "vllm_plugin":
        assert not [name for name in names if name.split(".")[0] == "vllm"]


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if name.startswith("cerebras_jais.data.clean")])
def test_cleaning_needs_nothing_but_the_standard_library_and_numpy(module):
    names = set(imports_of(MODULES[module]))
    allowed = ("cerebras_jais.data.clean.", "cerebras_jais.errors", "numpy")
    assert not [
        name for name in names if name.split(".")[0] not in sys.stdlib_module_names if not name.startswith(allowed)
    ]


def test_no_module_leads_back_to_itself():
    graph = {module: set(imports_of(path)) & MODULES.keys() - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_folder_says_what_belongs_there_and_holds_at_most_14_modules(folder):
    assert len(list(folder.glob("*.py"))) <= 15  # __init__.py among them
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert docstring is not None
    assert "\n\n" in docstring


@pytest.mark.parametrize("module", ["cerebras_jais.cli", "checkpoint_convert.cli"])
def test_a_command_line_imports_nothing_heavy_before_a_verb_runs(module):
    heavy = ["torch", "transformers", "h5py", "numpy", "pydantic", "tokenizers", "matplotlib"]
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["cerebras_jais.checkpoint", "checkpoint_convert.mapping.rules"])
def test_the_core_of_conversion_does_not_import_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
