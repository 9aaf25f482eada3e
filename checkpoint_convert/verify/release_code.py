"""The code in a release: compared with this package's code, and run from the bytes that were compared.

Loading a release runs the Python files in it and the code that its configs name. All of it must therefore be a version
of this package's code (code_versions.py). Otherwise none of it is run, unless the user asks for it. Nothing is ever
downloaded.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from cerebras_jais.interrupts import scratch_folder
from checkpoint_convert.configs.jais import AUTO_MAP
from checkpoint_convert.errors import ConversionError
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import CODE_SUFFIXES, CONFIG, names_in
from checkpoint_convert.mapping.rules import LLAMA
from checkpoint_convert.streaming.digest import digest_of
from checkpoint_convert.verify.code_versions import current_version, known_versions

_LARGEST_FILE = 1 << 20  # bytes of a Python file; this package's have a few tens of thousands


@dataclass(frozen=True)
class ReleaseCode:
    """The code of a release, read once, so that the code that is run is the code that was compared."""

    release: Path
    config: Mapping[str, Any]
    """The content of config.json."""
    files: Mapping[str, bytes]
    """Name of a Python file -> its content."""
    problems: Mapping[str, str]
    """Name of a file -> how it differs from this package's code; empty when the release has no other code."""
    elsewhere: Mapping[str, str]
    """Name of a config -> a reference to code that is not in the release."""

    @property
    def digests(self) -> dict[str, str]:
        """Name of a Python file -> its digest."""
        return _digests(self.files)

    @property
    def is_earlier(self) -> bool:
        """Whether the code is an earlier version of this package's."""
        return bool(self.files) and not self.problems and self.digests != current_version()


def read_code(release: Path) -> ReleaseCode:
    """Read the code of a release and compare it with this package's; nothing is run.

    Raises:
        ConversionError: config.json cannot be read, or a file cannot.
    """
    config = read_json(release / CONFIG)
    names = names_in(release)
    is_jais = config.get("model_type") == "jais"
    files: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    for name in names:
        path = release / name
        if path.is_dir():
            problems[name] = "a link to a directory, which may hold code"
        elif path.suffix.lower() == ".py" and path.is_file():
            files[name] = _content(path)
        elif path.suffix.lower() in CODE_SUFFIXES:
            problems[name] = "code that no version of this package has"
    problems |= _unknown(files) if is_jais else dict.fromkeys(files, "code, which a Llama release does not have")
    for name in names:
        if not name.endswith(CONFIG) or "/" in name or not (release / name).is_file():
            continue
        allowed = AUTO_MAP if is_jais and name == CONFIG else {}
        try:
            about = config if name == CONFIG else read_json(release / name)
        except ConversionError:
            problems.setdefault(name, "not a readable JSON object; it may name code")
            continue
        for key, reference, is_elsewhere in _references(about, allowed):
            problems.setdefault(name, f"{key} names {reference}, which is not this package's code")
            if is_elsewhere:
                elsewhere.setdefault(name, f"{key} names {reference}")
    return ReleaseCode(release, config, files, problems, elsewhere)


@contextmanager
def classes_of(code: ReleaseCode, *, trust: bool) -> Iterator[tuple[Any, Any]]:
    """The (configuration, model) classes of a release; its code can be imported within the block.

    A Llama release uses the classes of transformers. A Jais release uses those in its own files.

    Args:
        code: from `read_code`.
        trust: also run code in the release that is not this package's.

    Raises:
        ConversionError: the code is not this package's and not trusted, is outside the release, or is missing.
    """
    if code.problems and not trust:
        raise ConversionError(
            f"{code.release}: its code is not a version of this package's ({', '.join(code.problems)}) and is not run; "
            "read it first, then give --trust-release-code to run it"
        )
    for name, what in code.elsewhere.items():
        raise ConversionError(
            f"{code.release / name}: {what}, which is not in the release; code is never downloaded: "
            "put it into the release and name it there, or remove the entry"
        )
    named = AUTO_MAP if code.config.get("model_type") == "jais" else {}
    if code.problems:
        named = code.config.get("auto_map") or {}
        if not isinstance(named, Mapping):
            raise ConversionError(f"{code.release / CONFIG}: auto_map must be a mapping (got {named!r})")
    with _importable(code) as package:
        yield tuple(_class(code, package, named, kind) for kind in ("AutoConfig", "AutoModelForCausalLM"))


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: digest_of(content) for name, content in files.items()}


def _unknown(files: Mapping[str, bytes]) -> dict[str, str]:
    """Name of a file -> how it differs from this package's code, in the version that has most of these files."""
    found = _digests(files)
    versions = known_versions()
    nearest = max(versions, key=lambda version: len(version.items() & found.items()))
    problems = dict.fromkeys(nearest.keys() - found.keys(), "missing, but the rest of the code needs it")
    for name, digest in found.items():
        if nearest.get(name) != digest:
            is_ours = any(version.get(name) == digest for version in versions)
            problems[name] = f"{'of another' if is_ours else 'not a'} version of this package's code"
    return dict(sorted(problems.items()))


def _references(config: Mapping[str, Any], allowed: Mapping[str, str]) -> Iterator[tuple[str, str, bool]]:
    """(key, reference, whether it is outside the release) of all code that a config names, except the allowed."""
    for key, value in config.items():
        if not value:
            continue
        if key == "auto_map" and isinstance(value, Mapping):
            for kind, reference in value.items():
                if allowed.get(kind) != reference:
                    yield f"{key}.{kind}", _shown(reference), "--" in str(reference)
        elif key in ("auto_map", "custom_pipelines"):
            yield key, _shown(value), "--" in str(value)
        elif key.endswith("_implementation") and "/" in str(value):  # transformers downloads such a kernel from its hub
            yield key, _shown(value), True


def _shown(reference: Any) -> str:
    text = repr(reference)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _content(path: Path) -> bytes:
    """A Python file, cut where it is longer than any of this package's."""
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def _importable(code: ReleaseCode) -> Iterator[str]:
    """Write the files to a private directory as a package; yields its name."""
    with scratch_folder("release_code_") as directory:
        for name, content in code.files.items():
            if len(content) > _LARGEST_FILE:
                raise ConversionError(f"{code.release / name}: has more than {_LARGEST_FILE} bytes and is not run")
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        spec = ModuleSpec(directory.name, None, is_package=True)
        spec.submodule_search_locations = [str(directory)]
        sys.modules[spec.name] = module_from_spec(spec)
        try:
            yield spec.name
        finally:
            for name in [name for name in sys.modules if name == spec.name or name.startswith(f"{spec.name}.")]:
                del sys.modules[name]


def _class(code: ReleaseCode, package: str, named: Mapping[str, Any], kind: str) -> Any:
    """The class that a config names, from the package; for Llama without a name, the class of transformers."""
    reference = named.get(kind)
    if reference is None and code.config.get("model_type") == "llama":
        import transformers

        return getattr(
            transformers, {"AutoConfig": "LlamaConfig", "AutoModelForCausalLM": LLAMA.transformers_class}[kind]
        )
    if not isinstance(reference, str) or not re.fullmatch(r"\w+\.\w+", reference):
        raise ConversionError(
            f"{code.release / CONFIG}: auto_map.{kind} must name a class as module.Class (got {reference!r})"
        )
    module, name = reference.split(".")
    return getattr(importlib.import_module(f"{package}.{module}"), name)
