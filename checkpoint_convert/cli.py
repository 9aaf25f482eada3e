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
    from checkpoint_convert.llamacpp.model import Type
    from checkpoint_convert.verify.logits import LogitsReport


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="checkpoint-convert")
def cli() -> None:
    """Convert checkpoints of the Jais family between Cerebras (.mdl) and Hugging Face.

    \b
    Convert a checkpoint to a release:
      checkpoint-convert to-hf jais/checkpoint_100.mdl --tokenizer tokenizer --output release
    Convert a release back, to continue its training:
      checkpoint-convert to-cerebras release --output start.mdl
    Convert either to a GGUF file for llama.cpp and Ollama:
      checkpoint-convert to-gguf release --type q8_0 --output model.gguf
    Compare the two, first every tensor and then the logits:
      checkpoint-convert verify jais/checkpoint_100.mdl release --logits
    Show what a file contains, and what differs between two:
      checkpoint-convert inspect start.mdl
      checkpoint-convert diff start.mdl jais/checkpoint_100.mdl

    Every tensor keeps its bits unless --dtype names another element type. Everything is checked before anything is
    written, and an output appears complete or not at all. To resume an interrupted conversion, run the same command
    again.
    """


cli.epilog = statuses()


@cli.command(name="to-hf")
@click.argument("checkpoint", type=EXISTING)
@click.option("--output", required=True, type=NEW, help="Directory to create; it must not exist.")
@config_option
@click.option("--tokenizer", type=EXISTING, help="Directory of the tokenizer to include (tokenizer.json ...).")
@click.option(
    "--max-shard-size", type=Size(), default="5GB", show_default=True, help="Largest size of one weight file."
)
@dtype_option
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Write the family's chat template and the card's sampling. Default: --chat if the trainer YAML, given or "
    "stored, is of instruction tuning: it starts from a checkpoint (ckpt_path) on packed examples (use_vsl).",
)
@click.option(
    "--card",
    type=click.Path(path_type=Path),
    metavar="FILE.yaml",
    help="What you say of the model, for README.md: languages, licence, data, use, limits, scores.",
)
@dry_run_option
@json_option
def to_hf(
    checkpoint: Path,
    output: Path,
    config: ConfigFile | None,
    tokenizer: Path | None,
    max_shard_size: int,
    dtype: str | None,
    chat: bool | None,
    card: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert a Cerebras checkpoint to a Hugging Face release.

    A Jais release contains its model code (load it with trust_remote_code=True). An adapted model becomes a standard
    LlamaForCausalLM. The optimizer and other training state are left out. The release of a chat model renders
    conversations as the model's training data did, and samples as the model card does.
    """
    descriptions = _describe(checkpoint)
    from checkpoint_convert.card import read_card
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
            chat=chat,
            card=read_card(card) if card else None,
            dry_run=dry_run,
            progress=progress,
            descriptions=descriptions,
        )
    print_report(report, dry_run, as_json)


@cli.command(name="to-cerebras")
@click.argument("release", type=EXISTING)
@click.option("--output", required=True, type=NEW, help="The .mdl file to create; its .yaml is written beside it.")
@dtype_option
@click.option(
    "--compression",
    type=click.Choice(["none", "lz4"]),
    default="none",
    show_default=True,
    help="lz4 compresses tensors as Cerebras does: slower to write and read, and an interrupted run starts again.",
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
    """Convert a Hugging Face release to a Cerebras checkpoint, with the YAML that continues its training.

    The first lines of the YAML list what you must choose: the data and the learning rates.
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
        click.echo(f"to continue its training, use {output.with_suffix('.yaml')}")


@cli.command(name="to-gguf")
@click.argument("source", type=EXISTING, metavar="CHECKPOINT|RELEASE")
@click.option("--output", required=True, type=NEW, help="The .gguf file to create; it must not exist.")
@click.option(
    "--type",
    "type_",
    type=click.Choice(["f32", "f16", "q8_0", "q4_0"]),
    default="f16",
    show_default=True,
    help="Element type of the matrices; norms and biases stay f32. q8_0 and q4_0: blocks of 32 numbers of 8 or 4 bits.",
)
@config_option
@click.option("--tokenizer", type=EXISTING, help="Directory of the tokenizer. Default: that of the release.")
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Write the family's chat template. Default: a release's own; for a checkpoint as in to-hf.",
)
@allow_pickle_option
@dry_run_option
@json_option
def to_gguf(
    source: Path,
    output: Path,
    type_: Type,
    config: ConfigFile | None,
    tokenizer: Path | None,
    chat: bool | None,
    allow_pickle: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint or a release to a GGUF file for llama.cpp, Ollama and the programs built on them.

    The file has the tokenizer and the chat template inside. muP's two factors are multiplied into the embedding and
    the output head, as in llama.cpp's own script, and f32 and f16 give the tensors that it gives. What llama.cpp
    cannot compute is refused: scaled ALiBi positions, and q.k over the root of the head size. It needs the package
    gguf (the extra gguf).
    """
    descriptions = _describe(source)
    from checkpoint_convert.llamacpp.convert import convert_to_gguf
    from checkpoint_convert.streaming.run import keep_freed_memory

    keep_freed_memory()

    with progress_bar("converting") as progress:
        report = convert_to_gguf(
            source,
            output,
            type_=type_,
            config=config,
            tokenizer=tokenizer,
            chat=chat,
            allow_pickle=allow_pickle,
            dry_run=dry_run,
            progress=progress,
            descriptions=descriptions,
        )
    print_report(report, dry_run, as_json)


@cli.command()
@click.argument("first", type=EXISTING)
@click.argument("second", type=EXISTING, required=False)
@config_option
@click.option(
    "--logits", is_flag=True, help="Also run Arabic and English prompts through both models and compare every layer."
)
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
    """Check that two models are the same: every tensor, the config, and with --logits the logits.

    Each model is a .mdl file or a release. The digests of all tensors are compared, and no model is built. A single
    model is compared with the manifest that its conversion wrote. The files of a release are compared with its
    manifest; only the model card and the licence may be edited.

    A GGUF file is compared with the checkpoint or the release that it was made of: f32 and f16 exactly, blocks of 8 or
    4 bits within the error of their rounding, the model's numbers and the tokenizer in its metadata.

    --logits needs a checkpoint and a release. The checkpoint runs on the reference path and the release in
    transformers, both in float32 and one layer at a time. The first layer that differs by more than rounding can
    explain is named.

    The code in a release must be a version of this package's code. Any other code is a difference and is not run, also
    in releases published by others. With --trust-release-code it is run, and it is a note. Nothing is downloaded.
    """
    if trust_release_code and not logits:
        raise click.UsageError("--trust-release-code needs --logits: only --logits runs the code of a release")
    from checkpoint_convert.open_model import is_gguf

    files = [path for path in (first, second) if path is not None and is_gguf(path)]
    if logits and files:
        raise click.UsageError("--logits compares a .mdl file with a release directory; give one of each")
    pair = _checkpoint_and_release(first, second) if logits else None
    if files and (second is None or len(files) > 1):
        raise click.UsageError(
            f"{files[0]} is compared with the checkpoint or the release that it was made of; name it"
        )
    descriptions = _describe(*(path for path in (first, second) if path not in files))
    from checkpoint_convert.verify.compare import check_manifest, compare, with_trusted_code

    with progress_bar("comparing") as progress:
        if files and second is not None:
            from checkpoint_convert.llamacpp.compare import compare_gguf

            source = second if files[0] == first else first
            result = compare_gguf(
                files[0],
                source,
                config=config,
                allow_pickle=allow_pickle,
                progress=progress,
                descriptions=descriptions,
            )
        elif second is None:
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
            click.echo("logits: not compared: the code in the release is not this package's; see --trust-release-code")
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
    """Show what differs between two models, and by how much; each is a .mdl file or a release.

    The files and the code of a release are checked as in `verify`.
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
    """Show what a file contains, from its headers: release, model, parameters, element types, ties, training step."""
    descriptions = _describe(path)
    from checkpoint_convert.verify.inspect import inspect as inspect_model

    found = inspect_model(path, config=config, allow_pickle=allow_pickle, descriptions=descriptions)
    click.echo(json.dumps(found) if as_json else inspection_text(found))


@cli.command(name="release-check")
@click.argument("release", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--trust-release-code",
    is_flag=True,
    help="Run the code in the release even if it is not this package's. Read it first.",
)
@click.option(
    "--large", is_flag=True, help="Also run a model of more than 8 GB in float32; its weights are then in memory."
)
@allow_pickle_option
@json_option
def release_check(release: Path, trust_release_code: bool, large: bool, allow_pickle: bool, as_json: bool) -> None:
    """Check a release before it is published: files, configs, tokenizer, weights, and what it computes.

    Each check is one line: ok, failed or skipped, with the reason and what to do. Of a release as the hub has it, which
    this package did not write, it also says what is known not to work today, and how to make a repaired copy. Nothing
    is written or downloaded, and only this package's code is run.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it at import and then downloads nothing
    from checkpoint_convert.gate.check import check_release

    with progress_bar("checking") as progress:
        report = check_release(
            release,
            allow_pickle=allow_pickle,
            trust_release_code=trust_release_code,
            large=large,
            progress=progress,
        )
    click.echo(json.dumps(report.as_json()) if as_json else "\n".join(report.lines()))
    if not report.passed:
        sys.exit(DIFFERENT)


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
    os.environ["HF_HUB_OFFLINE"] = "1"  # transformers reads it at import and then downloads nothing
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
        raise click.UsageError("--logits compares a .mdl file with a release directory; give one of each")
    return (second, first) if first.is_dir() else (first, second)


def main() -> None:
    """Entry point of the console command."""
    run(cli, "checkpoint-convert")


if __name__ == "__main__":
    main()
