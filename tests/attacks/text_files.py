"""Damage text files and read them: `python tests/attacks/text_files.py --count N --seed S`; status 1 on a bad verdict.

One of the files .txt, .jsonl and SQuAD .json is damaged as bytes or as JSON, or holds something hostile; `data
tokenizer` or `data pack` reads it.
"""

import os
import random
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from tests.attacks import border
from tests.attacks.mutations import mutate_bytes, mutate_json

NAMES = ("a.txt", "b.jsonl", "c.ar.json")
HOSTILE = (
    *(
        b"",
        b"\0",
        b"\r",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xff\xfe\0a",
        b"\n" * 100_000,
        b" " * 5_000_000,
        b"\0" * 1_000_000,
    ),
    *(b"a" * 5_000_000, b"a " * 1_500_000, b"\xd9\x85" * 1_000_000, "\u0651".encode() * 100_000, b"\x80" * 1000),
    *(b'{"text": "\\ud800"}', b'{"text": "\\udfff\\ud800", "language": "ar"}', b'{"text": 1}', b'{"text": null}'),
    *(b'{"text": "x", "language": "' + language + b'"}' for language in (b"", b"..", b"a/b", b"x" * 33, b"\\u0000")),
    *(b'{"text": "' + b"x" * size + b'"}' for size in (4_200_000, 13_000_000)),
    *(b"[" * 100_000, b'{"data":' * 100_000, b"9" * 5000, b"NaN", b"[]", b"null", b'"x"', b"{}", b"1e999"),
    *(b'{"data": ' + value + b"}" for value in (b"[]", b"{}", b"null", b'"x"', b"[1]", b'[{"paragraphs": 5}]')),
    *(b'{"data": [{"paragraphs": [{"context": ' + value + b"}]}]}" for value in (b"1", b"[1]", b"{}", b'"\\ud800"')),
    *('"\u2028\u0085\x1c\x0b\x0c' + mark for mark in ("a", "<|endoftext|>", "</s>", "\ufeff", "\U0010ffff")),
)


def make_case(draw: random.Random, folder: Path) -> list[list[str]]:
    """A damaged text file and a command that reads it."""
    file = Path("texts", draw.choice(NAMES))
    kind = draw.randrange(8)
    if kind < 3:
        data = file.read_bytes()
        file.write_bytes(mutate_bytes(draw, data, [(0, len(data))]))
    elif kind < 5 and file.suffix != ".txt":
        lines = file.read_text(encoding="utf-8").splitlines()
        at = draw.randrange(len(lines))
        lines[at] = mutate_json(draw, lines[at], ("text", "language", "data", "paragraphs", "context"))
        file.write_text("\n".join(lines), encoding="utf-8")
    elif kind < 7:
        content = draw.choice(HOSTILE)
        content = content.encode() if isinstance(content, str) else content
        before = file.read_bytes() if draw.random() < 0.5 and len(content) < 1_000_000 else b""
        file.write_bytes(before + content)
    else:
        name = draw.choice((b"\xff.txt", b"a\nb.jsonl", b"x" * 250 + b".txt", b".txt", b"e.TXT", b"f.gz", b"-.txt"))
        target = os.fsencode(folder / "texts") + b"/" + name
        os.rename(file, target)
        if draw.random() < 0.3:
            os.remove(target)
            draw.choice((os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)))(target)
    text = draw.choice(("texts", str(file)))
    shortest = "1" if file.exists() and file.stat().st_size < 10_000 else "32"  # a row takes some microseconds
    held_out = draw.choice(("0", "2", "10"))
    if draw.random() < 0.5:
        verb = ["tokenizer", "--vocab-size", draw.choice(("257", "300", "2000"))]
    else:
        verb = ["pack", "--tokenizer", "tokenizer", "--max-sequence-length", draw.choice((shortest, "32", "1048576"))]
        verb += ["--vsl"] * draw.randrange(2)
    return [["cerebras-jais", "data", *verb, "--text", text, "--held-out", held_out, "--output", "new"]]


if __name__ == "__main__":
    border.main(__doc__ or "", make_case)
