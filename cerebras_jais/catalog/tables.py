"""What `cerebras-jais models` and `cerebras-jais config` print: the catalog and the configs as text and as JSON."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cerebras_jais.catalog.models import MODELS, lineage
from cerebras_jais.catalog.types import Model, Sourced
from cerebras_jais.catalog.yaml_files import Preset


def sourced_values(value: Any, path: str = "") -> Iterator[tuple[str, Sourced[Any]]]:
    """Every sourced value below a dataclass, with its dotted path."""
    if isinstance(value, Sourced):
        yield path, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            name = getattr(getattr(value, field.name), "name", field.name) if field.name == "phases" else field.name
            yield from sourced_values(getattr(value, field.name), f"{path}.{name}".lstrip("."))
    elif isinstance(value, tuple):
        for item in value:
            yield from sourced_values(item, f"{path}.{getattr(item, 'name', '')}".rstrip("."))


def model_row(model: Model) -> dict[str, Any]:
    """One model in a line: sizes, tokens in billions, and how many of its values are of which origin."""
    tokens = sum(phase.tokens for _, phase in lineage(model)) / 1e9
    return {
        "model": model.name,
        "parameters": model.parameters,
        "context": model.context.value,
        "tokens_published": None if model.mix is None else model.mix.total.value * 10**9,
        "tokens_configured": round(tokens * 1e9),
        "init_from": model.parent.value,
        "phases": [phase.name for phase in model.phases],
        "provenance": dict(Counter(value.origin for _, value in sourced_values(model))),
    }


def model_details(model: Model) -> dict[str, Any]:
    """Everything the catalog says of a model, each value with its origin and why."""
    values = {
        path: {"value": value.value, "origin": value.origin, "why": value.why} for path, value in sourced_values(model)
    }
    return {**model_row(model), "values": values, "scores": model.scores}


def models_table() -> str:
    """The 20 models, one a line."""
    rows = [["model", "parameters", "context", "tokens", "starts from", "published/derived/assumed"]]
    for model in MODELS:
        row = model_row(model)
        origins = row["provenance"]
        published = (
            f"{model.mix.total.value:,}B" if model.mix is not None else f"{row['tokens_configured'] / 1e9:.1f}B*"
        )
        rows.append(
            [
                model.name,
                f"{model.parameters:,}",
                f"{model.context.value:,}",
                published,
                str(row["init_from"] or "-"),
                "/".join(str(origins.get(o, 0)) for o in ("published", "derived", "assumed")),
            ]
        )
    table = columns(rows, right={1, 2, 3})
    return f"{table}\n* positions that its config goes through; the card counts instruction data in pairs"


def model_text(model: Model) -> str:
    """Everything of `model_details`, for people."""
    lines = [f"{model.name}: {model.parameters:,} parameters", ""]
    rows = [[path, shown(value.value), value.origin, value.why] for path, value in sourced_values(model)]
    lines.append(columns(rows))
    for language, scores in model.scores.items():
        lines += [
            "",
            f"published zero-shot scores, {language}:",
            "  " + ", ".join(f"{k} {v}" for k, v in scores.items()),
        ]
    return "\n".join(lines)


def preset_row(preset: Preset) -> dict[str, Any]:
    """One config in a line."""
    phases = [phase for _, phase in preset.trainers]
    return {
        "config": preset.name,
        "parameters": preset.model.parameters,
        "context": [phase.context.value for phase in phases],
        "batch_size": [phase.batch_size.value for phase in phases],
        "steps": [phase.steps.value for phase in phases],
        "tokens": sum(phase.tokens for phase in phases),
        "summary": preset.summary,
    }


def presets_table(presets: Sequence[Preset]) -> str:
    """The configs, one a line."""
    rows = [["config", "parameters", "context", "batch", "steps", "tokens"]]
    for preset in presets:
        row = preset_row(preset)
        several = (", ".join(f"{n:,}" for n in row[key]) for key in ("context", "batch_size", "steps"))
        tokens = row["tokens"]
        size = f"{tokens / 1e9:,.1f}B" if tokens >= 1e8 else f"{tokens:,}"
        rows.append([preset.name, f"{row['parameters']:,}", *several, size])
    return columns(rows, right={1, 2, 3, 4, 5})


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What two YAML trees say differently: dotted path, value of each; `...` where one of them says nothing.

    Values are equal if a trainer takes them as equal: numbers by their value, and a text beside a number as the number
    that it spells (the YAML reader of the Model Zoo takes 1e-5 for text, and its trainer for the number).
    """
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            yield from differences(ours.get(key, ...), theirs.get(key, ...), f"{path}.{key}".lstrip("."))
    elif _are_sections(ours) and _are_sections(theirs):
        for index in range(max(len(ours), len(theirs))):
            one, other = (side[index] if index < len(side) else ... for side in (ours, theirs))
            yield from differences(one, other, f"{path}[{index}]")
    elif not _are_equal(ours, theirs):
        yield path, ours, theirs


def _are_equal(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_are_equal, ours, theirs))
    if isinstance(ours, str) != isinstance(theirs, str):
        ours, theirs = _number(ours), _number(theirs)
    return isinstance(ours, bool) == isinstance(theirs, bool) and bool(ours == theirs)


def _number(value: Any) -> Any:
    """The number that a text spells; any other value as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def shown(value: Any) -> str:
    """A value in one line of text."""
    if value is ...:
        return "(not given)"
    return (
        f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else "none"
        if value is None
        else str(value)
    )


def columns(rows: Sequence[Sequence[str]], right: set[int] | frozenset[int] = frozenset()) -> str:
    """Rows as aligned text; the columns in `right` to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
