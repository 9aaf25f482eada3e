"""The README.md of a release: what its files say, and what the author of the release gives in a YAML (`to-hf --card`).

Nothing is invented: what neither gives is listed as missing. The front matter has the keys that the Hugging Face hub
reads (its documentation, "Model Cards"): language, license, base_model, datasets, tags, model-index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from cerebras_jais.config.base import Section, refuse
from cerebras_jais.config.trainer import problem_of
from cerebras_jais.config.yaml_file import ConfigError, read_yaml
from cerebras_jais.ranges import shown
from checkpoint_convert.formats.release_directory import CHAT_TEMPLATE, GENERATION_CONFIG
from checkpoint_convert.mapping.plan import Plan
from checkpoint_convert.mapping.rules import JAIS, LLAMA, Architecture, architecture_of

LLAMA_2_NOTICE = (
    "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved."
)
"""What section 1.b.iii of that licence demands in a text file "Notice" of all copies."""
# Names of models that hold weights of Llama 2: its own, and the adapted models of the family.
_OF_LLAMA_2 = re.compile(r"llama[-_ ]?2|jais-adapted", re.IGNORECASE)


def _line(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise refuse(f"must be one line of text (got {shown(value)})")
    return value


def _text(value: str) -> str:
    if not value.strip() or not all(c in "\n\t" or c.isprintable() for c in value):
        raise refuse(f"must be text without control characters (got {shown(value)})")
    return value.strip()


def _matching(pattern: str, what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise refuse(f"must be {what} (got {shown(value)})")
        return value

    return AfterValidator(check)


def _several(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Line = Annotated[str, AfterValidator(_line)]
Text = Annotated[str, AfterValidator(_text)]
Language = Annotated[str, _matching(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", "the code of a language, such as ar")]
Licence = Annotated[str, _matching(r"[a-z0-9][a-z0-9.-]*", "a name that the hub knows, such as apache-2.0 or llama2")]
HubName = Annotated[str, _matching(r"[\w.-]+(/[\w.-]+)?", "the name of a model or data set, such as owner/name")]
Url = Annotated[str, _matching(r"https?://[!-~]+", "an address that begins with https://")]
Names = Annotated[tuple[HubName, ...], BeforeValidator(_several)]


class Data(Section):
    """A source of the training data."""

    name: Line
    hub: HubName | None = None
    """Its name on the hub, for the key `datasets`."""
    about: Text | None = None
    """Size, languages, licence, cleaning: in your words."""


class Score(Section):
    """A result of an evaluation."""

    dataset: HubName
    metric: Annotated[str, _matching(r"[\w./ -]+", "the name of a metric, such as acc_norm")]
    value: Annotated[float, Field(allow_inf_nan=False)]
    name: Line | None = None
    """What to call the data set; its name on the hub where nothing else is given."""
    how: Line | None = None
    """Harness, version, number of examples in the prompt, element type."""
    source: Url | None = None


class Card(Section):
    """What the author of a release says of it; the file of `to-hf --card`."""

    name: Line | None = None
    languages: Annotated[tuple[Language, ...], BeforeValidator(_several), Field(min_length=1)] | None = None
    licence: Licence | None = None
    base_model: Names | None = None
    """Models whose weights it started from; an empty list for one that started from random weights."""
    data: Annotated[tuple[Data, ...], Field(min_length=1)] | None = None
    intended_use: Text | None = None
    out_of_scope_use: Text | None = None
    limits: Text | None = None
    citation: Text | None = None
    scores: Annotated[tuple[Score, ...], Field(min_length=1)] | None = None
    tags: Annotated[tuple[Line, ...], BeforeValidator(_several)] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The keys that are not given."""
        return tuple(key for key in type(self).model_fields if key != "name" and getattr(self, key) is None)


def read_card(path: Path) -> Card:
    """The card of a YAML. Raises ConfigError: one line with file, line, key, and what to do."""
    file = read_yaml(path)
    if not isinstance(file.data, dict):
        raise ConfigError(f"{path}: the file must hold a mapping with {', '.join(Card.model_fields)}")
    try:
        return Card.model_validate(file.data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(file.message(problem_of(problems[0], file.data)) + more) from None


def needs_notice(architecture: Architecture, base_models: tuple[str, ...] | None) -> bool:
    """Whether a release must carry Llama 2's notice.

    A Llama release is taken to be adapted from Llama 2, as the models of the family are, unless other base models are
    given, or none at all by an empty list.
    """
    if architecture is not LLAMA:
        return False
    return base_models is None or any(_OF_LLAMA_2.search(name) for name in base_models)


@dataclass(frozen=True)
class Described:
    """The release that a card is about."""

    config_json: Mapping[str, Any]
    plan: Plan
    origin: Mapping[str, str]
    """Where the weights come from: label -> text."""
    has_tokenizer: bool
    chat: bool
    code: tuple[str, ...]
    """Names of its Python files."""


def model_card(release: Described, card: Card | None = None) -> str:
    """The README.md of a release: facts from its files, and the author's; without a card from its files alone."""
    given = card or Card()
    title = given.name or _title(release.plan)
    front = yaml.safe_dump(_front_matter(release, given, title), sort_keys=False, allow_unicode=True, width=2**31)
    parts = [f"---\n{front}---\n", f"# {_escaped(title)}\n", _table(("", ""), _facts(release)), *_told(given)]
    if needs_notice(architecture_of(release.plan.config), given.base_model):
        parts.append(f"{LLAMA_2_NOTICE}\n")
    if given.missing:
        parts.append(
            f"Not given: {', '.join(_words(key) for key in given.missing)}. Before you publish the model, write them "
            "into the YAML of `checkpoint-convert to-hf --card`, or here.\n"
        )
    return "\n".join([*parts, _use(release)])


def _title(plan: Plan) -> str:
    kind = "Jais" if architecture_of(plan.config) is JAIS else "Llama"
    return f"A {kind} model of {_short(plan.parameters)} parameters"


def _front_matter(release: Described, card: Card, title: str) -> dict[str, Any]:
    """The keys that the hub reads; each text in them is one line."""
    front: dict[str, Any] = {}
    if card.languages is not None:
        front["language"] = list(card.languages)
    if card.licence is not None:
        front["license"] = card.licence
    front |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if card.base_model:
        front["base_model"] = list(card.base_model)
    if datasets := [source.hub for source in card.data or () if source.hub is not None]:
        front["datasets"] = datasets
    own = [str(release.config_json["model_type"]), *(["conversational"] if release.chat else [])]
    front["tags"] = list(dict.fromkeys([*own, *card.tags]))
    if card.scores is not None:
        front["model-index"] = [{"name": title, "results": [_result(score) for score in card.scores]}]
    return front


def _result(score: Score) -> dict[str, Any]:
    result: dict[str, Any] = {
        "task": {"type": "text-generation"},
        "dataset": {"name": score.name or score.dataset, "type": score.dataset},
        "metrics": [{"type": score.metric, "value": score.value}],
    }
    if score.source is not None:
        result["source"] = {"name": score.how or score.source, "url": score.source}
    return result


def _told(card: Card) -> list[str]:
    """The author's sections."""
    parts: list[str] = []
    for key in ("intended_use", "out_of_scope_use", "limits"):
        if (text := getattr(card, key)) is not None:
            parts.append(f"## {_words(key).capitalize()}\n\n{text}\n")
    if card.data is not None:
        rows = {source.name: " ".join((source.about or "").split()) for source in card.data}
        parts.append(f"## Training data\n\n{_table(('source', 'about'), rows)}")
    if card.scores is not None:
        scores = {
            f"{score.name or score.dataset}, {score.metric}": f"{score.value:g}"
            + (f" ({score.how})" if score.how else "")
            for score in card.scores
        }
        parts.append(f"## Scores\n\n{_table(('data set, metric', 'score'), scores)}")
    if card.citation is not None:
        fence = "`" * (1 + max([2, *map(len, re.findall("`+", card.citation))]))
        parts.append(f"## Citation\n\n{fence}bibtex\n{card.citation}\n{fence}\n")
    return parts


def _facts(release: Described) -> dict[str, str]:
    """What the files of a release say of it: label -> text."""
    config_json, plan = release.config_json, release.plan
    config = plan.config
    jais = architecture_of(config) is JAIS
    positions = "ALiBi" if jais else f"rotary, theta {config.rope_theta:g}"
    if config.pos_scaling_factor != 1:
        positions += f", interpolated by {config.pos_scaling_factor:g}"
    rows = {
        "Class": config_json["architectures"][0] + (", code in this directory" if jais else " of transformers"),
        "Parameters": f"{plan.parameters:,}",
        "Element type": ", ".join(plan.dtypes),
        "Layers, hidden, feed-forward": f"{config.num_hidden_layers}, {config.hidden_size}, {config.filter_size}",
        "Heads, key-value heads, head size": f"{config.num_heads}, {config.num_kv_groups}, {config.head_dim}",
        "Vocabulary": f"{config.vocab_size:,}",
        "Context": f"{config.max_position_embeddings:,} tokens",
        "Positions": positions,
        "Output head": "tied to the embedding" if config.share_embedding_weights else "separate",
    }
    if jais:
        rows["muP"] = ", ".join(
            f"{key} {config_json[f'mup_{key}']:.8g}" for key in ("embeddings_scale", "output_alpha", "width_scale")
        )
    rows["Tokenizer"] = "included" if release.has_tokenizer else "not included"
    if release.chat:
        rows["Conversations"] = f"{CHAT_TEMPLATE}; sampling as in the card of the family ({GENERATION_CONFIG})"
    return {**rows, **release.origin}


def _use(release: Described) -> str:
    """How to load the release, as code that runs in its directory."""
    trust = ", trust_remote_code=True" if release.code else ""
    load_tokenizer = f"tokenizer = AutoTokenizer.from_pretrained(path{trust})\n" if release.has_tokenizer else ""
    prompt, messages = '"اللغة العربية"', ""
    if release.chat:
        prompt = "tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)"
        messages = 'messages = [{"role": "user", "content": "ما هي عاصمة الإمارات؟"}]\n'
    use = (
        f'{messages}inputs = tokenizer({prompt}, return_tensors="pt", return_token_type_ids=False)\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))\n"
    )
    code = f"\n`trust_remote_code=True` runs the Python files in this directory: {', '.join(release.code)}.\n"
    return f"""```python
from transformers import AutoModelForCausalLM{", AutoTokenizer" if release.has_tokenizer else ""}

path = "."  # this directory
model = AutoModelForCausalLM.from_pretrained(path{trust})
{load_tokenizer}{use if release.has_tokenizer else ""}```
{code if release.code else ""}"""


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |".replace("  ", " "), "|---|---|"]
    return "\n".join([*lines, *(f"| {_escaped(label)} | {_escaped(value)} |" for label, value in rows.items())]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _words(key: str) -> str:
    return key.replace("_", " ").replace("out of scope", "out-of-scope")


def _short(count: int) -> str:
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{letter}"
    return str(count)
