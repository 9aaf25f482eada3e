"""`to-hf --card`: README.md has what the author gives and lists what is missing; no text breaks the front matter.

Contract: the front matter is YAML with the hub's keys, whatever the texts hold; a wrong YAML is refused in one line
with its file, line and key, and nothing is written; an adapted release has Llama 2's notice unless other base models
are named; the example of the documentation is a complete card.
"""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cerebras_jais.errors import UserError
from checkpoint_convert.card import LLAMA_2_NOTICE, Card, Described, model_card, read_card
from checkpoint_convert.cli import cli
from checkpoint_convert.configs.convert import default_special_tokens, to_config_json
from checkpoint_convert.mapping.plan import make_plan
from checkpoint_convert.open_model import opening
from tests.checkpoint_convert.examples import jais_section, llama_section, random_model, state_of, write_checkpoint

EXAMPLE = Path(__file__).parents[2] / "docs" / "card.yaml"


def checkpoint_of(directory, section):
    return write_checkpoint(directory / "c.mdl", section, state_of(random_model(section)))


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    checkpoint = checkpoint_of(tmp_path_factory.mktemp("card"), jais_section())
    with opening(checkpoint) as model:
        plan = make_plan(model.config, model.side, model.tensors)
        config_json = to_config_json(model.section, "float32", default_special_tokens(model.config))
        return Described(config_json, plan, model.origin, False, False, ("modeling_jais.py",))


def released(directory, section, text, *words):
    checkpoint_of(directory, section)
    (directory / "card.yaml").write_text(text, encoding="utf-8")
    files = [str(directory / name) for name in ("c.mdl", "release", "card.yaml")]
    return CliRunner().invoke(cli, ["to-hf", files[0], "--output", files[1], "--card", files[2], *words])


def front(text):
    begin, matter, body = text.split("---\n", 2)
    assert begin == ""
    return yaml.safe_load(matter), body


def test_the_example_is_a_complete_card(tmp_path):
    card = read_card(EXAMPLE)
    assert card.missing == ()
    done = released(tmp_path, jais_section(), EXAMPLE.read_text(encoding="utf-8"))
    assert done.exit_code == 0 and "does not give" not in done.output
    matter, body = front((tmp_path / "release" / "README.md").read_text(encoding="utf-8"))
    assert matter["language"] == list(card.languages) and matter["license"] == card.licence
    assert matter["pipeline_tag"] == "text-generation" and matter["library_name"] == "transformers"
    (result,) = matter["model-index"][0]["results"]
    assert result["dataset"]["type"] == card.scores[0].dataset and result["metrics"][0]["value"] == card.scores[0].value
    assert "Not given" not in body
    for text in (card.intended_use, card.out_of_scope_use, card.limits, card.citation):
        assert text in body


def test_the_hubs_own_reader_takes_the_front_matter(described):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(described, read_card(EXAMPLE)))
    assert card.data.license == "apache-2.0" and card.data.eval_results[0].metric_value == 31.2


def test_what_is_not_given_is_listed_and_printed(tmp_path):
    done = released(tmp_path, jais_section(), "languages: ar\nlicence: apache-2.0\n")
    assert done.exit_code == 0
    assert "the card does not give base_model, data, intended_use, out_of_scope_use" in done.output
    matter, body = front((tmp_path / "release" / "README.md").read_text(encoding="utf-8"))
    assert matter["language"] == ["ar"] and not {"datasets", "base_model", "model-index"} & matter.keys()
    assert "Not given: base model, data, intended use, out-of-scope use, limits, citation, scores." in body


@given(text=st.text(st.characters(codec="utf-8"), min_size=1, max_size=60))
def test_no_text_breaks_the_front_matter(described, text):
    values = {"name": text, "intended_use": text, "limits": text, "citation": text, "tags": [text]}
    for key, value in values.items():
        try:
            card = Card.model_validate({"licence": "mit", key: value})
        except ValueError:
            continue  # refused: not printable, or several lines where one is wanted
        matter, _ = front(model_card(described, card))
        assert matter["license"] == "mit" and matter["library_name"] == "transformers"
        assert matter["tags"] == list(dict.fromkeys(["jais", *card.tags]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("licence: [a]\n", "line 1: licence"),
        ("license: mit\n", "unknown key"),
        ("languages: [arabic!]\n", "languages"),
        ("name: |\n  a\n  ---\n  b\n", "one line"),
        ('limits: "a\\u0007b"\n', "control characters"),
        ("base_model: a b\n", "owner/name"),
        ("scores:\n  - dataset: a/b\n    metric: acc\n    value: .nan\n", "value"),
        ("scores:\n  - dataset: a/b\n    metric: acc\n    value: 1\n    source: javascript:x\n", "source"),
        ("- a\n", "must hold a mapping"),
        ("licence: mit\nlicence: mit\n", "licence"),
        ("", "empty"),
    ],
)
def test_a_wrong_card_is_refused_in_one_line(tmp_path, text, words):
    done = released(tmp_path, jais_section(), text)
    assert done.exit_code == 2 or isinstance(done.exception, UserError)
    message = done.output or str(done.exception)
    assert words in message and "card.yaml" in message and len(message.strip().splitlines()) == 1
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    ("base", "carries"),
    [
        ("", True),
        ("base_model: meta-llama/Llama-2-7b-hf\n", True),
        ("base_model: inceptionai/jais-adapted-7b\n", True),
        ("base_model: []\n", False),
        ("base_model: other/model\n", False),
    ],
)
def test_an_adapted_release_carries_llama_2s_notice(tmp_path, base, carries):
    done = released(tmp_path, llama_section(), f"licence: llama2\n{base}")
    assert done.exit_code == 0
    release = tmp_path / "release"
    assert (release / "NOTICE").exists() == carries
    assert (LLAMA_2_NOTICE in (release / "README.md").read_text(encoding="utf-8")) == carries
    if carries:
        assert (release / "NOTICE").read_text(encoding="utf-8").strip() == LLAMA_2_NOTICE


def test_a_jais_release_has_no_notice(tmp_path):
    assert released(tmp_path, jais_section(), "licence: mit\n").exit_code == 0
    assert not (tmp_path / "release" / "NOTICE").exists()
