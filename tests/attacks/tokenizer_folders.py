"""Damage tokenizers, use them: `python tests/attacks/tokenizer_folders.py --count N --seed S`; exit status 1 if bad.

A file of the folder is damaged as bytes or as text of JSON, or a value anywhere in it is replaced or removed; it is
used by `data pack`, `config check --tokenizer`, `generate`, or `checkpoint-convert to-hf --tokenizer`.
"""

import copy
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from tests.attacks import border
from tests.attacks.mutations import mutate_bytes, mutate_json

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 1.5, 299, 300, 2**31, 2**32 - 1, 2**32, 2**53, 2**64, 10**30, 1e300, "", "a"),
    *("<|endoftext|>", "Ġ", "\0", "x" * 100_000, "(", ".*", "[]", [], {}, [[]], [0], ["a", "b"], [["a", "b"]] * 1000),
    *({"content": "a"}, {"content": 5}, {"type": "Replace"}, {"type": "NFKC"}, {"type": "Sequence", "normalizers": []}),
    *(
        {"type": "Lowercase"},
        {"type": "Whitespace"},
        {"type": "WordLevel", "vocab": {}, "unk_token": "a"},
        {"a": 2**32},
    ),
    *({"type": "Fuse"}, {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {"type": "Strip", "strip_left": True}),
)
REMOVED = object()


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value of a JSON tree, the long lists and objects only at their ends."""
    found = [path] if path else []
    if isinstance(value, dict):
        keys = list(value)
        for key in keys if len(keys) < 50 else [*keys[:3], *keys[-3:]]:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for at in range(len(value)) if len(value) < 20 else (0, 1, len(value) - 1):
            found += places(value[at], (*path, at))
    return found


def replaced(draw: random.Random, text: str) -> str:
    """A JSON text with one or two values replaced or removed."""
    tree = json.loads(text)
    for _ in range(draw.choice((1, 1, 2))):
        path = draw.choice(places(tree) or [()])
        if not path:
            return json.dumps(draw.choice(VALUES))
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        value = draw.choice((REMOVED, *VALUES))
        if value is REMOVED:
            del parent[path[-1]]
        else:
            parent[path[-1]] = copy.deepcopy(value)  # the next change may go into it
    return json.dumps(tree)


def make_case(draw: random.Random, folder: Path) -> list[list[str]]:
    """A damaged tokenizer and a command that uses it."""
    names = ("tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    file = Path("tokenizer", draw.choice(names))
    text = file.read_text(encoding="utf-8")
    kind = draw.randrange(10)
    if kind < 6:
        file.write_text(replaced(draw, text), encoding="utf-8")
    elif kind < 7:
        file.write_text(mutate_json(draw, text, ("<|endoftext|>", "vocab", "merges")), encoding="utf-8")
    elif kind < 8:
        data = file.read_bytes()
        file.write_bytes(mutate_bytes(draw, data, [(0, len(data))]))
    elif kind < 9:
        hostile = ("[" * 100_000, '{"a":' * 100_000, "9" * 5000, "NaN", "null", '"\\ud800"', "", " " * 70_000_000)
        file.write_text(draw.choice(hostile))
    else:
        file.unlink()
        change = draw.randrange(4)
        if change == 0:
            os.mkfifo(file)
        elif change == 1:
            file.mkdir()
        elif change == 2:
            file.symlink_to("/dev/zero")
    verb = draw.choice(
        (
            "cerebras-jais data pack --text texts --max-sequence-length 32 --output new --tokenizer tokenizer",
            "cerebras-jais config check run.yaml --tokenizer tokenizer",
            "cerebras-jais generate x.mdl --prompt كلمة --max-new-tokens 2 --tokenizer tokenizer",
            "cerebras-jais score x.mdl --text texts/c.ar.json --tokenizer tokenizer",
            "checkpoint-convert to-hf x.mdl --output new --tokenizer tokenizer",
        )
    )
    return [verb.split()]


if __name__ == "__main__":
    border.main(__doc__ or "", make_case)
