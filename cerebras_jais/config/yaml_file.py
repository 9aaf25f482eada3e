"""A YAML file read so that every key knows its line, and in bounded time and memory whatever the file holds.

Duplicate keys are refused. As in YAML 1.2, `1e-5` is a number and `2024-01-01` is text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cerebras_jais.errors import Keys, Problem, UserError, dotted
from cerebras_jais.files import MIB, read_text
from cerebras_jais.params import trainers_of

# A trainer YAML has a few hundred values; thousands of data folders are possible.
_LARGEST = MIB  # bytes
_MOST_VALUES = 20_000  # keys count too, and the values behind an alias count wherever the alias is
_DEEPEST = 50
_LONGEST_NUMBER = 400  # characters
_NO_CHARACTER = re.compile(r"[\x00\ud800-\udfff]")  # "\0" and "\ud800" in quotes: in no file name, and not printable
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}


class ConfigError(UserError):
    """A trainer YAML that cannot be used; the message gives file, line and key."""


class ModelZooAloneError(ConfigError):
    """A trainer YAML that this project cannot read, and that the Model Zoo may be able to train."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that stops at too many values or too great a depth, before it constructs any of them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._values += 1
        self._depth += 1
        if self._values > _MOST_VALUES or self._depth > _DEEPEST:
            too = f"more than {_MOST_VALUES} values" if self._depth <= _DEEPEST else f"nested more than {_DEEPEST} deep"
            raise yaml.MarkedYAMLError(problem=too, problem_mark=self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_MERGE = "tag:yaml.org,2002:merge"
_DATE = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class ConfigFile:
    """A YAML file, read once: its text, `data` as plain values, and the line of each key and item by its path.

    `merged` has the paths of the keys that come in by `<<`, without those below them.
    """

    path: Path
    text: str
    data: Any
    lines: Mapping[Keys, int]
    merged: frozenset[Keys]

    def is_merged(self, keys: Keys) -> bool:
        """Whether a key, or one above it, comes in by `<<`; its line is then that of another section."""
        return any(keys[:length] in self.merged for length in range(1, len(keys) + 1))

    @property
    def trainers(self) -> list[tuple[Keys, Any]]:
        """See `params.trainers_of`."""
        return trainers_of(self.data)

    def location(self, keys: Keys) -> str:
        """`file, line n: a.b[0].c`, with the line of the deepest key that the file has."""
        known = keys
        while known and known not in self.lines:
            known = known[:-1]
        line = f", line {self.lines[known]}" if known else ""
        return f"{self.path}{line}: {dotted(keys)}".rstrip(": ")

    def message(self, problem: Problem) -> str:
        """The line that says a problem: file, line and key, then what is wrong there."""
        return f"{self.location(problem.keys)}: {problem.message}"


def read_yaml(path: str | Path) -> ConfigFile:
    """Parse a YAML file with the line of every key.

    Raises ConfigError for a file that is absent, no regular file, not UTF-8 or too large, broken YAML, a key given
    twice in one mapping, a value that contains itself, and more or deeper values than a trainer YAML can have.
    """
    return parse_yaml(read_text(Path(path), _LARGEST, ConfigError), Path(path))


def parse_yaml(text: str, path: Path) -> ConfigFile:
    """Parse the text of a YAML file as `read_yaml` does; `path` is for the messages."""
    lines: dict[Keys, int] = {}
    merged: set[Keys] = set()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{path}: the file is empty")
        _check_values(path, loader, node, {})
        _record_lines(path, node, (), lines, merged)
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {str(error.problem or error.context)[:200]}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}".replace("\n", " ")) from error
    return ConfigFile(path, text, data, lines, frozenset(merged))


def _check_values(path: Path, loader: _Loader, node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Visit each node once; the number of values under it with those behind aliases counted wherever these are.

    Args:
        sizes: that number by the id of a node, None while the node is being visited.
    """
    where = f"{path}, line {node.start_mark.line + 1}"
    if id(node) in sizes:
        size = sizes[id(node)]
        if size is None:
            raise ConfigError(f"{where}: a value contains itself; remove the alias that refers to it")
        return size
    sizes[id(node)] = None
    if node.tag not in _PLAIN:
        raise ConfigError(f"{where}: a value has the tag {node.tag[-40:]}, which no key accepts; remove the tag")
    size = 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", _MERGE):
                place = f"{path}, line {key.start_mark.line + 1}"
                raise ConfigError(f"{place}: a key must be text; put it in quotes if it is meant as a name")
            size += _check_values(path, loader, value, sizes)
            if key.tag != _MERGE:
                size += _check_values(path, loader, key, sizes)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_check_values(path, loader, item, sizes) for item in node.value)
    elif _NO_CHARACTER.search(node.value):
        raise ConfigError(f"{where}: a text contains a null byte or half of a surrogate pair (\\0, \\ud800); remove it")
    elif node.tag != "tag:yaml.org,2002:str":
        if len(node.value) > _LONGEST_NUMBER:
            raise ConfigError(f"{where}: a number has {len(node.value)} characters; write at most {_LONGEST_NUMBER}")
        try:
            loader.construct_object(node)
        except (ValueError, LookupError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConfigError(
                f"{where}: {node.value[:40]!r} has the tag {kind} but is not of that type; remove the tag"
            ) from error
    if size > _MOST_VALUES:
        raise ConfigError(f"{where}: its aliases expand to more than {_MOST_VALUES} values; write the values out")
    sizes[id(node)] = size
    return size


def _record_lines(path: Path, node: yaml.Node, keys: Keys, lines: dict[Keys, int], merged: set[Keys]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, entry in _entries(path, node, keys).items():
            lines[*keys, key] = entry.line
            if entry.is_merged:
                merged.add((*keys, key))
            _record_lines(path, entry.value, (*keys, key), lines, merged)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[*keys, index] = item.start_mark.line + 1
            _record_lines(path, item, (*keys, index), lines, merged)


class _Entry(NamedTuple):
    line: int
    value: yaml.Node
    is_merged: bool = False


def _entries(path: Path, node: yaml.MappingNode, keys: Keys) -> dict[str, _Entry]:
    """The keys of the mapping at `keys`, with those that it takes over by `<<`.

    Its own keys replace merged ones, and of several merged mappings the first counts. Raises ConfigError for a key, or
    `<<`, that is given twice in one mapping.
    """
    own: dict[str, _Entry] = {}
    merged: list[yaml.Node] = []
    for key_node, value in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if key in own:
            raise ConfigError(
                f"{path}, line {line}: {dotted((*keys, key))} is given twice, on line {own[key].line} too; remove one"
            )
        own[key] = _Entry(line, value)
        if key_node.tag == _MERGE:
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
    if merged:
        del own["<<"]
    for source in merged:
        if isinstance(source, yaml.MappingNode):
            taken = {key: entry._replace(is_merged=True) for key, entry in _entries(path, source, keys).items()}
            own = {**taken, **own}
    return own
