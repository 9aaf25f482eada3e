"""`checkpoint-convert VERB`: Cerebras checkpoints to Hugging Face releases and back."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cerebras_jais import __version__
from cerebras_jais.commandline import completion_command, run, statuses
from cerebras_jais.errors import DIFFERENT
from cerebras_jais.ranges import shown

if TYPE_CHECKING:
    from cerebras_jais.config.yaml_file import ConfigFile

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Size(click.ParamType):
    """A number of bytes: 5GB, 500MB, 2GiB or 1000000."""

    name = "size"

    def convert(self, value, param, ctx):
        """The size in bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
        size = float(found[1]) * _UNITS.get(found[2].upper(), math.nan) if found else math.nan
        if not 1 <= size < 2**63:
            self.fail(f"{shown(value)} is not a size such as 5GB, 500MB or 2GiB", param, ctx)
        return int(size)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="checkpoint-convert")
def cli() -> None:
    """Convert checkpoints of the Jais family between Cerebras (.mdl) and Hugging Face.

    \b
    Release a checkpoint:
      checkpoint-convert to-hf jais/checkpoint_100.mdl --tokenizer tokenizer --output release
    Take a release back for more training:
      checkpoint-convert to-cerebras release --output start.mdl
    Check one against the other, every tensor and then the logits:
      checkpoint-convert verify jais/checkpoint_100.mdl release --logits
    See what a file is, and what differs between two:
      checkpoint-convert inspect start.mdl
      checkpoint-convert diff start.mdl jais/checkpoint_100.mdl

    Every tensor keeps its bits unless --dtype asks for another element type. What does not fit is refused before
    anything is written; an output appears complete or not at all. A conversion that was killed goes on when the same
    command is given again.
    """


cli.epilog = statuses()
_EXISTING = click.Path(exists=True, path_type=Path)
_NEW = click.Path(path_type=Path)
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def _open_config(context: click.Context, option: click.Parameter, value: Path | None) -> ConfigFile | None:
    if value is None:
        return None
    from cerebras_jais.catalog.yaml_files import open_config

    return open_config(value)


_config = click.option(
    "--config",
    type=click.Path(path_type=Path),
    callback=_open_config,
    help="Trainer YAML of the checkpoint, or the name of a config. Default: what the checkpoint says of itself.",
)
_dtype = click.option(
    "--dtype", type=click.Choice(list(_DTYPES)), help="Element type of the weights. Default: as they are stored."
)
_dry_run = click.option("--dry-run", is_flag=True, help="Check everything, print the plan and write nothing.")
_allow_pickle = click.option(
    "--allow-pickle", is_flag=True, help="Read weights in pickle files too (.bin); nothing in them is run."
)


@cli.command(name="to-hf")
@click.argument("checkpoint", type=_EXISTING)
@click.option("--output", required=True, type=_NEW, help="Directory to make; it must not exist yet.")
@_config
@click.option("--tokenizer", type=_EXISTING, help="Directory of the tokenizer to include (tokenizer.json ...).")
@click.option("--max-shard-size", type=Size(), default="5GB", show_default=True, help="Most bytes in one weight file.")
@_dtype
@_dry_run
@_json
def to_hf(
    checkpoint: Path,
    output: Path,
    config: ConfigFile | None,
    tokenizer: Path | None,
    max_shard_size: int,
    dtype: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a Hugging Face release of a Cerebras checkpoint.

    A Jais model comes with its own code (load it with trust_remote_code=True); an adapted model becomes a plain
    LlamaForCausalLM. Optimizer and other training state is left out.
    """
    _start_inspector()
    from checkpoint_convert.convert import convert_to_hf
    from checkpoint_convert.streaming.run import keep_freed_memory

    keep_freed_memory()

    with _bar("converting") as progress:
        report = convert_to_hf(
            checkpoint,
            output,
            config=config,
            tokenizer=tokenizer,
            max_shard_size=max_shard_size,
            dtype=_DTYPES[dtype] if dtype else None,
            dry_run=dry_run,
            progress=progress,
        )
    _tell(report, dry_run, as_json)


@cli.command(name="to-cerebras")
@click.argument("release", type=_EXISTING)
@click.option("--output", required=True, type=_NEW, help="The .mdl file to make; its .yaml is put beside it.")
@_dtype
@click.option(
    "--compression",
    type=click.Choice(["none", "lz4"]),
    default="none",
    show_default=True,
    help="lz4 packs tensors as Cerebras does: slower to write and to read; begun anew after a kill.",
)
@_allow_pickle
@_dry_run
@_json
def to_cerebras(
    release: Path,
    output: Path,
    dtype: str | None,
    compression: str,
    allow_pickle: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make a Cerebras checkpoint of a Hugging Face release, and the YAML that trains it on.

    The YAML says in its first lines what is left to choose: the data and the learning rates.
    """
    _start_inspector()  # it says where the tensors of a checkpoint that was laid out lie
    from checkpoint_convert.convert import convert_to_cerebras
    from checkpoint_convert.streaming.run import keep_freed_memory

    keep_freed_memory()

    with _bar("converting") as progress:
        report = convert_to_cerebras(
            release,
            output,
            dtype=_DTYPES[dtype] if dtype else None,
            compression="lz4" if compression == "lz4" else None,
            allow_pickle=allow_pickle,
            dry_run=dry_run,
            progress=progress,
        )
    _tell(report, dry_run, as_json)
    if not dry_run and not as_json:
        click.echo(f"train it on with {output.with_suffix('.yaml')}")


@cli.command()
@click.argument("first", type=_EXISTING)
@click.argument("second", type=_EXISTING, required=False)
@_config
@click.option("--logits", is_flag=True, help="Then run Arabic and English prompts through both, layer by layer.")
@click.option(
    "--trust-release-code",
    is_flag=True,
    help="With --logits: run the code in the release even if it is not this package's. Read it first.",
)
@_allow_pickle
@_json
def verify(
    first: Path,
    second: Path | None,
    config: ConfigFile | None,
    logits: bool,
    trust_release_code: bool,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Prove that two models are the same: every tensor, the config, and on demand the logits.

    Each is a .mdl file or a release. Digests of all tensors are compared, no model is built. A model alone is compared
    with the manifest that the conversion put beside it. The files of a release are compared with its manifest; only
    the model card and the licence may be edited. --logits takes a checkpoint and a release: the checkpoint runs on the
    reference path and the release in transformers, both in float32 and a layer at a time; the first layer that departs
    by more than rounding can explain is named.

    The code in a release must be a version of this package's code. Other code, that of releases published by others
    too, is a difference and is not run. With --trust-release-code it is run and is only noted. Nothing is ever fetched.
    """
    if trust_release_code and not logits:
        raise click.UsageError("--trust-release-code needs --logits: nothing else runs the code of a release")
    pair = _checkpoint_and_release(first, second) if logits else None
    _start_inspector()
    from checkpoint_convert.verify.compare import check_manifest, compare, with_trusted_code

    with _bar("comparing") as progress:
        if second is None:
            result = check_manifest(first, config=config, allow_pickle=allow_pickle, progress=progress)
        else:
            result = compare(first, second, config=config, allow_pickle=allow_pickle, progress=progress)
    if trust_release_code:
        result = with_trusted_code(result)
    found = _as_json(result)
    if not as_json:
        _tell_comparison(result)
    same = result.same
    if pair is not None and result.code:
        found["logits"] = None
        if not as_json:
            click.echo("logits: not compared: the release has other code than this package's; see --trust-release-code")
    elif pair is not None:
        found["logits"], agree = _compare_logits(*pair, config, trust_release_code, allow_pickle, quiet=as_json)
        same = same and agree
    if as_json:
        click.echo(json.dumps(found))
    if not same:
        sys.exit(DIFFERENT)


@cli.command()
@click.argument("first", type=_EXISTING)
@click.argument("second", type=_EXISTING)
@_config
@_allow_pickle
@_json
def diff(first: Path, second: Path, config: ConfigFile | None, allow_pickle: bool, as_json: bool) -> None:
    """Say what differs between two models, and by how much; each is a .mdl file or a release.

    The files and the code of a release are checked as `verify` does.
    """
    _start_inspector()
    from checkpoint_convert.verify.compare import compare

    with _bar("comparing") as progress:
        result = compare(first, second, config=config, allow_pickle=allow_pickle, magnitudes=True, progress=progress)
    if as_json:
        click.echo(json.dumps(_as_json(result)))
    else:
        _tell_comparison(result)
    if not result.same:
        sys.exit(DIFFERENT)


@cli.command()
@click.argument("path", type=_EXISTING)
@_config
@_allow_pickle
@_json
def inspect(path: Path, config: ConfigFile | None, allow_pickle: bool, as_json: bool) -> None:
    """Say what a file is, from its headers: release, model, parameters, element types, ties, training step."""
    if path.is_file():
        _start_inspector()
    from checkpoint_convert.verify.inspect import inspect as look
    from checkpoint_convert.verify.inspect import readable

    found = look(path, config=config, allow_pickle=allow_pickle)
    click.echo(json.dumps(found) if as_json else readable(found))


cli.add_command(completion_command("checkpoint-convert"))


def _start_inspector() -> None:
    """Have HDF5's inspector load while the rest of this program does."""
    from cerebras_jais.checkpoint.hdf5 import isolate as hdf5_inspection

    hdf5_inspection.start()


def _compare_logits(
    checkpoint: Path,
    release: Path,
    config: ConfigFile | None,
    trust_release_code: bool,
    allow_pickle: bool,
    quiet: bool,
) -> tuple[dict, bool]:
    import dataclasses

    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched; transformers reads it when it is imported
    from checkpoint_convert.verify.logits import compare_logits

    with _bar("running both models") as progress:
        report = compare_logits(
            checkpoint,
            release,
            config=config,
            trust_release_code=trust_release_code,
            allow_pickle=allow_pickle,
            progress=progress,
        )
    departure = report.first_departure
    if not quiet:
        last = report.places[-1]
        click.echo(
            f"logits: largest difference {last.largest_difference:.2g} of logits up to {last.largest_magnitude:.3g} "
            f"(tolerance {last.tolerance:.2g}), the same token first at {report.same_choice} of {report.positions} "
            f"positions of {report.prompts} prompts"
        )
        for place in report.places:
            if place.name == departure:
                click.echo(
                    f"first departure: {place.name}, by {place.largest_difference:.3g} of "
                    f"{place.largest_magnitude:.3g} (tolerance {place.tolerance:.2g})"
                )
    found = dataclasses.asdict(report) | {"first_departure": departure}
    return found, departure is None


def _checkpoint_and_release(first: Path, second: Path | None) -> tuple[Path, Path]:
    if second is None or first.is_dir() == second.is_dir():
        raise click.UsageError("--logits compares a .mdl file with a release directory")
    return (second, first) if first.is_dir() else (first, second)


@contextmanager
def _bar(doing: str) -> Iterator:
    """Yield a progress callback of bytes; the bar shows on a terminal only and disappears at the end."""
    from tqdm import tqdm

    with tqdm(desc=doing, unit="B", unit_scale=True, unit_divisor=1000, leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        yield progress


def _tell(report, dry_run: bool, as_json: bool) -> None:
    import dataclasses

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
        click.echo(f"went on from an earlier try, which had finished {report.continued} of {report.steps} steps")
    for note in report.notes:
        click.echo(f"note: {note}")


def _tell_comparison(result) -> None:
    from checkpoint_convert.mapping.rules import grouped

    rounded = f" (compared as {', '.join(result.rounded)}, the narrower type)" if result.rounded else ""
    click.echo(f"{result.identical} of {result.tensors} tensors identical{rounded}")
    for path, right in result.manifests.items():
        click.echo(f"manifest {path}: {right} digests right")
    for what in dict.fromkeys(result.differences.values()):
        for names in grouped(name for name, found in result.differences.items() if found == what):
            click.echo(f"  {names}: {what}")
    for key, (one, other) in result.config.items():
        click.echo(f"  config {key}: {one!r} and {other!r}")
    for path, what in {**result.code, **result.files}.items():
        click.echo(f"  {path}: {what}")
    for note in result.notes:
        click.echo(f"note: {note}")


def _as_json(result) -> dict:
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


def main() -> None:
    """Entry point of the console command."""
    run(cli, "checkpoint-convert")


if __name__ == "__main__":
    main()
