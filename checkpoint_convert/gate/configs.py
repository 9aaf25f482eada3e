"""Checks of config.json and generation_config.json: keys, sizes, muP constants, special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cerebras_jais.catalog.chat import SAMPLING
from cerebras_jais.catalog.family import check_family, mup_problems
from cerebras_jais.errors import UserError
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.configs.convert import SPECIAL_TOKENS, check_convertible, public_keys, special_tokens_of
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.release_directory import CONFIG, GENERATION_CONFIG
from checkpoint_convert.gate.report import require_none
from checkpoint_convert.gate.subject import Subject
from checkpoint_convert.mapping.rules import architecture_of

# The public keys that a section's own keys of muP become.
_PUBLIC = {
    "embeddings_scale": "mup_embeddings_scale",
    "output_logits_alpha": "mup_output_alpha",
    "mup_base_hidden_size": "mup_width_scale",
    "scale_qk_dot_by_d": "mup_scale_qk_dot_by_d",
}


def check_config(subject: Subject) -> str:
    """config.json describes a model of the family, and says what its `cerebras.model` says."""
    path, keys = subject.path / CONFIG, subject.config_json
    try:
        section, notes = subject.section
        config = DecoderConfig.from_section(section)
        check_convertible(config)
        if not subject.is_published:
            check_family(config)
    except UserError as error:
        raise ConversionError(f"{path}: {error}") from error
    problems = [note for note in notes if note.startswith("config.json was edited")]
    problems += [
        f"{_PUBLIC.get(key, key)}: {what}" for key, what in mup_problems(config) if key != "mup_base_filter_size"
    ]
    wanted = architecture_of(config).transformers_class
    if keys.get("architectures") != [wanted]:
        problems.append(f"architectures is {keys.get('architectures')!r}; set it to [{wanted!r}]")
    if not subject.is_published:
        lacking = [key for key in (*public_keys(config), "torch_dtype") if key not in keys]
        problems += [f"{key} is missing; convert again" for key in lacking]
    problems += _ids_outside(keys, config.vocab_size)
    require_none([f"{path}: {problem}" for problem in problems])
    return f"{wanted}, {config.num_hidden_layers} layers, {config.max_position_embeddings} positions"


def check_generation_config(subject: Subject) -> str:
    """generation_config.json names the special tokens of config.json, and samples as the card if it samples."""
    keys, config_json = subject.generation_json, subject.config_json
    if not keys and subject.is_published:
        return f"no {GENERATION_CONFIG}: transformers takes the tokens of {CONFIG}"
    problems = _ids_outside(keys, config_json.get("vocab_size"))
    for kind in SPECIAL_TOKENS:
        name = f"{kind}_token_id"
        if keys.get(name) != config_json.get(name):
            problems.append(
                f"{name} is {keys.get(name)!r} where {CONFIG} has {config_json.get(name)!r}; make them equal"
            )
    if samples(keys):
        problems += [
            f"{name} is {keys.get(name)!r} where the card of the family has {value!r}; set it"
            for name, value in SAMPLING.items()
            if keys.get(name) != value and not subject.is_published
        ]
    require_none([f"{subject.path / GENERATION_CONFIG}: {problem}" for problem in problems])
    return "samples as the card of the family" if samples(keys) else "the special tokens of config.json"


def samples(generation_json: Mapping[str, Any]) -> bool:
    """Whether a generation_config.json samples, as those of the family's chat models do."""
    return any(name in generation_json for name in SAMPLING)


def _ids_outside(keys: Mapping[str, Any], vocab_size: Any) -> list[str]:
    """The special tokens of a config that are no id, or outside the vocabulary."""
    try:
        tokens = special_tokens_of(keys)
    except ConversionError as error:
        return [str(error)]
    problems = []
    for name, ids in (tokens.keys() if tokens else {}).items():
        several = ids if isinstance(ids, list) else [] if ids is None else [ids]
        outside = [number for number in several if not 0 <= number < vocab_size]
        problems += [f"{name} {number} is not in the vocabulary of {vocab_size}; correct it" for number in outside]
    return problems


def declared_differently(declared: Mapping[str, int], keys: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that a tokenizer declares otherwise than a config."""
    for kind, number in declared.items():
        stated = keys.get(f"{kind}_token_id")
        if number != stated and not (isinstance(stated, list) and number in stated):
            yield f"{kind}_token has the id {number} where {CONFIG} has {kind}_token_id {stated!r}"
