"""The documents name files that are there, and are linked with one another.

Contract: every relative link of a document goes to a file; every path or module name in code quotes of CONTRIBUTING.md,
SECURITY.md and the README of the attacks is that of a file or folder of the repository; the package, its citation and
the newest section of the changelog have one version.
"""

import re
from pathlib import Path

import pytest
import yaml

from cerebras_jais import __version__

ROOT = Path(__file__).parents[1]
NAMING = ("CONTRIBUTING.md", "SECURITY.md", "tests/attacks/README.md")
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / name for name in NAMING)})
NAMES = {
    path.name for package in ("cerebras_jais", "checkpoint_convert", "tests") for path in (ROOT / package).rglob("*.py")
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_go_to_files(document):
    text = re.sub(r"^(    .*|```.*?```)$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize("name", NAMING)
def test_the_files_that_it_names_are_there(name):
    document = ROOT / name
    quoted = re.findall(r"`([\w./-]+)`", document.read_text(encoding="utf-8"))
    paths = {word for word in quoted if "/" in word}
    modules = {word for word in quoted if "/" not in word and word.endswith(".py")}
    absent = {path for path in paths if not (ROOT / path).exists() and not (ROOT / "cerebras_jais" / path).exists()}
    assert not absent | (modules - NAMES)


def test_one_version_is_cited_and_described():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    sections = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    assert sections[:2] == ["Unreleased", __version__]
