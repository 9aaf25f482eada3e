"""Any bytes as YAML: a value, or one line that names file and line; in little time and memory.

Contract: aliases that multiply or hold themselves, depth, hundreds of thousands of keys, numbers of thousands of
digits, control characters, wrong tags and keys that are no text are refused within a second or two; what is read is
what PyYAML's safe loader reads, but for `1e-5` and dates, which are as in YAML 1.2.
"""

import time
from pathlib import Path

import pytest
import yaml

from cerebras_jais.catalog.stock_names import with_stock_names
from cerebras_jais.config.yaml_file import ConfigError, parse_yaml, read_yaml

FILE = Path("run.yaml")
ALIAS_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20))
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 20)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ALIAS_BOMB, "its aliases expand to more than"),
        (MERGE_BOMB, "its aliases expand to more than"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        ("a: &a {<<: *a}", "contains itself"),
        ("".join(f"k{i}: 1\n" for i in range(300_000)), "more than 20000 values"),
        ("a: [" + "1," * 300_000 + "]", "more than 20000 values"),
        ("[" * 100_000, "nested more than"),
        ("{a: " * 100_000, "nested more than"),
        ("- " * 100_000, "nested more than"),
        ("? " * 100_000, "nested more than"),
        ("a: " + "9" * 5000, "a number has 5000 characters"),
        ("a: 1" + ":59" * 5000, "a number has"),
        ("a: 0x" + "f" * 5000, "a number has"),
        ("a: !!int abc", "'abc' has the tag int but is not of that type"),
        ("a: !!float x", "has the tag float but is not"),
        ("a: !!bool x", "has the tag bool but is not"),
        ("a: !!binary x", "has the tag"),
        ("a: !!set {b}", "has the tag"),
        ("a: !!python/object/apply:os.system [x]", "has the tag"),
        ("a: \x07", "not valid YAML"),
        ('a: "\\0"', "null byte"),
        ('a: "\\ud800"', "half of a surrogate pair"),
        ("1: a", "a key must be text"),
        ("on: a", "a key must be text"),
        ("? [a]\n: b", "a key must be text"),
        ("a: 1\na: 2", "given twice"),
        ("a:\n  <<: {b: 1,\n    b: 2}", "line 3: a.b is given twice, on line 2 too"),
        ("a:\n  <<: [{c: 1}, {b: 1, b: 2}]", "a.b is given twice"),
        ("a:\n  <<: {b: 1}\n  <<: {b: 2}", "line 3: a.<< is given twice, on line 2 too"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
        ("", "the file is empty"),
        ("a: *b", "not valid YAML"),
        ("%YAML 9.9\n---\na: 1", "not valid YAML"),
    ],
)
def test_hostile_yaml_is_refused_in_one_line_and_soon(text, words):
    begun = time.process_time()
    with pytest.raises(ConfigError, match=words) as caught:
        parse_yaml(text, FILE)
    assert time.process_time() - begun < 5
    said = str(caught.value)
    assert said.startswith("run.yaml") and "\n" not in said and len(said) < 400 and said.isprintable()


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: not UTF-8"):
        read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than the limit of 1 MiB"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[3].glob("configs/**/*.yaml")), ids=str)
def test_what_is_read_is_what_the_safe_loader_reads(path):
    text = path.read_text(encoding="utf-8")

    def floats(value):  # the safe loader takes 1e-5 for text
        if isinstance(value, dict):
            return {key: floats(item) for key, item in value.items()}
        if isinstance(value, list):
            return [floats(item) for item in value]
        try:
            return float(value) if isinstance(value, str) and "e" in value else value
        except ValueError:
            return value

    assert read_yaml(path).data == floats(yaml.safe_load(text))


def test_aliases_merges_and_dates_are_read():
    text = "a: &a {b: 1, c: [x]}\nd: *a\ne: {<<: *a, b: 2}\nf: 2024-01-01\ng: !!str 5\nh: !!float 1\n"
    source = parse_yaml(text, FILE)
    assert source.data["d"] == source.data["a"] and source.data["e"] == {"b": 2, "c": ["x"]}
    assert source.data["f"] == "2024-01-01" and source.data["g"] == "5" and source.data["h"] == 1.0
    assert source.location(("d", "c", 0)) == "run.yaml, line 1: d.c[0]"


def test_a_key_that_comes_in_by_merge_has_the_line_where_it_is_written():
    file = parse_yaml("base: &base\n  a: {x: 1}\n  b: 2\nrun:\n  <<: [*base, {b: 3, c: 4}]\n  a: 5\n", FILE)
    assert file.data["run"] == {"a": 5, "b": 2, "c": 4}
    run = {keys[1:]: line for keys, line in file.lines.items() if keys[0] == "run"}
    assert run == {(): 4, ("a",): 6, ("b",): 3, ("c",): 5}


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028"])
def test_a_stock_name_is_put_on_its_line_whatever_ends_the_lines(line_break):
    text = line_break.join(["# jais_family", "trainer:", "  init:", "    model:", "      name: jais_family", ""])
    changed = with_stock_names(parse_yaml(text, FILE)).split("\n")
    assert changed[4] == "      name: jais" and changed[0] == "# jais_family"


def test_a_stock_name_that_is_merged_in_is_refused():
    text = "trainer:\n  init:\n    model: {<<: {name: jais_family}}\n"
    with pytest.raises(ConfigError, match=r"model\.name: is merged in"):
        with_stock_names(parse_yaml(text, FILE))
