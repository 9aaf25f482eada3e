"""A wheel has every file of the packages, and what is installed from it finds them.

Contract: all files beside the code, such as templates, tables, tasks, questions and the page, are in the wheel, and an
installation of it alone reads them.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.process import PATIENCE

ROOT = Path(__file__).parent.parent
PACKAGES = ("cerebras_jais", "checkpoint_convert")
READ = """
from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.evaluate.harness.tasks.questions import __file__ as questions
from cerebras_jais.evaluate.suites import data_sets, tasks_of
from pathlib import Path
assert chat_template() and data_sets() and tasks_of("demo")
print(sorted(path.name for path in Path(questions).parent.iterdir() if path.suffix == ".jsonl"))
"""


@pytest.mark.slow
def test_an_installed_wheel_has_every_file_of_the_packages(tmp_path):
    source = tmp_path / "source"
    for name in (*PACKAGES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    files = {
        str(path.relative_to(source)) for name in PACKAGES for path in (source / name).rglob("*") if path.is_file()
    }
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run(build, check=True, timeout=PATIENCE)
    (wheel,) = tmp_path.glob("*.whl")
    assert not files - set(zipfile.ZipFile(wheel).namelist())
    installed = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True, timeout=PATIENCE)
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, cwd=installed, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True)
    assert done.stdout.strip() == "['demo_ar.jsonl', 'demo_en.jsonl']", done.stderr
