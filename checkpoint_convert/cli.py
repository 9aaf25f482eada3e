"""`checkpoint-convert VERB`: Cerebras checkpoints to Hugging Face releases and back."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cerebras_jais import __version__
from cerebras_jais.commandline import completion_command, run, statuses
from cerebras_jais.errors import DIFFERENT
from checkpoint_convert.options import (
    EXISTING,
    NEW,
    Size,
    allow_pickle_option,
    config_option,
    dry_run_option,
    dtype_option,
    json_option,
)
from checkpoint_convert.printing import (
    comparison_json,
    inspection_text,
    print_comparison,
    print_logits,
    print_report,
    progress_bar,
)

if TYPE_CHECKING:
    from cerebras_jais.checkpoint.hdf5.isolate import Descriptions
    from cerebras_jais.config.yaml_file import ConfigFile
    from checkpoint_convert.verify.logits import LogitsReport


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


@cli.command(name="to-hf")
@click.argument("checkpoint", type=EXISTING)
@click.option("--output", required=True, type=NEW, help="Directory to make; it must not exist yet.")
@config_option
@click.option("--tokenizer", type=EXISTING, help="Directory of the tokenizer to include (tokenizer.json ...).")
@click.option("--max-shard-size", type=Size(), default="5GB", show_default=True, help="Most bytes in one weight file.")
@dtype_option
@dry_run_option
@json_option
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
    descriptions = _describe(checkpoint)
    from checkpoint_convert.convert import convert_to_hf
    from checkpoint_convert.streaming.run import keep_freed_memory

    keep_freed_memory()

    with progress_bar("converting") as progress:
        report = convert_to_hf(
            checkpoint,
            output,
            config=config,
            tokenizer=tokenizer,
            max_shard_size=max_shard_size,
            dtype=dtype,
            dry_run=dry_run,
            progress=progress,
            descriptions=descriptions,
        )
    print_report(report, dry_run, as_json)


@cli.command(name="to-cerebras")
@click.argument("release", type=EXISTING)
@click.option("--output", required=True, type=NEW, help="The .mdl file to make; its .yaml is put beside it.")
@dtype_option
@click.option(
    "--compression",
    type=click.Choice(["none", "lz4"]),
    default="none",
    show_default=True,
    help="lz4 packs tensors as Cerebras does: slower to write and to read; begun anew after a kill.",
)
@allow_pickle_option
@dry_run_option
@json_option
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
    from checkpoint_convert.convert import convert_to_cerebras
    from checkpoint_convert.streaming.run import keep_freed_memory

    keep_freed_memory()

    with progress_bar("converting") as progress:
        report = convert_to_cerebras(
            release,
            output,
            dtype=dtype,
            compression="lz4" if compression == "lz4" else None,
            allow_pickle=allow_pickle,
            dry_run=dry_run,
            progress=progress,
        )
    print_report(report, dry_run, as_json)
    if not dry_run and not as_json:
        click.echo(f"train it on with {output.with_suffix('.yaml')}")


@cli.command()
@click.argument("first", type=EXISTING)
@click.argument("second", type=EXISTING, required=False)
@config_option
@click.option("--logits", is_flag=True, help="Then run Arabic and English prompts through both, layer by layer.")
@click.option(
    "--trust-release-code",
    is_flag=True,
    help="With --logits: run the code in the release even if it is not this package's. Read it first.",
)
@allow_pickle_option
@json_option
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
    descriptions = _describe(first, second)
    from checkpoint_convert.verify.compare import check_manifest, compare, with_trusted_code

    with progress_bar("comparing") as progress:
        if second is None:
            result = check_manifest(
                first, config=config, allow_pickle=allow_pickle, progress=progress, descriptions=descriptions
            )
        else:
            result = compare(
                first, second, config=config, allow_pickle=allow_pickle, progress=progress, descriptions=descriptions
            )
    if trust_release_code:
        result = with_trusted_code(result)
    found: dict[str, Any] = comparison_json(result)
    same = result.same
    if not as_json:
        print_comparison(result)
    if pair is not None and result.code:
        found["logits"] = None
        if not as_json:
            click.echo("logits: not compared: the release has other code than this package's; see --trust-release-code")
    elif pair is not None:
        report = _compare_logits(*pair, config, trust_release_code, allow_pickle, descriptions)
        found["logits"] = dataclasses.asdict(report) | {"first_departure": report.first_departure}
        same = same and report.first_departure is None
        if not as_json:
            print_logits(report)
    if as_json:
        click.echo(json.dumps(found))
    if not same:
        sys.exit(DIFFERENT)


@cli.command()
@click.argument("first", type=EXISTING)
@click.argument("second", type=EXISTING)
@config_option
@allow_pickle_option
@json_option
def diff(first: Path, second: Path, config: ConfigFile | None, allow_pickle: bool, as_json: bool) -> None:
    """Say what differs between two models, and by how much; each is a .mdl file or a release.

    The files and the code of a release are checked as `verify` does.
    """
    descriptions = _describe(first, second)
    from checkpoint_convert.verify.compare import compare

    with progress_bar("comparing") as progress:
        result = compare(
            first,
            second,
            config=config,
            allow_pickle=allow_pickle,
            magnitudes=True,
            progress=progress,
            descriptions=descriptions,
        )
    if as_json:
        click.echo(json.dumps(comparison_json(result)))
    else:
        print_comparison(result)
    if not result.same:
        sys.exit(DIFFERENT)


@cli.command()
@click.argument("path", type=EXISTING)
@config_option
@allow_pickle_option
@json_option
def inspect(path: Path, config: ConfigFile | None, allow_pickle: bool, as_json: bool) -> None:
    """Say what a file is, from its headers: release, model, parameters, element types, ties, training step."""
    descriptions = _describe(path)
    from checkpoint_convert.verify.inspect import inspect as inspect_model

    found = inspect_model(path, config=config, allow_pickle=allow_pickle, descriptions=descriptions)
    click.echo(json.dumps(found) if as_json else inspection_text(found))


cli.add_command(completion_command("checkpoint-convert"))


def _describe(*paths: Path | None) -> Descriptions:
    """Start the child that looks into the HDF5 files among the arguments, while the rest of this program loads."""
    from cerebras_jais.checkpoint.hdf5.isolate import Descriptions

    return Descriptions([path for path in paths if path is not None and path.is_file()])


def _compare_logits(
    checkpoint: Path,
    release: Path,
    config: ConfigFile | None,
    trust_release_code: bool,
    allow_pickle: bool,
    descriptions: Descriptions | None,
) -> LogitsReport:
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched; transformers reads it when it is imported
    from checkpoint_convert.verify.logits import compare_logits

    with progress_bar("running both models") as progress:
        return compare_logits(
            checkpoint,
            release,
            config=config,
            trust_release_code=trust_release_code,
            allow_pickle=allow_pickle,
            progress=progress,
            descriptions=descriptions,
        )


def _checkpoint_and_release(first: Path, second: Path | None) -> tuple[Path, Path]:
    if second is None or first.is_dir() == second.is_dir():
        raise click.UsageError("--logits compares a .mdl file with a release directory")
    return (second, first) if first.is_dir() else (first, second)


def main() -> None:
    """Entry point of the console command."""
    run(cli, "checkpoint-convert")


if __name__ == "__main__":
    main()
