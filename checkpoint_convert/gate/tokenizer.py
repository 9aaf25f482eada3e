"""Checks of a release's tokenizer and of its chat template."""

from __future__ import annotations

from pathlib import Path

from cerebras_jais.catalog.chat import chat_template
from cerebras_jais.files import MIB, read_bytes
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import CHAT_TEMPLATE, OLD_CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from checkpoint_convert.gate.configs import declared_differently, samples
from checkpoint_convert.gate.report import Skipped, require_none
from checkpoint_convert.gate.subject import Subject
from checkpoint_convert.release import declared_tokens, read_tokenizer, token_ids
from checkpoint_convert.verify.logits import PROMPTS, transformers_errors


def check_tokenizer(subject: Subject) -> str:
    """The tokenizer is there, within the model's vocabulary, and names the special tokens of config.json."""
    path = subject.path
    config = DecoderConfig.from_section(subject.section[0])
    read_tokenizer(path, config)
    if not (path / TOKENIZER).exists():
        raise ConversionError(f"{path / TOKENIZER}: is missing; add the tokenizer with `to-hf --tokenizer`")
    ids = token_ids(path / TOKENIZER)
    declared = declared_tokens(path, ids)
    problems = list(declared_differently(declared, subject.config_json))
    if "eos" not in declared:
        problems.append("no eos_token is declared, which ends a text; name it")
    if len(set(ids.values())) != len(ids):
        problems.append("two tokens have one id; save the tokenizer again")
    require_none([f"{path / TOKENIZER_CONFIG}: {problem}; correct the tokenizer or the config" for problem in problems])
    pad = "" if "pad" in declared else "; no pad token: to pad batches, set tokenizer.pad_token = tokenizer.eos_token"
    return f"{len(ids):,} entries of {config.vocab_size:,} rows{pad}{_in_transformers(path, declared)}"


def _in_transformers(path: Path, declared: dict[str, int]) -> str:
    """Load the tokenizer as users do; returns what to add to the text of the check."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return "; transformers is not installed: not loaded with it"
    with transformers_errors(path):
        loaded = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
        problems = [
            f"{path}: transformers takes {getattr(loaded, f'{kind}_token_id')} as {kind}_token_id, {TOKENIZER} has "
            f"{number}; save the tokenizer again"
            for kind, number in declared.items()
            if getattr(loaded, f"{kind}_token_id") != number
        ]
        encoded = [loaded(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
        changed = sum(
            str(loaded.decode(ids)).strip() != text.strip() for ids, text in zip(encoded, PROMPTS, strict=True)
        )
    require_none(problems)
    cleans = read_json(path / TOKENIZER_CONFIG).get("clean_up_tokenization_spaces") if changed else None
    why = " (clean_up_tokenization_spaces deletes spaces before punctuation)" if cleans else ""
    return f"; decoding changes {changed} of {len(PROMPTS)} texts{why}" if changed else ""


def check_template(subject: Subject) -> str:
    """A chat model has the family's chat template, byte for byte, in chat_template.jinja."""
    found = template_of(subject.path)
    path = subject.path / CHAT_TEMPLATE
    if not samples(subject.generation_json):
        if not found:
            raise Skipped("a base model: no chat template")
        if found == {CHAT_TEMPLATE: chat_template().encode()}:
            return "the family's"
        return "the tokenizer's own, which is not the family's: its prompts are not those of the model card"
    if not found:
        raise ConversionError(f"{path}: is missing, but the release samples as a chat model; convert with --chat")
    problems = [
        f"{subject.path / name}: holds a chat template too; remove it, {CHAT_TEMPLATE} is read"
        for name in found
        if name != CHAT_TEMPLATE
    ]
    if found.get(CHAT_TEMPLATE) != chat_template().encode():
        problems.append(f"{path}: is not the family's template byte for byte; convert with --chat, which writes it")
    if subject.is_published and problems:
        return "not the family's: its prompts are not those of the model card"
    require_none(problems)
    return "the family's"


def template_of(path: Path) -> dict[str, bytes]:
    """The chat templates of a release: name of the file -> content."""
    found: dict[str, bytes] = {}
    for name in (CHAT_TEMPLATE, OLD_CHAT_TEMPLATE):
        if (path / name).is_file():
            found[name] = read_bytes(path / name, MIB, ConversionError)
    if (path / TOKENIZER_CONFIG).is_file():
        inside = read_json(path / TOKENIZER_CONFIG).get("chat_template")
        if inside is not None:
            found[TOKENIZER_CONFIG] = str(inside).encode()
    return found
