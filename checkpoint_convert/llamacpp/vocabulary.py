"""A tokenizer as GGUF's metadata describes it: tokens with types, and merges or scores.

llama.cpp has code for the way in which a tokenizer splits text before it merges, and a GGUF file names that way
(`tokenizer.ggml.pre`). The name is found from tokenizer.json itself. Any other way is refused, since llama.cpp would
give a text other ids without a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from cerebras_jais.files import MIB, read_text
from cerebras_jais.model.config import DecoderConfig
from checkpoint_convert.errors import ConversionError, first_few
from checkpoint_convert.formats.gguf import Value
from checkpoint_convert.formats.json_files import parse_object, read_json
from checkpoint_convert.formats.release_directory import (
    CHAT_TEMPLATE,
    OLD_CHAT_TEMPLATE,
    TOKENIZER,
    TOKENIZER_CONFIG,
)
from checkpoint_convert.llamacpp.sentencepiece import read_sentencepiece
from checkpoint_convert.mapping.rules import JAIS, architecture_of
from checkpoint_convert.release import Tokenizer

SENTENCEPIECE = "tokenizer.model"
_ADDED_SCORE = -1000.0
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# Pattern -> (llama.cpp's name, whether a word that is a token is taken without merging).
_SPLITS = {_GPT2: ("gpt-2", False), _LLAMA3: ("llama-bpe", True), _QWEN2: ("qwen2", False)}


@dataclass(frozen=True)
class _Added:
    text: str
    special: bool


def vocabulary_metadata(
    tokenizer: Tokenizer, config: DecoderConfig, folder: Path
) -> tuple[dict[str, Value], list[str]]:
    """The keys of a GGUF file that describe a tokenizer, and notes on what llama.cpp does otherwise.

    Args:
        tokenizer: checked against the model (`release.read_tokenizer`).
        config: the model; ids of its vocabulary that no token has are written as unused.
        folder: where the tokenizer is, for messages.

    Raises:
        ConversionError: there is no tokenizer, it is damaged, or llama.cpp cannot do what it does.
    """
    try:
        return _vocabulary_metadata(tokenizer, config, folder)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, UnicodeEncodeError) as error:
        raise ConversionError(f"{folder}: its tokenizer is not as it should be ({error!r}); save it again") from error


def _vocabulary_metadata(
    tokenizer: Tokenizer, config: DecoderConfig, folder: Path
) -> tuple[dict[str, Value], list[str]]:
    files = tokenizer.files
    state = read_json(files[TOKENIZER]) if TOKENIZER in files else {}
    notes: list[str] = []
    if SENTENCEPIECE in files:
        keys = _of_sentencepiece(files, state, config.vocab_size)
    elif state:
        keys, notes = _of_json(files[TOKENIZER], state, config)
    else:
        raise ConversionError(
            f"{folder}: has no {TOKENIZER} or {SENTENCEPIECE}, which llama.cpp needs; give --tokenizer"
        )
    settings = _settings(tokenizer)
    special = _special(tokenizer, state, settings, over_bytes="tokenizer.ggml.merges" in keys)
    return {**keys, **special, **_template(tokenizer, settings)}, notes


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json, as it stands in a release."""
    if TOKENIZER_CONFIG in tokenizer.texts:
        return parse_object(Path(TOKENIZER_CONFIG), tokenizer.texts[TOKENIZER_CONFIG].encode())
    return read_json(tokenizer.files[TOKENIZER_CONFIG]) if TOKENIZER_CONFIG in tokenizer.files else {}


# ---- tokens ---------------------------------------------------------------------------------------------------------


def _of_json(path: Path, state: Mapping[str, Any], config: DecoderConfig) -> tuple[dict[str, Value], list[str]]:
    model = state.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
        raise ConversionError(f"{path}: is not a tokenizer of byte-pair encoding; llama.cpp's jais and llama need one")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ConversionError(f"{path}: model.{key} is {model[key]!r}, which llama.cpp does not do")
    vocabulary, merges = model["vocab"], [_pair(path, merge) for merge in model["merges"]]
    added = _added(state)
    if model.get("byte_fallback"):
        return _of_characters(path, state, vocabulary, merges, added, config.vocab_size)
    pre = _split_of(path, state, model)
    if pre == "gpt-2" and architecture_of(config) is JAIS:
        pre = "jais"  # the same way of splitting, under the name that llama.cpp has for the published models
    texts, kinds, _ = _entries(
        {number: (text, TokenType.NORMAL, 0.0) for text, number in vocabulary.items()}, added, config.vocab_size
    )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges],
    }, []


def _pair(path: Path, merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ConversionError(f"{path}: has the merge {merge!r}; save the tokenizer again")
    return parts[0], parts[1]


def _split_of(path: Path, state: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer over bytes splits text."""
    if state.get("normalizer") not in (None, {"type": "Sequence", "normalizers": []}):
        raise ConversionError(f"{path}: its normalizer changes text, which llama.cpp does not do; its ids would differ")
    before: Any = state.get("pre_tokenizer") or {}
    steps = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    kinds = [step.get("type") for step in steps]
    pattern = None
    if kinds[-1:] == ["ByteLevel"] and not steps[-1].get("add_prefix_space"):
        split = steps[0]
        if kinds == ["ByteLevel"] and split.get("use_regex", True):
            pattern = _GPT2
        isolates = split.get("behavior") == "Isolated" and not split.get("invert")
        if kinds == ["Split", "ByteLevel"] and isolates and not steps[1].get("use_regex", True):
            pattern = split["pattern"].get("Regex")
    name, ignores = _SPLITS.get(str(pattern), ("", False))
    if not name or bool(model.get("ignore_merges")) is not ignores:
        raise ConversionError(
            f"{path}: its pre_tokenizer splits text in a way that llama.cpp has no name for; GPT-2's, Llama-3's and "
            "Qwen-2's are supported"
        )
    return name


def _of_characters(
    path: Path,
    state: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    merges: list[tuple[str, str]],
    added: Mapping[int, _Added],
    size: int,
) -> tuple[dict[str, Value], list[str]]:
    """A tokenizer over characters without its tokenizer.model: scores that give the order of its merges."""
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(merges):
        rank.setdefault(left + right, number)
    unknown = state["model"].get("unk_token")
    first = {}
    for text, number in vocabulary.items():
        kind = TokenType.NORMAL
        if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            kind = TokenType.BYTE
        elif text == unknown:
            kind = TokenType.UNKNOWN
        first[number] = (text, kind, -float(rank.get(text, len(merges) if len(text) > 1 else 0)))
    known = set(merges)
    others = [
        text
        for text, number in vocabulary.items()
        if len(text) > 1 and first[number][1] is TokenType.NORMAL and number not in added
        if any(
            text[:at] in vocabulary and text[at:] in vocabulary and (text[:at], text[at:]) not in known
            for at in range(1, len(text))
        )
    ]
    notes = []
    if others:
        notes.append(
            f"llama.cpp joins any two neighbours that give a token, {path.name} only the pairs of its merges: some "
            f"texts are cut otherwise ({len(others)} tokens, such as {first_few(others)}); a tokenizer.model has all"
        )
    return _sentencepiece_keys(*_entries(first, added, size), _adds_space(path, state)), notes


def _adds_space(path: Path, state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer over characters puts a space before a text; what else it does to text is refused."""
    normalizer, before = state.get("normalizer"), state.get("pre_tokenizer")
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, Mapping) else []
    adds = False
    for step in steps:
        if step == {"type": "Prepend", "prepend": "▁"}:
            adds = True
        elif step != {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}:
            raise ConversionError(
                f"{path}: its normalizer changes text, which llama.cpp does not do; its ids would differ"
            )
    if isinstance(before, Mapping):
        if before.get("type") != "Metaspace" or before.get("split"):
            raise ConversionError(
                f"{path}: its pre_tokenizer splits text, which llama.cpp does not do for such a tokenizer"
            )
        adds = before.get("prepend_scheme", "always") != "never"
    return adds


def _of_sentencepiece(files: Mapping[str, Path], state: Mapping[str, Any], size: int) -> dict[str, Value]:
    path = files[SENTENCEPIECE]
    model = read_sentencepiece(path)
    if len(model.pieces) > size:
        raise ConversionError(
            f"{path}: has {len(model.pieces)} pieces but the model's vocab_size is {size}: the tokenizer does not "
            "belong to this model; give the model's own"
        )
    added = _added(state)
    for number, (text, _) in enumerate((piece.text, piece.kind) for piece in model.pieces) if state else ():
        if state["model"]["vocab"].get(text, number) != number:
            raise ConversionError(
                f"{path}: {text!r} has another id in tokenizer.json; give the two that belong together"
            )
    if not state and "added_tokens.json" in files:
        added = {number: _Added(text, False) for text, number in read_json(files["added_tokens.json"]).items()}
    first = {number: (piece.text, TokenType(piece.kind), piece.score) for number, piece in enumerate(model.pieces)}
    return _sentencepiece_keys(*_entries(first, added, size), model.adds_space)


def _sentencepiece_keys(texts: list[str], kinds: list[int], scores: list[float], adds_space: bool) -> dict[str, Value]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.add_space_prefix": adds_space,
    }


def _added(state: Mapping[str, Any]) -> dict[int, _Added]:
    return {
        token["id"]: _Added(token["content"], bool(token.get("special"))) for token in state.get("added_tokens") or []
    }


def _entries(
    first: Mapping[int, tuple[str, TokenType, float]], added: Mapping[int, _Added], size: int
) -> tuple[list[str], list[int], list[float]]:
    """Texts, types and scores by id: added tokens over those of the vocabulary, and ids without a token as unused."""
    texts = [f"[PAD{number}]" for number in range(size)]
    kinds = [int(TokenType.UNUSED)] * size
    scores = [-10000.0] * size
    for number, (text, kind, score) in first.items():
        texts[number], kinds[number], scores[number] = text, int(kind), score
    for number, token in added.items():
        special = token.special or (token.text.startswith("<|") and token.text.endswith("|>"))
        texts[number] = token.text if special else token.text.replace("▁", " ")
        if kinds[number] != TokenType.UNKNOWN:
            kinds[number] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
            scores[number] = _ADDED_SCORE
    return texts, kinds, scores


# ---- special tokens and template ------------------------------------------------------------------------------------


def _special(
    tokenizer: Tokenizer, state: Mapping[str, Any], settings: Mapping[str, Any], *, over_bytes: bool
) -> dict[str, Value]:
    """Ids of the special tokens, and which of them encoding puts around a text."""
    keys: dict[str, Value] = {}
    for kind, ids in (("bos", tokenizer.tokens.bos), ("eos", tokenizer.tokens.eos), ("padding", tokenizer.tokens.pad)):
        several = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if several:
            keys[f"tokenizer.ggml.{kind}_token_id"] = several[0]
        if kind == "eos" and len(several) > 1:
            keys["tokenizer.ggml.eot_token_id"] = several[1]  # the other end of a response
    unknown = settings.get("unk_token")
    unknown = unknown.get("content") if isinstance(unknown, Mapping) else unknown
    known = {
        **state.get("model", {}).get("vocab", {}),
        **{token.text: number for number, token in _added(state).items()},
    }
    if isinstance(unknown, str) and unknown in known:
        keys["tokenizer.ggml.unknown_token_id"] = known[unknown]
    before, after = _template_tokens(state)
    if not state:
        before = settings.get("add_bos_token", not over_bytes) is True
        after = settings.get("add_eos_token") is True
    return {**keys, "tokenizer.ggml.add_bos_token": before, "tokenizer.ggml.add_eos_token": after}


def _template_tokens(state: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether tokenizer.json puts a token before a text, and one after it."""
    processor = state.get("post_processor")
    for step in processor.get("processors", [processor]) if isinstance(processor, Mapping) else ():
        if isinstance(step, Mapping) and step.get("type") == "TemplateProcessing":
            parts = ["SpecialToken" in part for part in step.get("single", ())]
            return bool(parts) and parts[0], bool(parts) and parts[-1]
    return False, False


def _template(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> dict[str, Value]:
    """The chat template, from the place that transformers reads first."""
    template: Any = settings.get("chat_template")
    if CHAT_TEMPLATE in tokenizer.texts:
        template = tokenizer.texts[CHAT_TEMPLATE]
    elif CHAT_TEMPLATE in tokenizer.files:
        template = read_text(tokenizer.files[CHAT_TEMPLATE], MIB, ConversionError)
    elif OLD_CHAT_TEMPLATE in tokenizer.files:
        template = read_json(tokenizer.files[OLD_CHAT_TEMPLATE]).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return {"tokenizer.chat_template": template} if isinstance(template, str) and template else {}
