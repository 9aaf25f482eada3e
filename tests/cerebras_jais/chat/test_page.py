"""The page as a file.

Contract: it is inside the package, names no external address, has no way for text to become markup, and the policy that
it is sent with names its style and its script by their digests; both languages have every text.
"""

import base64
import configparser
import hashlib
import re
from fnmatch import fnmatch
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from cerebras_jais.chat.page import page as the_page

ROOT = Path(__file__).parents[3]
HTML = the_page().content.decode("utf-8")


class Parts(HTMLParser):
    """The texts of style and script elements, and every attribute, as an HTML parser sees them."""

    def __init__(self):
        super().__init__()
        self.texts, self.attributes, self.tag = {"style": "", "script": ""}, [], ""

    def handle_starttag(self, tag, attrs):
        self.tag = tag
        self.attributes += attrs

    def handle_endtag(self, tag):
        self.tag = ""

    def handle_data(self, data):
        if self.tag in self.texts:
            self.texts[self.tag] += data


@pytest.fixture(scope="module")
def parts():
    found = Parts()
    found.feed(HTML)
    return found


def test_the_page_is_in_the_package_and_in_the_wheel():
    assert (files("cerebras_jais.chat") / "page.html").is_file()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["cerebras_jais.chat"].split(", ")
    assert any(fnmatch("page.html", pattern) for pattern in patterns)


@pytest.mark.parametrize("tag", ["style", "script"])
def test_the_policy_names_the_digest_of_each_part_and_allows_no_other(parts, tag):
    digest = base64.b64encode(hashlib.sha256(parts.texts[tag].encode()).digest()).decode()
    policy = dict(part.split(" ", 1) for part in the_page().headers["Content-Security-Policy"].split("; "))
    assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"


def test_the_page_names_no_address_and_makes_no_markup_of_text(parts):
    addresses = set(re.findall(r"\b(?:https?:)?//[\w.]+\w", re.sub(r"(?m)^\s*//.*$|[;,{] // .*$", "", HTML)))
    assert addresses <= {"http://www.w3.org"}  # the name of SVG, in the icon
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|import\b", HTML)
    names = [name for name, _ in parts.attributes]
    assert not [name for name in names if name in ("src", "style") or name.startswith("on")]


def test_the_style_names_sides_by_the_direction_of_text(parts):
    declared = re.findall(r"[{;]\s*([\w-]+):\s*([^;}]+)", parts.texts["style"])
    assert len(declared) > 150
    assert not [
        pair for pair in declared if re.search(r"left|right|width$|height$", pair[0]) if pair[0] not in NOT_SIDES
    ]
    assert not [pair for pair in declared if re.search(r"\b(left|right)\b", pair[1])]


NOT_SIDES = ("line-height", "stroke-width")


def test_both_languages_have_every_text_that_is_used(parts):
    script = parts.texts["script"]
    english, arabic = (
        set(re.findall(r"^    (\w+):", script.partition(f"  {x}: {{")[2].partition("  },")[0], re.M))
        for x in ("en", "ar")
    )
    used = {value for name, value in parts.attributes if name in ("data-text", "data-placeholder")}
    used |= set(re.findall(r'(?:say|show|warn|Failure)\("(\w+)"|, "(\w+)"\)|note = "(\w+)"', script)[0])
    assert english == arabic
    assert used - {""} <= english
