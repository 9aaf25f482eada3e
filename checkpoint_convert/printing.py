"""What the verbs print: progress, and results as text or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from checkpoint_convert.convert import Report
    from checkpoint_convert.verify.compare import Comparison
    from checkpoint_convert.verify.logits import LogitsReport


@contextmanager
def progress_bar(doing: str, unit: str = "B", delay: float = 0) -> Iterator[Callable[[float, float], object]]:
    """Yield a progress callback (just done, all). The bar appears on a terminal only and is removed at the end.

    Args:
        doing: what is said before it.
        unit: of the numbers.
        delay: seconds before it appears.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from tqdm import tqdm

    with tqdm(desc=doing, unit=unit, unit_scale=True, unit_divisor=1000, leave=False, delay=delay) as bar:

        def progress(done: float, total: float) -> None:
            bar.total = total or None  # without a total it counts, and does not say how long
            bar.update(done)

        yield progress


def print_report(report: Report, dry_run: bool, as_json: bool) -> None:
    """Print what a conversion did, or would do."""
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report) | {"output": str(report.output), "dry_run": dry_run}))
        return
    if dry_run:
        for line in report.lines:
            click.echo(line)
    click.echo(
        f"{report.output}: {report.architecture}, {report.parameters:,} parameters in {', '.join(report.dtypes)}, "
        f"{report.tensors} tensors under {report.names} names, {report.write_bytes / 1e9:.3g} GB"
    )
    if dry_run:
        click.echo(
            f"would read {report.read_bytes / 1e9:.3g} GB in {report.steps} steps with about "
            f"{report.memory_bytes / 1e6:.0f} MB of memory, and write {report.write_bytes / 1e9:.3g} GB where "
            f"{report.free_bytes / 1e9:.3g} GB are free; nothing was written"
        )
    elif report.continued:
        click.echo(f"resumed: {report.continued} of {report.steps} steps were finished already")
    for note in report.notes:
        click.echo(f"note: {note}")


def print_comparison(result: Comparison) -> None:
    """Print what differs between two models, and what was not checked."""
    from checkpoint_convert.mapping.rules import grouped

    rounded = f" (compared as {', '.join(result.rounded)}, the narrower type)" if result.rounded else ""
    click.echo(f"{result.identical} of {result.tensors} tensors identical{rounded}")
    for path, right in result.manifests.items():
        click.echo(f"manifest {path}: {right} digests match")
    for what in dict.fromkeys(result.differences.values()):
        for names in grouped(name for name, found in result.differences.items() if found == what):
            click.echo(f"  {names}: {what}")
    for key, (one, other) in result.config.items():
        click.echo(f"  config {key}: {one!r} and {other!r}")
    for path, what in {**result.code, **result.files}.items():
        click.echo(f"  {path}: {what}")
    for note in result.notes:
        click.echo(f"note: {note}")


def comparison_json(result: Comparison) -> dict[str, Any]:
    """What `print_comparison` prints, as JSON values."""
    return {
        "same": result.same,
        "identical": result.identical,
        "tensors": result.tensors,
        "differences": dict(result.differences),
        "compared_as": list(result.rounded),
        "config": {key: list(values) for key, values in result.config.items()},
        "manifests": dict(result.manifests),
        "files": dict(result.files),
        "code": dict(result.code),
        "notes": list(result.notes),
    }


def print_logits(report: LogitsReport) -> None:
    """Print the largest difference of the logits, and the first layer that differs by more than its tolerance."""
    last = report.layers[-1]
    click.echo(
        f"logits: largest difference {last.largest_difference:.2g} of logits up to {last.largest_magnitude:.3g} "
        f"(tolerance {last.tolerance:.2g}), the same most likely token at {report.same_choice} of {report.positions} "
        f"positions in {report.prompts} prompts"
    )
    for layer in report.layers:
        if layer.name == report.first_departure:
            click.echo(
                f"first layer that differs: {layer.name}, by {layer.largest_difference:.3g} of "
                f"{layer.largest_magnitude:.3g} (tolerance {layer.tolerance:.2g})"
            )


def inspection_text(found: Mapping[str, Any]) -> str:
    """What `inspect` found, as aligned lines."""
    width = max(map(len, found))

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key} {inner}" for key, inner in value.items())
        if isinstance(value, list):
            return f"\n{' ' * (width + 2)}".join(map(str, value))
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

    return "\n".join(f"{label:<{width}}  {text(value)}" for label, value in found.items())
