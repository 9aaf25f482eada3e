"""What is said of a lowered phase: its programs in numbers, beside those that the config alone gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cerebras_jais.cirh.program import ProgramError, TensorType, read_program
from cerebras_jais.cirh.summary import MODEL, Held, summarize
from cerebras_jais.config.yaml_file import ConfigFile
from cerebras_jais.errors import dotted
from cerebras_jais.interrupts import scratch_folder
from cerebras_jais.launch.estimate import evaluation_flops, model_size, training_flops
from cerebras_jais.launch.phases import Phase
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.tensors import tensors
from cerebras_jais.modelzoo.lower.phase import (
    LoweredPhase,
    LoweredProgram,
    LoweringError,
    lower_phase,
)

_SHOWN = 8  # kinds of operations, and names, in a line for people


def lower_phases(
    file: ConfigFile, phases: Iterable[tuple[Phase, Mapping[str, Any]]], folder: Path | None = None
) -> Iterator[dict[str, Any]]:
    """Lower phases of a trainer YAML, one after another; the facts of each.

    Args:
        file: the YAML.
        phases: each with its mapping under `trainer:`.
        folder: where the programs go, those of phase N into `phase-N`; None: nowhere.

    Yields `facts`, or for a phase that cannot be lowered {"file", "phase", "phases", "error": one line}.
    """
    with scratch_folder("cerebras-jais-programs-") as temporary:
        for phase, raw in phases:
            try:
                yield facts(lower_phase(file, phase, raw, (folder or temporary) / f"phase-{phase.number}"))
            except (LoweringError, ProgramError) as error:
                yield {"file": str(file.path), "phase": phase.number, "phases": phase.count, "error": str(error)}


def facts(lowered: LoweredPhase) -> dict[str, Any]:
    """Everything that is said of a phase, as plain values: bytes, seconds, counts of numbers and of operations.

    Raises ProgramError, with the file, for a program that this project cannot read.
    """
    phase = lowered.phase
    return {
        "file": phase.config.source,
        "phase": phase.number,
        "phases": phase.count,
        "model": phase.config.init.model.name,
        "seconds": round(lowered.seconds, 1),
        "processor_seconds": round(lowered.processor_seconds, 1),
        "memory_bytes": lowered.memory,
        "stand_ins": [dotted(("trainer", *keys)) for keys in lowered.stand_ins],
        "programs": [_program_facts(program, phase.config.init.model) for program in lowered.programs],
    }


def _program_facts(program: LoweredProgram, model: DecoderConfig) -> dict[str, Any]:
    try:
        summary = summarize(read_program(program.cirh.read_text(encoding="utf-8")))
    except ProgramError as error:
        raise ProgramError(f"{program.cirh}: {error}") from None
    size, tokens = model_size(model), program.batch_size * model.max_position_embeddings
    estimate = (training_flops if program.step == "train" else evaluation_flops)(model, size, tokens)
    held = {**summary.weights.tensors, **summary.states.tensors}
    own = {f"{MODEL}{tensor.name}" for tensor in tensors(model)}  # evaluation keeps sums below `model.` too
    return {
        "step": program.step,
        "hash": summary.digest,
        "exact_hash": summary.exact_digest,
        "batch_size": program.batch_size,
        "operations": dict(summary.operations),
        "product_flops": summary.product_flops,
        "estimated_flops": int(estimate),
        "weights": _held({name: type_ for name, type_ in held.items() if name in own}),
        "states": _held({name: type_ for name, type_ in held.items() if name not in own}),
        "changed": list(summary.changed),
        "read": list(summary.read),
        "untouched": list(summary.untouched),
        "inputs": {name: str(type_) for name, type_ in summary.inputs.items()},
        "dtypes": dict(summary.dtypes),
        "constraints_checked": program.checked,
        "constraints_unknown": program.unknown,
        "violations": dict(program.violations),
    }


def _held(tensors: Mapping[str, TensorType]) -> dict[str, Any]:
    held = Held(tensors)
    return {
        "tensors": len(held.tensors),
        "numbers": held.elements,
        "bytes": held.bytes,
        "dtypes": dict(held.elements_by_dtype),
    }


# ---- for people ------------------------------------------------------------------------------------------------------


def problems_of(found: Mapping[str, Any]) -> Iterator[str]:
    """A line for each thing that is wrong with a phase: it cannot be lowered, or an operation violates a constraint."""
    if "error" in found:
        yield found["error"]
    for program in found.get("programs", ()):
        for operation, reason in program["violations"].items():
            yield (
                f"{found['file']}, phase {found['phase']}, {program['step']}: {operation} violates a constraint of CS "
                f"systems: {reason}"
            )


def is_good(found: Mapping[str, Any]) -> bool:
    """Whether `problems_of` finds nothing."""
    return next(problems_of(found), None) is None


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The facts of a phase that was lowered, for people."""
    which = f", phase {found['phase']} of {found['phases']}" if found["phases"] > 1 else ""
    yield f"{found['file']}{which}: lowered in {found['seconds']:.0f} s and {found['memory_bytes'] / 1e9:.1f} GB"
    for keys in found["stand_ins"]:
        yield f"  note: the data of {keys} is not here; an empty batch of its shapes stands in for it"
    for program in found["programs"]:
        yield f"  {program['step']}: program {program['hash'][:16]}, {program['batch_size']:,} sequences in a step"
        yield from (f"    {line}" for line in _program_lines(program))


def _program_lines(program: Mapping[str, Any]) -> Iterator[str]:
    operations = program["operations"]
    yield f"operations  {sum(operations.values()):,}: {_counts(operations)}"
    estimate = program["estimated_flops"]
    share = f" ({program['product_flops'] / estimate - 1:+.2%})" if estimate else ""
    yield f"FLOPs       {program['product_flops']:.4g} in matrix products{share} of {estimate:.4g} by the config"
    for name in ("weights", "states"):
        held = program[name]
        yield (
            f"{name:<11} {held['numbers']:,} numbers in {held['tensors']:,} tensors, {held['bytes'] / 1e9:,.3g} GB: "
            f"{_counts(held['dtypes']) or 'none'}"
        )
    yield f"changes     {len(program['changed']):,} of them"
    yield f"only reads  {_names(program['read'])}"
    if program["untouched"]:
        yield f"leaves out  {_names(program['untouched'])}"
    yield f"types       {_counts(program['dtypes'])}"
    yield f"inputs      {', '.join(f'{name} {type_}' for name, type_ in program['inputs'].items())}"
    violations = program["violations"]
    known = f"{program['constraints_checked']:,} of {program['constraints_checked'] + program['constraints_unknown']:,}"
    wrong = f"{len(violations)} violated" if violations else "none violated"
    yield f"constraints {wrong}; the Cerebras software knows those of {known} operations"
    yield from (f"  {operation}: {reason}" for operation, reason in violations.items())


def _counts(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(counts.items())[:_SHOWN]]
    return ", ".join(shown + ([f"{len(counts) - _SHOWN} more kinds"] if len(counts) > _SHOWN else []))


def _names(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(names[:2])
    return f"{len(names):,}: {shown}{', ...' if len(names) > 2 else ''}"


def shared(every: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each program that several phases have, and whether they differ in the numbers of its constants."""
    by_hash: dict[str, list[tuple[str, str]]] = {}
    for found in every:
        for program in found["programs"]:
            which = f" (phase {found['phase']})" if found["phases"] > 1 else ""
            name = f"{found['file']}{which}, {program['step']}"
            by_hash.setdefault(program["hash"], []).append((name, program["exact_hash"]))
    for digest, same in by_hash.items():
        if len(same) > 1:
            apart = "; the numbers of its constants differ" if len({exact for _, exact in same}) > 1 else ""
            yield f"one program, {digest[:16]}: {'; '.join(name for name, _ in same)}{apart}"


# ---- for a document --------------------------------------------------------------------------------------------------

_COLUMNS = ("config", "phase", "operations", "FLOPs", "of the estimate", "weights", "states", "changed", "program")
_OF_EVALUATION = ("operations to evaluate", "program to evaluate")


def table(every: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The facts of phases that were lowered as a table in Markdown, a row for each phase; what varies is left out."""
    columns = (*_COLUMNS, *_OF_EVALUATION)
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for found in every:
        steps = {program["step"]: program for program in found["programs"]}
        train, evaluate = steps["train"], steps.get("evaluate")
        cells = [
            found["file"].removeprefix("configs/").removesuffix(".yaml"),
            f"{found['phase']} of {found['phases']}",
            f"{sum(train['operations'].values()):,}",
            f"{train['product_flops']:.4g}",
            f"{train['product_flops'] / train['estimated_flops']:.2%}",
            *(f"{train[part]['bytes'] / 1e9:,.3g} GB" for part in ("weights", "states")),
            f"{len(train['changed']):,}",
            train["hash"][:16],
            "-" if evaluate is None else f"{sum(evaluate['operations'].values()):,}",
            "-" if evaluate is None else evaluate["hash"][:16],
        ]
        yield f"| {' | '.join(cells)} |"
