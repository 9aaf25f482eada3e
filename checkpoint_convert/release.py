"""What is written into a release beside the weights: configs, model code, tokenizer, model card (card.py).

The manifest is in verify/manifest.py, because the checks read it too. The other files of `verify` only check a release.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cerebras_jais.atomic import sync, write_text
from cerebras_jais.catalog.chat import SAMPLING, chat_template
from cerebras_jais.files import MIB, read_text
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.card import LLAMA_2_NOTICE, Card, Described, model_card, needs_notice
from checkpoint_convert.configs.convert import SPECIAL_TOKENS, SpecialTokens, default_special_tokens
from checkpoint_convert.errors import ConversionError, first_few
from checkpoint_convert.formats.json_files import json_text, read_json, write_json
from checkpoint_convert.formats.release_directory import (
    CARD,
    CHAT_TEMPLATE,
    CONFIG,
    GENERATION_CONFIG,
    MANIFEST,
    NOTICE,
    OLD_CHAT_TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    WEIGHT_SUFFIXES,
)
from checkpoint_convert.mapping.plan import Plan
from checkpoint_convert.mapping.rules import JAIS, architecture_of

CODE_DIRECTORY = Path(__file__).parent / "hf_code"
CODE_FILES = (
    "alibi_jais.py",
    "blocks_jais.py",
    "configuration_jais.py",
    "layers_jais.py",
    "masks_jais.py",
    "modeling_jais.py",
)
# Files of a release that are not its tokenizer; a tokenizer taken from a release needs no note about them.
_OF_A_RELEASE = (CONFIG, GENERATION_CONFIG, MANIFEST, CARD, NOTICE, "LICENSE", *CODE_FILES)
_VOCABULARIES = (TOKENIZER, "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Tokenizer:
    """The files of a tokenizer and its special tokens."""

    files: Mapping[str, Path]
    """Name in the release -> the file."""
    tokens: SpecialTokens
    notes: tuple[str, ...]
    """What was left out or assumed."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Name in the release -> content, of the files that are not copied."""

    def with_chat_template(self) -> Tokenizer:
        """The tokenizer with the family's chat template in place of its own.

        The template is in one place only, the file that transformers 4.57 and 5 and llama.cpp's script read first.
        """
        template = chat_template()
        config = read_json(self.files[TOKENIZER_CONFIG]) if TOKENIZER_CONFIG in self.files else {}
        others = [config.pop("chat_template", None)]
        files = dict(self.files)
        for name in (CHAT_TEMPLATE, OLD_CHAT_TEMPLATE):
            if name in files:
                others.append(read_text(files.pop(name), MIB, ConversionError))
        texts = {CHAT_TEMPLATE: template}
        if others[0] is not None:
            del files[TOKENIZER_CONFIG]
            texts[TOKENIZER_CONFIG] = json_text(config)
        notes = self.notes
        if any(other not in (None, template) for other in others):
            notes += ("the family's chat template takes the place of the tokenizer's own; --no-chat keeps that",)
        return replace(self, files=files, texts=texts, notes=notes)


def read_tokenizer(
    path: Path | None, config: DecoderConfig, kept: SpecialTokens | None = None, *, chat: bool = False
) -> Tokenizer:
    """Find the files of a tokenizer and check them against the model.

    Args:
        path: its directory; None for no tokenizer.
        config: the model whose vocabulary must hold the tokenizer's.
        kept: the special tokens stored in the checkpoint. The tokenizer's own come first, then these, then those of
            the published models.
        chat: whether the family's chat template belongs to it.

    Raises:
        ConversionError: the directory has no tokenizer, its ids exceed the vocabulary, a special token has no id, or
            a chat template is wanted and no token ends a response.
    """
    found = _read_tokenizer(path, config, kept, chat)
    return found.with_chat_template() if chat else found


def _read_tokenizer(path: Path | None, config: DecoderConfig, kept: SpecialTokens | None, chat: bool) -> Tokenizer:
    assumed = kept or default_special_tokens(config)
    if path is None:
        origin = "those of the published models" if kept is None else "those stored in the checkpoint"
        note = f"no tokenizer was given; add one before publishing. The special tokens are {origin}: {assumed}"
        return Tokenizer({}, assumed, (note,))
    if not path.is_dir():
        raise ConversionError(f"{path}: is not a directory; give the directory that holds tokenizer.json")
    found = [file for pattern in TOKENIZER_FILES for file in sorted(path.glob(pattern)) if file.is_file()]
    files = {file.relative_to(path).as_posix(): file for file in found}
    if files.keys().isdisjoint(_VOCABULARIES):
        raise ConversionError(
            f"{path}: has no {', '.join(_VOCABULARIES[:-1])} or {_VOCABULARIES[-1]}; give a tokenizer's directory"
        )
    left_out = _left_out(path, files)
    if TOKENIZER not in files:
        return Tokenizer(files, assumed, left_out)
    ids = token_ids(path / TOKENIZER)
    if max(ids.values(), default=0) >= config.vocab_size:
        raise ConversionError(
            f"{path}: its ids go up to {max(ids.values())} but the model's vocab_size is {config.vocab_size}: "
            "the tokenizer does not belong to this model; give the model's own"
        )
    declared = declared_tokens(path, ids)
    if chat and "eos" not in declared:
        raise ConversionError(
            f"{path / TOKENIZER_CONFIG}: declares no eos_token, with which the chat template ends a response; name it"
        )
    if not declared:
        return Tokenizer(files, assumed, left_out)
    tokens, others = _special_tokens(declared, kept)
    return Tokenizer(files, tokens, (*left_out, *others))


def _special_tokens(declared: Mapping[str, int], kept: SpecialTokens | None) -> tuple[SpecialTokens, list[str]]:
    """The special tokens of a tokenizer, completed from the checkpoint's; and a note for each that differs.

    A tokenizer declares one end-of-text token. Where the checkpoint has several and the declared one is among them, all
    are used.
    """
    chosen: dict[str, Any] = {}
    notes = []
    for kind in SPECIAL_TOKENS:
        before = getattr(kept, kind, None)
        among = before if isinstance(before, list) else [before]
        chosen[kind] = before if kind not in declared or declared[kind] in among else declared[kind]
        if before is not None and chosen[kind] != before:
            notes.append(f"{kind}_token_id is {chosen[kind]}, as the tokenizer declares; the checkpoint has {before}")
    return SpecialTokens(**chosen), notes


def _left_out(path: Path, files: Mapping[str, Path]) -> tuple[str, ...]:
    """A note that names the other files in the directory of a tokenizer."""
    known = {*_OF_A_RELEASE, *(name.partition("/")[0] for name in files)}
    others = sorted(
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in path.iterdir()
        if entry.name not in known and not entry.name.startswith(".") and not {*entry.suffixes} & WEIGHT_SUFFIXES
    )
    if not others:
        return ()
    return (f"left out, because they are not tokenizer files: {first_few(others)} (in {path})",)


def token_ids(file: Path) -> dict[str, int]:
    content = read_json(file)
    try:
        vocabulary = content["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram: [[token, score], ...]
            vocabulary = {entry[0]: number for number, entry in enumerate(vocabulary)}
        ids = {**vocabulary, **{token["content"]: token["id"] for token in content.get("added_tokens") or []}}
    except (KeyError, TypeError, IndexError) as error:
        raise ConversionError(f"{file}: has no readable vocabulary; save the tokenizer again") from error
    for token, number in ids.items():
        if not isinstance(token, str) or type(number) is not int or number < 0:
            raise ConversionError(f"{file}: has the id {number!r} for the token {token!r}; save the tokenizer again")
    return ids


def declared_tokens(path: Path, ids: Mapping[str, int]) -> dict[str, int]:
    declared: dict[str, int] = {}
    for file in (path / "special_tokens_map.json", path / TOKENIZER_CONFIG):
        content = read_json(file) if file.is_file() else {}
        for kind in SPECIAL_TOKENS:
            token = content.get(f"{kind}_token")
            token = token.get("content") if isinstance(token, Mapping) else token
            if token is None:
                continue
            if not isinstance(token, str) or token not in ids:
                raise ConversionError(
                    f"{file}: {kind}_token is {token!r}, which tokenizer.json does not have; add it there or correct "
                    f"{kind}_token"
                )
            declared[kind] = ids[token]
    return declared


@dataclass(frozen=True)
class Companions:
    """What is written beside the weights of a release."""

    config_json: Mapping[str, Any]
    tokenizer: Tokenizer
    plan: Plan
    origin: Mapping[str, str]
    """The origin of the weights in the model card: label -> text."""
    chat: bool = False
    """Whether it is a chat model, which samples as the card of the family does."""
    card: Card | None = None
    """What its author says of it."""


def write_companions(directory: Path, release: Companions) -> None:
    """Write everything of a release but its weights and its manifest: configs, code, tokenizer, model card."""
    write_json(directory / CONFIG, release.config_json)
    ids = {key: value for key, value in release.tokenizer.tokens.keys().items() if value is not None}
    write_json(directory / GENERATION_CONFIG, {**ids, **(SAMPLING if release.chat else {})})
    for name, text in release.tokenizer.texts.items():
        write_text(directory / name, text)
    copied = dict(release.tokenizer.files)
    architecture = architecture_of(release.plan.config)
    code = CODE_FILES if architecture is JAIS else ()
    copied |= {name: CODE_DIRECTORY / name for name in code}
    for name, file in copied.items():
        (directory / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, directory / name)
        sync(directory / name)
    if needs_notice(architecture, release.card.base_model if release.card else None):
        write_text(directory / NOTICE, f"{LLAMA_2_NOTICE}\n")
    described = Described(
        release.config_json, release.plan, release.origin, bool(release.tokenizer.files), release.chat, code
    )
    write_text(directory / CARD, model_card(described, release.card))
