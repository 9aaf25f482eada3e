"""The YAML of a data run, typed: every key is known, and any other is an error that names its line."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, field_validator, model_validator

from cerebras_jais.config.base import Count, PathText, Section, Seed, Size, refuse, within
from cerebras_jais.config.yaml_file import ConfigError, read_yaml
from cerebras_jais.data.clean.arabic import MarkOrder, Normalisation
from cerebras_jais.data.clean.cleaner import CleanerSettings
from cerebras_jais.data.clean.languages import BY_LETTERS
from cerebras_jais.data.clean.presets import PRESETS
from cerebras_jais.data.documents import LANGUAGE_TAG, sample_corpus_path
from cerebras_jais.encoding import Engine
from cerebras_jais.ranges import Range
from cerebras_jais.wording import suggestion

SAMPLE = "sample:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SHARE = Range(0, 1)
_POSITIVE = Range(1e-9, 1e9)
_SHARD_MIB = Range(1, 4096, whole=True)
_MEMORY = Range(0.1, 10_000)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise refuse(f"a name is of letters, digits, - and _, at most 64 (got {value[:80]!r}): it names a folder")
    return value


def _expanded(value: str) -> str:
    if value.startswith(SAMPLE):
        return str(sample_corpus_path() / value.removeprefix(SAMPLE))
    path = os.path.expanduser(os.path.expandvars(value))
    if left := re.search(r"\$\{?\w+\}?", path):
        raise refuse(f"the environment variable {left[0]} is not set; set it, or write the path out")
    return path


def _one_or_several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _encoding(value: str) -> str:
    try:
        return codecs.lookup(value).name
    except (LookupError, ValueError):
        raise refuse(f"unknown encoding {value[:40]!r}; such as utf-8, cp1256, latin-1, utf-16") from None


def _tag(value: str) -> str:
    if not LANGUAGE_TAG.fullmatch(value):
        raise refuse(f"must be a tag such as ar, en or code (got {value[:40]!r})")
    return value


Whole = TypeVar("Whole", bound=Section)
Name = Annotated[str, AfterValidator(_name)]
Tag = Annotated[str, AfterValidator(_tag)]
InputPath = Annotated[PathText, AfterValidator(_expanded)]
Paths = Annotated[list[InputPath], BeforeValidator(_one_or_several), Field(min_length=1)]
Weight = Annotated[float, within(_POSITIVE)]
Scope = Literal["across", "within", "off"]
"""Equal documents are sought among all sources, within each, or not at all."""


class Source(Section):
    """Files of one kind, with the language and the weight that they have in the mixture.

    The language `code` has the text passed on as it is, neither cleaned nor judged.
    """

    path: Paths
    format: Literal["auto", "txt", "jsonl", "csv", "parquet", "arrow", "squad"] = "auto"
    documents: Literal["whole", "blank-lines"] = "whole"
    """Of a .txt file: it is one document, or one for each part between blank lines."""
    text: str = "text"
    language: Tag | None = None
    language_field: str | None = None
    encoding: Annotated[str, AfterValidator(_encoding)] = "utf-8"
    weight: Weight | None = None


class Deduplicate(Section):
    """Which documents count as equal, and among which they are sought."""

    exact: Scope = "across"
    near: Scope = "off"
    engine: Literal["fast", "datatrove"] = "fast"
    """Words by a regular expression, or datatrove's own first stage (of Arabic 0.5 MB a second and core)."""
    words: Annotated[int, within(Range(1, 100, whole=True))] = 5
    buckets: Annotated[int, within(Range(1, 1000, whole=True))] = 14
    hashes: Annotated[int, within(Range(1, 1000, whole=True))] = 8

    @model_validator(mode="after")
    def _within_by_the_fast_engine(self) -> Deduplicate:
        if self.engine == "datatrove" and self.near == "within":
            raise refuse(
                "datatrove's first stage looks across sources; give `near: across`, or the engine fast", "near"
            )
        return self


class Decontaminate(Section):
    """Documents that hold a run of words of an evaluation set are dropped."""

    path: Paths
    format: Literal["auto", "txt", "jsonl", "csv", "parquet", "arrow", "squad"] = "auto"
    fields: list[str] = Field(default_factory=lambda: ["text"])
    words: Annotated[int, within(Range(2, 100, whole=True))] = 13


class Clean(Section):
    """How characters are repaired and normalised (`clean.arabic.Normalisation` says what each choice does)."""

    mojibake: bool = True
    normalise: bool = True
    mark_order: MarkOrder = MarkOrder.SHADDA_FIRST
    spell_out_signs: bool = False
    persian_letters: bool = False


class Language(Section):
    """How the language of a document is told, and which are kept."""

    model: str = BY_LETTERS
    minimum_score: Annotated[float, within(_SHARE)] = 0.0
    check: bool = False
    """Whether a document is dropped whose language is not the one that its source names."""
    keep: list[Tag] | None = None


class Steps(Section):
    """What happens to a document between its file and the tokenizer."""

    clean: Clean | None = Clean()
    language: Language = Language()
    quality: str | None = None
    """The name of a set of rules (`clean.presets`)."""
    deduplicate: Deduplicate = Deduplicate()
    decontaminate: Decontaminate | None = None

    @field_validator("quality")
    @classmethod
    def _known_rules(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise refuse(f"no such rules (got {value[:80]!r}); {suggestion(value, PRESETS)}")
        return value

    def cleaner_settings(self) -> CleanerSettings:
        """The same for `clean.cleaner`."""
        clean, language = self.clean, self.language
        return CleanerSettings(
            mojibake=clean is not None and clean.mojibake,
            normalisation=Normalisation(clean.mark_order, clean.spell_out_signs, clean.persian_letters)
            if clean is not None and clean.normalise
            else None,
            language_model=language.model,
            minimum_language_score=language.minimum_score,
            check_language=language.check,
            languages=None if language.keep is None else tuple(language.keep),
            quality=self.quality,
        )

    @field_validator("language", "deduplicate", mode="before")
    @classmethod
    def _null_is_default(cls, value: Any) -> Any:
        return {} if value is None else value


class Band(Section):
    """A share of a phase's tokens from documents of a length, up to the next band."""

    least: Annotated[int, within(Range(0, 2**31 - 1, whole=True))]
    """Tokens of a document, the end of text included."""
    share: Annotated[float, within(_POSITIVE)]


class Phase(Section):
    """One folder of packed data: a context and a mixture of the sources."""

    context: Size
    packing: Literal["stream", "vsl"] = "stream"
    weights: dict[str, Weight] | None = None
    mixture: Literal["rows", "folders"] = "rows"
    """Sources share the rows, or each has its own folder, for the Model Zoo's `mixture`."""
    tokens: Annotated[int, within(Range(1, 2**53, whole=True))] | None = None
    """How many; without it as many as there are before the first source is used up."""
    repeats: Annotated[float, within(Range(1, 1000))] = 1.0
    """How often a source, or one of its bands, may be seen at most."""
    bands: list[Band] = Field(default_factory=list)


class Slurm(Section):
    """How Slurm is asked for machines; `options` go to sbatch as they are."""

    partition: str
    time: str = "24:00:00"
    memory_gb: Annotated[int, within(Range(1, 10_000, whole=True))] = 4
    qos: str = ""
    largest_array: Count = 1001
    environment: str | None = None
    """A shell command that makes the environment of a job; without it this Python's programs are put on the PATH."""
    srun: bool = True
    options: dict[str, str | int] = Field(default_factory=dict)


class Ray(Section):
    """How Ray is asked for machines."""

    address: str | None = None
    memory_gb: Annotated[float, within(_MEMORY)] = 2.0


class Executor(Section):
    """Who does the work: this machine, where neither is given."""

    slurm: Slurm | None = None
    ray: Ray | None = None

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if value == "local":
            return {}
        if not isinstance(value, dict) or len(value) != 1:
            raise refuse("must be local, or one mapping named slurm or ray")
        return {name: {} if keys is None else keys for name, keys in value.items()}


class DataRun(Section):
    """A data run: sources, steps, tokenizer, phases, output, and who does the work."""

    sources: dict[Name, Source] = Field(min_length=1)
    steps: Steps = Steps()
    tokenizer: InputPath
    phases: dict[Name, Phase] = Field(min_length=1)
    output: InputPath
    seed: Seed = 0
    workers: Annotated[int, within(Range(1, 10_000, whole=True))] = Field(default_factory=lambda: os.cpu_count() or 1)
    executor: Executor = Executor.model_validate("local")
    engine: Engine = Engine.AUTO
    """What tokenises; all give the same ids."""
    on_error: Literal["stop", "count"] = "stop"
    kept: Annotated[int, within(Range(0, 100_000, whole=True))] = 100
    """Of the documents dropped for one reason so many are kept to look at."""
    shard_mib: Annotated[int, within(_SHARD_MIB)] = 128

    @model_validator(mode="after")
    def _weights_fit(self) -> DataRun:
        for name, phase in self.phases.items():
            weights = self.weights(phase)
            if unknown := sorted(weights.keys() - self.sources.keys()):
                raise refuse(f"the phase {name} gives a weight to {unknown[0]}, which is no source", "phases")
            if not weights:
                raise refuse(f"no source has a weight in the phase {name}; give `weight` to the sources", "sources")
        return self

    def weights(self, phase: Phase) -> dict[str, float]:
        """What each source weighs in a phase, in the order of the sources; all weigh the same where none is given."""
        given = phase.weights or {name: source.weight for name, source in self.sources.items() if source.weight}
        if not given:
            return dict.fromkeys(self.sources, 1.0)
        ordered = {name: given[name] for name in self.sources if name in given}
        return ordered | {name: weight for name, weight in given.items() if name not in ordered}


def read_settings(path: str | Path) -> DataRun:
    """The typed settings of a YAML. Raises ConfigError: one line with file, line number, key, and what to do."""
    return read_section(path, DataRun, "sources, tokenizer, phases and output")


def read_section(path: str | Path, section: type[Whole], keys: str) -> Whole:
    """The mapping of a YAML, typed as `section`, whose needed `keys` a message names. Raises ConfigError."""
    file = read_yaml(path)
    if not isinstance(file.data, dict):
        raise ConfigError(f"{path}: the file must hold a mapping with {keys}")
    try:
        return section.model_validate(file.data)
    except ValidationError as error:
        from cerebras_jais.config.trainer import problem_of

        problems = error.errors(include_url=False)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(file.message(problem_of(problems[0], file.data)) + more) from None
