"""Damage trainer YAML as text: `python tests/attacks/yaml_files.py --count N --seed S`; exit status 1 on a bad verdict.

A valid file is damaged as bytes, line by line, or a value or key of it is replaced by hostile YAML; it is read by
`config check`, `diff`, `show` and `write --stock`, `fit --dry-run` and `checkpoint-convert inspect --config`.
"""

import random
import re
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from tests.attacks import border
from tests.attacks.mutations import mutate_bytes

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("[!d]*/*.yaml"))  # without data runs
BOMB = "&b0 [x, x, x, x, x, x, x, x, x]"
VALUES = (
    *("!!int abc", "!!float x", "!!bool x", "!!null x", "!!binary x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]"),
    *(
        "!!python/name:os.system",
        "!!timestamp 2024-01-01",
        "!!timestamp x",
        "!unknown x",
        "!!str",
        "!!map x",
        "!!seq {}",
    ),
    *("&a [*a]", "&a {b: *a}", "&a {<<: *a}", "*nope", "{<<: {name: x}}", "{<<: 5}", "{<<: [1]}", "{<<: *nope}", "<<"),
    *("2024-01-01", "2024-01-01T00:00:00Z", "12:30:45", "1:59" * 50, "0x1f", "0b1", "0o17", "017", "1_000", "=", "~"),
    *("9" * 300, "9" * 5000, "0x" + "f" * 1000, "1e400", "-1e400", ".inf", "-.inf", ".nan", "1e-400", "-0.0", "1e5"),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\x1b[31m"',
        '"\\u2028"',
        '"a\\nb"',
        "\x07",
        "\x85",
        "\u2028",
        "\ufeff",
        "'",
        '"',
        "|",
        ">",
    ),
    *("[" * 60 + "]" * 60, "[" * 5000, "{a: " * 60 + "1" + "}" * 60, "- - - -", "? a", "[a, b: c]", "{a: 1, a: 2}"),
    *("{1: a}", "{true: a}", "{null: a}", "{1.5: a}", "{[a]: b}", "{? {a: b} : c}", "[1, a, null, {}]", "{}", "[]", ""),
    *(
        "yes",
        "no",
        "on",
        "off",
        "null",
        "True",
        "x" * 100_000,
        "[" + "1, " * 30_000 + "]",
        "ا" * 1000,
        "%s",
        "{0}",
        "@a",
    ),
    *("`a`", "#", "---", "...", "%YAML 1.1", "\t", "  x: y", "../../x", "/dev/zero", "a\\b", "C:\\x", "a: b", "- a"),
)
KEYS = (
    "1",
    "true",
    "null",
    "<<",
    "2024-01-01",
    "[a]",
    "? [a]\n",
    "&a a",
    "*a",
    "!!int 1",
    '"\\ud800"',
    "'a b'",
    "=",
    ".",
)


def hostile(draw: random.Random, text: str) -> str:
    """A YAML text with one value, key or line replaced by something hostile."""
    lines = text.split("\n")
    keyed = [at for at, line in enumerate(lines) if re.match(r"\s*(- )?\w+:", line)]
    if not keyed:  # an earlier damage left none
        return text
    at = draw.choice(keyed)
    head, key, value = re.match(r"(\s*(?:- )?)(\w+):(.*)", lines[at]).groups()  # type: ignore[union-attr]
    match draw.randrange(9):
        case 0 | 1 | 2 | 3:
            lines[at] = f"{head}{key}: {draw.choice(VALUES)}"
        case 4:
            lines[at] = f"{head}{draw.choice((*KEYS, *VALUES))}:{value}"
        case 5:
            del lines[at]
        case 6:
            lines.insert(at, draw.choice((lines[at], draw.choice(lines), f"{head}{draw.choice(VALUES)}")))
        case 7:
            indent = draw.choice(("", " ", "\t", "   ", " " * 40, "- "))
            lines[at] = indent + lines[at].lstrip()
        case 8:
            rows = [f"bomb{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, draw.choice((3, 10, 30)))]
            lines = [f"bomb0: {BOMB}", *rows, *lines] if draw.random() < 0.5 else [*lines, f"bomb0: {BOMB}", *rows]
    return draw.choice(("\n", "\n", "\n", "\r\n", "\r", "\u2028")).join(lines)


def make_case(draw: random.Random, folder: Path) -> list[list[str]]:
    """A damaged YAML file and a command that reads it."""
    file = Path("run.yaml")
    text = file.read_text(encoding="utf-8")
    if draw.random() < 0.5:
        text = draw.choice(CONFIGS).read_text(encoding="utf-8")
    kind = draw.randrange(6)
    if kind < 4:
        for _ in range(draw.choice((1, 1, 1, 2))):
            text = hostile(draw, text) if "\n" in text else text
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
    else:
        data = text.encode()
        file.write_bytes(mutate_bytes(draw, data, [(0, len(data))]))
    verb = draw.choice(
        (
            *("config check run.yaml", "config check run.yaml --json", "config diff run.yaml tiny/jais"),
            *("config diff tiny/jais run.yaml --json", "config show run.yaml", "fit run.yaml --dry-run"),
            *("config write run.yaml --stock --output new.yaml", "inspect x.mdl --config run.yaml"),
            "generate x.mdl --tokenizer tokenizer --prompt x --max-new-tokens 1 --config run.yaml",
        )
    )
    program = "checkpoint-convert" if verb.startswith("inspect") else "cerebras-jais"
    return [[program, *verb.split()]]


if __name__ == "__main__":
    border.main(__doc__ or "", make_case)
