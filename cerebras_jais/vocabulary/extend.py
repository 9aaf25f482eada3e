"""A tokenizer extended by a donor's tokens: chosen, spliced in, proven, written.

Published: the adapted models of the Jais family have Llama-2's 32,000 tokens and 32,000 Arabic ones (model card; Gosal
et al., arXiv 2407.12869). How those were chosen and merged is not published; the construction of `splice` is this
project's.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebras_jais.atomic import whole_folder
from cerebras_jais.data.tokenizer import LARGEST
from cerebras_jais.encoding import explained, reading_text_as_data
from cerebras_jais.files import MIB, parse_json, read_bytes, read_text, shown_path
from cerebras_jais.ranges import VOCABULARY
from cerebras_jais.vocabulary.bpe import SPACE, BpeTokenizer, Symbols
from cerebras_jais.vocabulary.choose import uses
from cerebras_jais.vocabulary.errors import VocabularyError
from cerebras_jais.vocabulary.model_file import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    ModelFile,
    ScoredPiece,
    extended_model,
    read_model_file,
    scores_between,
)
from cerebras_jais.vocabulary.splice import Reason, Splice, splice
from checkpoint_convert.formats.release_directory import TOKENIZER, TOKENIZER_CONFIG, TOKENIZER_FILES
from checkpoint_convert.streaming.run import Progress

if TYPE_CHECKING:
    from tokenizers import AddedToken

MODEL = "tokenizer.model"
_REWRITTEN = (TOKENIZER, TOKENIZER_CONFIG, MODEL, "vocab.json", "merges.txt")  # the last two would be the base's
# The class that takes tokenizer.json as it is. LlamaTokenizer of transformers 5 takes its vocabulary and merges alone,
# and then cuts a text that begins with a space otherwise than tokenizer.model and transformers 4 do.
_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
_DEFAULTS = {
    "clean_up_tokenization_spaces": False,  # True would delete spaces before punctuation when decoding
    "model_input_names": ["input_ids", "attention_mask"],  # else transformers 4 gives Llama token_type_ids, too
}


@dataclass(frozen=True)
class Extension:
    """A base extended by new pieces."""

    base: BpeTokenizer
    tokenizer: BpeTokenizer
    """The extended one."""
    added: Mapping[str, Reason]
    """The new pieces in the order of their ids, which begin at `base.entries`."""
    model: bytes | None
    """The content of tokenizer.model; None where the base has none."""

    def count(self, reason: Reason) -> int:
        """How many pieces were added for a reason."""
        return sum(1 for other in self.added.values() if other is reason)

    @property
    def unreachable(self) -> list[str]:
        """The new pieces whose own text is not segmented into them alone: none, or the construction has failed."""
        ids = self.tokenizer.vocabulary
        texts = {piece: self.tokenizer.text_of(piece) for piece in self.added}
        whole = [piece for piece, text in texts.items() if text is not None]
        found = dict(zip(whole, self.tokenizer.segment([texts[piece] or "" for piece in whole]), strict=True))
        model = self.tokenizer.tokenizer.model
        for piece in texts.keys() - found.keys():  # cut inside a character
            found[piece] = [token.id for token in model.tokenize(piece)]
        return [piece for piece in self.added if found[piece] != [ids[piece]]]


def extend(
    base: BpeTokenizer,
    tokens: Sequence[str],
    room: int,
    words: Counter[str] | None = None,
    progress: Progress = lambda done, total: None,
) -> Extension:
    """Extend a base by exactly `room` pieces: letters that it lacks, tokens of the donor, and intermediate pieces.

    Args:
        base: read with `to_extend`.
        tokens: those of a donor that are wanted, by rank (`tokens_of_script`).
        room: how many pieces.
        words: those of a corpus with their counts (`count_runs`). Then the tokens that they use most are taken.
        progress: called with tokens that are too many for the room, just dropped and of all; without words there are
            none.

    The ids of the base stay, and so does its segmentation of every text without a character of a token.
    Raises VocabularyError where the donor has not that many, or the base's tokenizer.model does not fit.
    """
    if base.entries + room >= VOCABULARY.high:
        raise VocabularyError(
            f"--add {room}: the base has {base.entries} entries, and a model can have {VOCABULARY.high:,}; give less"
        )
    model_path = base.folder / MODEL
    model = read_model_file(model_path) if base.symbols is Symbols.CHARACTERS and model_path.exists() else None
    if model is not None:
        _check_same_pieces(model, base)
    tokens = sorted(tokens, key=lambda token: len(token) > 1)  # letters first
    if words is not None:
        tokens = _by_use(base, tokens, room, words, progress)
    return _extended(base, _spliced(base, tokens, room), model)


def _by_use(base: BpeTokenizer, tokens: Sequence[str], room: int, words: Counter[str], progress: Progress) -> list[str]:
    """The tokens that words use most, in the order given, and behind them the others, the last one dropped first.

    The base is extended by all, and the least used are dropped until no more are left than there is room for. Uses are
    counted anew each time: a part of words is used where no token for the whole word is left.
    """
    kept, dropped = list(tokens), list[str]()
    first = before = 0
    while True:
        grown = _spliced(base, kept, sys.maxsize, exactly=False)
        excess = len(grown.added) - room
        first = first or excess
        progress(before - excess if before else 0, first)
        before = excess
        if excess <= 0:
            return [*kept, *reversed(dropped)]
        counts = uses(_extended(base, grown, None).tokenizer, words)
        least = sorted(kept, key=lambda token: -counts[token])[::-1]
        unused = sum(1 for token in least if not counts[token])
        gone = least[: max(1, excess // 2, min(excess, max(unused, room // 100)))]  # not one by one at the end
        dropped += gone
        out = set(gone)
        kept = [token for token in kept if token not in out]


def _spliced(base: BpeTokenizer, tokens: Sequence[str], room: int, *, exactly: bool = True) -> Splice:
    pieces = [base.piece_of(token) for token in tokens]
    grown = splice(base.vocabulary, base.ranks, pieces, room, every_split=base.symbols is Symbols.CHARACTERS)
    if exactly and len(grown.added) < room:
        most = len(grown.added)
        remedy = f"give --add {most}, or a donor with more" if most else "give a donor with others"
        raise VocabularyError(
            f"--add {room}: the donor has {len(tokens)} tokens of the script, with which the base can be extended by "
            f"{most} entries; {remedy}"
        )
    return grown


def _extended(base: BpeTokenizer, grown: Splice, model: ModelFile | None) -> Extension:
    """The tokenizer with new pieces behind the ids of the base, and new merges before its runs of spaces.

    Llama-2's runs of ▁ have the score -1e9, so their merges are the last; new ones after them would change how spaces
    before a new token are joined, in tokenizer.json but not in tokenizer.model.
    """
    from tokenizers import Tokenizer

    first = base.entries
    # Added tokens, too: `tokenizers` would put one that is missing here behind the new pieces.
    ids = {**base.vocabulary, **{token.content: number for number, token in _added_tokens(base).items()}}
    ids |= {piece: first + number for number, piece in enumerate(grown.added)}
    runs = _runs_at_the_end(base)
    content = None
    if model is not None:
        in_runs = {left + right for left, right in base.merges[len(base.merges) - runs :]}
        scores = _scores(model, in_runs, len(grown.added))
        if scores is None and runs:  # no room between: behind all, in both files
            runs, scores = 0, _scores(model, set(), len(grown.added))
        if scores is None:
            raise VocabularyError(
                f"{shown_path(model.path)}: its scores leave no room for {len(grown.added)} more; give another base"
            )
        entries = [_entry_of(base, number) for number in range(len(model.pieces), first)]
        entries += [ScoredPiece(piece, score, NORMAL) for piece, score in zip(grown.added, scores, strict=True)]
        content = extended_model(model, entries)
    place = len(base.merges) - runs
    merges = [*base.merges[:place], *grown.merges(ids), *base.merges[place:]]
    old = base.state["model"]
    written: list[Any] = [*map(list, merges)]
    if old["merges"] and isinstance(old["merges"][0], str):
        written = [" ".join(merge) for merge in merges]
    state = {**base.state, "model": {**old, "vocab": ids, "merges": written}}
    with explained("the extended tokenizer", VocabularyError):
        tokenizer = reading_text_as_data(Tokenizer.from_str(json.dumps(state)))
    return Extension(base, replace(base, tokenizer=tokenizer, state=state), grown.added, content)


def _runs_at_the_end(base: BpeTokenizer) -> int:
    """How many of the last merges make runs of ▁."""
    if base.symbols is not Symbols.CHARACTERS:
        return 0
    count = 0
    for left, right in reversed(base.merges):
        if (left + right).strip(SPACE):
            break
        count += 1
    return count


def _scores(model: ModelFile, in_runs: set[str], count: int) -> list[float] | None:
    """Scores for new pieces: below the base's, above those of its last runs of ▁.

    The score of ▁ itself, in Llama-2 that of the runs, says nothing: no two neighbours give it.
    """
    normal = [piece for piece in model.pieces if piece.type == NORMAL and piece.piece != SPACE]
    low = min((piece.score for piece in normal if piece.piece not in in_runs), default=0.0)
    high = max((piece.score for piece in normal if piece.piece in in_runs), default=float("-inf"))
    return scores_between(low, high, count)


def _entry_of(base: BpeTokenizer, number: int) -> ScoredPiece:
    """An entry that tokenizer.model lacks: an added token, or a gap, filled as llama.cpp's script does."""
    token = _added_tokens(base).get(number)
    if token is None:
        return ScoredPiece(f"[PAD{number}]", 0.0, UNUSED)
    return ScoredPiece(token.content, 0.0, CONTROL if token.special else USER_DEFINED)


def _added_tokens(base: BpeTokenizer) -> Mapping[int, AddedToken]:
    found: dict[int, AddedToken] = base.tokenizer.get_added_tokens_decoder()
    return found


def _check_same_pieces(model: ModelFile, base: BpeTokenizer) -> None:
    ids = base.tokenizer.get_vocab()
    for number, piece in enumerate(model.pieces):
        if ids.get(piece.piece) != number:
            raise VocabularyError(
                f"{shown_path(model.path)}: its entry {number} is {piece.piece!r}, which has the id "
                f"{ids.get(piece.piece)} in tokenizer.json; give the tokenizer.model that belongs to it, or remove it"
            )


def _tokenizer_config(path: Path) -> bytes:
    """The content of tokenizer_config.json: the base's with the class changed, and what the class decided spelled."""
    config: Any = {}
    if path.exists():
        config = parse_json(read_text(path, MIB, VocabularyError), shown_path(path), VocabularyError)
    if not isinstance(config, dict):
        raise VocabularyError(f"{shown_path(path)}: is no object of JSON; save the tokenizer again")
    if "Llama" in str(config.get("tokenizer_class")):
        config.setdefault("padding_side", "left")
    others = {key: value for key, value in config.items() if key not in ("auto_map", "legacy")}
    return (json.dumps({**_DEFAULTS, **others, **_CLASS}, ensure_ascii=False, indent=2) + "\n").encode()


def write_extension(extension: Extension, output: Path, others: Mapping[str, bytes]) -> None:
    """Write the folder that AutoTokenizer loads, with tokenizer.model where the base has one; whole or not at all.

    Args:
        extension: what is written.
        output: a new folder.
        others: further files, by name.
    """
    folder, files = extension.base.folder, dict(others)
    for pattern in TOKENIZER_FILES:
        for path in sorted(folder.glob(pattern)):
            name = path.relative_to(folder).as_posix()
            if name not in _REWRITTEN and path.is_file():
                files[name] = read_bytes(path, LARGEST, VocabularyError)
    files[TOKENIZER_CONFIG] = _tokenizer_config(folder / TOKENIZER_CONFIG)
    files[TOKENIZER] = (json.dumps(extension.tokenizer.state, ensure_ascii=False, indent=2) + "\n").encode()
    if extension.model is not None:
        files[MODEL] = extension.model
    with whole_folder(output) as hidden:
        for name, content in files.items():
            (hidden / name).parent.mkdir(exist_ok=True)
            (hidden / name).write_bytes(content)
