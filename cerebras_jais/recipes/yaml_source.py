"""A YAML file read so that every key knows its line: duplicate keys refused, `1e-5` a number as in YAML 1.2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cerebras_jais.errors import UserError

SPELLING = 0.75  # share of letters, of `difflib`, above which one name is taken for a slip of another


class RecipeError(UserError):
    """A trainer YAML that cannot be used; the message gives file, line and key."""


class ModelZooAloneError(RecipeError):
    """A trainer YAML of what this project has no part in, and the Model Zoo may be able to train."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that also takes 1e-5 for a number, which PyYAML's YAML 1.1 rule does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class YamlSource:
    """A parsed YAML file: `data` as plain Python values, `lines` from the path of each key or item to its line."""

    path: Path
    data: Any
    lines: dict[tuple[str | int, ...], int]

    def place(self, keys: Sequence[str | int]) -> str:
        """`file, line n: a.b[0].c`, with the line of the deepest key that the file has."""
        known = tuple(keys)
        while known and known not in self.lines:
            known = known[:-1]
        line = f", line {self.lines[known]}" if known else ""
        return f"{self.path}{line}: {dotted(keys)}".rstrip(": ")


def dotted(keys: Iterable[str | int]) -> str:
    """`trainer.init.schedulers[0].LinearLR` for the path of a key."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else (f".{key}" if text else str(key))
    return text


def undotted(text: str) -> tuple[str | int, ...]:
    """The path of a key that `dotted` wrote."""
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", text))


def suggestion(
    key: str, known: Iterable[str], otherwise: str = "the Model Zoo 2.10 has none of a name like this"
) -> str:
    """A phrase naming the known name that an unknown one is a slip of, or listing the known ones if they are few.

    It never advises what would make another run of it.
    """
    known = sorted(known)
    # Underscores and case are the usual slips: compare without them first.
    plain = {k.replace("_", "").lower(): k for k in known}
    near = difflib.get_close_matches(key.replace("_", "").lower(), plain, n=1, cutoff=SPELLING)
    if near:
        return f"did you mean {plain[near[0]]!r}?"
    if 0 < len(known) <= 12:
        return f"known here: {', '.join(known)}"
    return otherwise


def read_yaml(path: str | Path) -> YamlSource:
    """Parse a YAML file with the line of every key; where there is no such file, the config of ours of that name.

    Raises RecipeError for what is neither a file nor a config of ours, an unreadable file, broken YAML, or a key given
    twice in one mapping.
    """
    path = Path(path)
    if not path.exists():
        from cerebras_jais.recipes.build import find_recipe, recipe_yaml  # which stands on this module

        recipe = find_recipe(str(path))
        return parse_yaml(recipe_yaml(recipe), Path(recipe.name))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text: {error}") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> YamlSource:
    """Parse the text of a YAML file as `read_yaml` does; `path` stands in the messages."""
    lines: dict[tuple[str | int, ...], int] = {}
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise RecipeError(f"{path}: the file is empty")
        _record_lines(path, node, (), lines)
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{path}{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}".replace("\n", " ")) from error
    finally:
        loader.dispose()
    return YamlSource(path, data, lines)


def _record_lines(path: Path, node: yaml.Node, keys: tuple[str | int, ...], lines: dict) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in seen:
                raise RecipeError(
                    f"{path}, line {line}: {dotted((*keys, key))} is given twice, on line {seen[key]} too; remove one"
                )
            seen[key] = line
            lines[*keys, key] = line
            _record_lines(path, value, (*keys, key), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*keys, index] = item.start_mark.line + 1
            _record_lines(path, item, (*keys, index), lines)
