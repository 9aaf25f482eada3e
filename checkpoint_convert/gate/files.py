"""Checks of the files of a release: JSON, manifest, code, model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cerebras_jais.config.yaml_file import parse_yaml
from cerebras_jais.errors import UserError
from cerebras_jais.files import MIB, read_text
from checkpoint_convert.card import LLAMA_2_NOTICE, needs_notice
from checkpoint_convert.errors import ConversionError, first_few
from checkpoint_convert.formats.json_files import read_json
from checkpoint_convert.formats.release_directory import CARD, CONFIG, MANIFEST, NOTICE, names_in
from checkpoint_convert.gate.report import Skipped, require_none
from checkpoint_convert.gate.subject import Subject
from checkpoint_convert.mapping.rules import JAIS, LLAMA
from checkpoint_convert.open_model import weights_of
from checkpoint_convert.verify.code_versions import current_version
from checkpoint_convert.verify.manifest import manifest_path, read_manifest
from checkpoint_convert.verify.release_code import read_code
from checkpoint_convert.verify.release_files import check_files

_FRONT_MATTER = re.compile(r"\A---\n(.*?\n)---\n", re.DOTALL)
_NEEDED = ("language", "license", "library_name", "pipeline_tag")
_WANTED = ("base_model", "datasets", "model-index")


def check_json(subject: Subject) -> str:
    """Every JSON file of the release is a JSON object in UTF-8, no key twice."""
    names = [name for name in names_in(subject.path) if name.endswith(".json")]
    problems = []
    for name in dict.fromkeys([CONFIG, *names]):
        try:
            read_json(subject.path / name)
        except UserError as error:
            problems.append(str(error))
    require_none(problems)
    return f"{len(names)} JSON files"


def check_manifest_files(subject: Subject) -> str:
    """The files of the release are those of its manifest, with the digests that it lists."""
    path = manifest_path(subject.path)
    manifest = read_manifest(path)
    if manifest is None and subject.is_published:
        raise Skipped(f"it has no {MANIFEST}: no conversion of this package wrote it")
    if manifest is None:
        raise ConversionError(f"{path}: is missing; convert the checkpoint again, which writes it")
    try:
        weights = {tensor.path.name for tensor in weights_of(subject.path, subject.allow_pickle).values()}
    except UserError:  # what is wrong with them is for the check of the weights
        weights = set(manifest.shards)
    differences, notes = check_files(subject.path, manifest, weights)
    require_none(
        [
            f"{subject.path / name}: {what}; take the file of the conversion again, or convert anew"
            for name, what in differences.items()
        ]
    )
    edited = f"; edited since: {first_few(sorted(note.split(':')[0] for note in notes))}" if notes else ""
    return f"{len(manifest.files or ())} files as {MANIFEST} lists them{edited}"


def check_code(subject: Subject) -> str:
    """The code of the release is the current version of this package's."""
    code = read_code(subject.path)
    what_to_do = "convert again to have this package's code"
    require_none([f"{subject.path / name}: {what}; {what_to_do}" for name, what in code.problems.items()])
    if code.is_earlier:
        now = current_version()
        old = sorted(name for name, digest in code.digests.items() if now.get(name) != digest)
        raise ConversionError(
            f"{subject.path}: {', '.join(old or sorted(now.keys() - code.files.keys()))}: an earlier version of this "
            f"package's code; {what_to_do}"
        )
    return "this package's code" if code.files else "none, as in every Llama release"


def check_card(subject: Subject) -> str:
    """README.md has the front matter that the hub reads, and an adapted release Llama 2's notice."""
    path = subject.path / CARD
    text = read_text(path, MIB, ConversionError)
    front = front_matter(text, str(path))
    problems = [
        f"{path}: its front matter has no {key}; give it in the YAML of `to-hf --card`, or write it there"
        for key in _NEEDED
        if not front.get(key)
    ]
    bases = front.get("base_model")
    named = None if bases is None else tuple(map(str, bases)) if isinstance(bases, list) else (str(bases),)
    if needs_notice(LLAMA if subject.config_json.get("model_type") == LLAMA.name else JAIS, named):
        notice = subject.path / NOTICE
        for file in (path, notice):
            found = read_text(file, MIB, ConversionError) if file.exists() else ""
            if LLAMA_2_NOTICE not in " ".join(found.split()):
                problems.append(
                    f"{file}: lacks Llama 2's notice, which its licence demands: {LLAMA_2_NOTICE} (or name other base "
                    "models in the card)"
                )
    require_none(problems)
    absent = [key for key in _WANTED if not front.get(key)]
    return f"licence {front['license']}" + (f"; not given: {', '.join(absent)}" if absent else "")


def front_matter(text: str, where: str) -> Mapping[str, Any]:
    """The front matter of a README.md; ConversionError where it has none that can be read."""
    found = _FRONT_MATTER.match(text)
    if found is None:
        raise ConversionError(f"{where}: does not begin with front matter between two lines ---; write it")
    try:
        data = parse_yaml(found[1], Path(where)).data
    except UserError as error:
        raise ConversionError(f"{error} (in its front matter)") from error
    if not isinstance(data, dict):
        raise ConversionError(f"{where}: its front matter is not a mapping; write keys such as license: apache-2.0")
    return data
