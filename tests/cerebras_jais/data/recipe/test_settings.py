"""The YAML of a data run: every mistake is one line with file, line and key; the examples are read."""

from pathlib import Path

import pytest

from cerebras_jais.config.yaml_file import ConfigError
from cerebras_jais.data.recipe.settings import read_settings

ROOT = Path(__file__).parents[4]
GOOD = """\
sources:
  ar: {path: a.txt, language: ar, weight: 2}
  en: {path: [b.txt, c.txt]}
tokenizer: tok
phases:
  short: {context: 128}
output: out
"""
BROKEN = {
    "sources:": ("phasess:\n  x: 1\nsources:", "line 1: phasess: unknown key; did you mean 'phases'?"),
    "weight: 2": ("weigth: 2", "line 2: sources.ar.weigth: unknown key; did you mean 'weight'?"),
    "path: a.txt": ("path: []", "line 2: sources.ar.path: "),
    "path: a.txt,": (
        "path: $NO_SUCH_VARIABLE/a.txt,",
        "line 2: sources.ar.path: the environment variable $NO_SUCH_VARIABLE is not set",
    ),
    "language: ar": ("language: ar, encoding: utf-99", "line 2: sources.ar.encoding: unknown encoding 'utf-99'"),
    "  en:": ("  e/n:", "a name is of letters, digits, - and _"),
    "context: 128": ("context: 0", "line 6: phases.short.context: must be a whole number from 1"),
    "output: out": ("output: out\nworkers: 0", "line 8: workers: must be a whole number from 1"),
    "output: out\n": ("", "output: missing key"),
    "tokenizer: tok": ("tokenizer: tok\nexecutor: {slurm: {}}", "line 5: executor.slurm.partition: missing key"),
    "tokenizer: tok\n": (
        "tokenizer: tok\nexecutor: {cloud: {}}\n",
        "line 5: executor.cloud: unknown key; known: ray, slurm",
    ),
    "{context: 128}": ("{context: 128, weights: {fr: 1}}", "the phase short gives a weight to fr, which is no source"),
}


@pytest.mark.parametrize("old", BROKEN)
def test_a_mistake_is_one_line_that_names_its_key(tmp_path, old):
    new, said = BROKEN[old]
    file = tmp_path / "run.yaml"
    assert GOOD.count(old) == 1
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError) as error:
        read_settings(file)
    assert said in str(error.value)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_weights_are_those_given_or_all_the_same(tmp_path):
    (tmp_path / "run.yaml").write_text(GOOD)
    run = read_settings(tmp_path / "run.yaml")
    assert run.weights(run.phases["short"]) == {"ar": 2}
    (tmp_path / "run.yaml").write_text(GOOD.replace(", weight: 2", ""))
    run = read_settings(tmp_path / "run.yaml")
    assert run.weights(run.phases["short"]) == {"ar": 1, "en": 1}


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_read(file, monkeypatch):
    monkeypatch.setenv("XQUAD_DIR", "xquad")
    assert read_settings(file).sources
