"""Contract: a YAML of `data rewrite` that cannot be carried out is refused with its line and key."""

import pytest
import yaml

from cerebras_jais.config.yaml_file import ConfigError
from cerebras_jais.data.synthetic.settings import TEXT, read_rewriting
from cerebras_jais.endpoint.client import EndpointError


def settings(**changes):
    """The settings of a rewriting, as plain values."""
    return {
        "source": {"path": "english", "language": "en"},
        "endpoint": {"url": "http://localhost:1/v1", "model": "m"},
        "tokenizer": "tokenizer",
        "output": "translated.jsonl",
        **changes,
    }


def read(folder, **changes):
    file = folder / "rewrite.yaml"
    file.write_text(yaml.safe_dump(settings(**changes)), encoding="utf-8")
    return read_rewriting(file)


def test_the_default_is_a_translation_into_arabic(tmp_path):
    found = read(tmp_path)
    assert found.language == "ar"
    assert "Arabic" in found.prompt
    assert TEXT in found.prompt
    assert found.endpoint.options == {"temperature": 0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "Translate"}, "prompt: must have {text}"),
        ({"output": "made"}, "output: must be the name of a .jsonl file"),
        ({"source": {"path": "x", "weight": 2}}, "source: has no `weight` here"),
        ({"endpoint": {"url": "localhost", "model": "m"}}, "url: 'localhost' is no base URL"),
        ({"endpoint": {"url": "http://h/v1", "model": "m", "options": {"stream": True}}}, "stream is no option"),
        ({"endpoint": {"url": "http://h/v1", "model": "m", "key": "sk-1"}}, "endpoint.key: unknown key; known: "),
        ({"endpoint": {"url": "http://h/v1", "model": "m", "concurrency": 0}}, "concurrency: must be a whole number"),
        ({"language": "not a tag"}, "language: must be a tag"),
        ({"phases": {}}, "phases: unknown key"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, changes, said):
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, **changes)
    assert said in str(raised.value)
    assert "rewrite.yaml, line " in str(raised.value)


def test_a_key_that_is_asked_for_must_be_set(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    found = read(tmp_path, endpoint={"url": "http://h/v1", "model": "m", "key_variable": "NO_KEY"})
    with pytest.raises(EndpointError, match="NO_KEY is not set"):
        found.endpoint.endpoint()
