"""`checkpoint-convert VERB`: Cerebras checkpoints to Hugging Face releases and back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cerebras_jais import __version__
from cerebras_jais.commandline import completion_command, run

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Size(click.ParamType):
    """A number of bytes: 5GB, 500MB, 2GiB or 1000000."""

    name = "size"

    def convert(self, value, param, ctx):
        """The size in bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
        if not found or found[2].upper() not in _UNITS or float(found[1]) == 0:
            self.fail(f"{value!r} is not a size such as 5GB, 500MB or 2GiB", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].upper()])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="checkpoint-convert")
def cli() -> None:
    """Convert checkpoints of the Jais family between Cerebras (.mdl) and Hugging Face.

    \b
    Release a checkpoint:
      checkpoint-convert to-hf model/checkpoint_200.mdl --tokenizer tokenizer --output release
    Take a release back for more training:
      checkpoint-convert to-cerebras release --output start.mdl
    Check one against the other, tensor by tensor:
      checkpoint-convert compare model/checkpoint_200.mdl release
    Check that both compute the same logits:
      checkpoint-convert verify model/checkpoint_200.mdl release

    Every tensor keeps its bits. What does not fit is refused before anything is written, with one line that says
    what and why; an output appears complete or not at all.
    """


_EXISTING = click.Path(exists=True, path_type=Path)
_NEW = click.Path(path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
# Absolute, in float32: two implementations of one model; a wrong weight moves logits a thousand times more.
_LOGITS_TOLERANCE = 1e-4


@cli.command(name="to-hf")
@click.argument("checkpoint", type=_EXISTING)
@click.option("--output", required=True, type=_NEW, help="Directory to make; it must not exist yet.")
@click.option(
    "--config",
    type=_EXISTING,
    help="Trainer YAML that the checkpoint was trained with. Default: what the checkpoint says of itself.",
)
@click.option("--tokenizer", type=_EXISTING, help="Directory of the tokenizer to include (tokenizer.json ...).")
@click.option("--max-shard-size", type=Size(), default="5GB", show_default=True, help="Most bytes in one weight file.")
def to_hf(checkpoint: Path, output: Path, config: Path | None, tokenizer: Path | None, max_shard_size: int) -> None:
    """Make a Hugging Face release of a Cerebras checkpoint.

    A Jais model comes with its own code (load it with trust_remote_code=True); an adapted model becomes a plain
    LlamaForCausalLM. Optimizer and other training state is left out.
    """
    from checkpoint_convert.convert import convert_to_hf

    with _bytes_bar("writing") as progress:
        report = convert_to_hf(
            checkpoint, output, config=config, tokenizer=tokenizer, max_shard_size=max_shard_size, progress=progress
        )
    _tell(report)


@cli.command(name="to-cerebras")
@click.argument("release", type=_EXISTING)
@click.option("--output", required=True, type=_NEW, help="The .mdl file to make; its .yaml is put beside it.")
def to_cerebras(release: Path, output: Path) -> None:
    """Make a Cerebras checkpoint of a Hugging Face release, and the YAML that trains it on.

    The YAML says in its first lines what is left to choose: the data and the learning rates.
    """
    from checkpoint_convert.convert import convert_to_cerebras

    with _bytes_bar("writing") as progress:
        report = convert_to_cerebras(release, output, progress=progress)
    _tell(report)
    click.echo(f"train it on with {output.with_suffix('.yaml')}")


@cli.command()
@click.argument("first", type=_EXISTING)
@click.argument("second", type=_EXISTING)
@_JSON
def compare(first: Path, second: Path, as_json: bool) -> None:
    """Compare two models tensor by tensor, bit for bit; each is a .mdl or a release.

    Exit status 0 when all tensors are identical, 1 when not.
    """
    import json

    from checkpoint_convert.convert import compare as compare_models
    from checkpoint_convert.rules import grouped

    with _bar("comparing", " tensors", False) as progress:
        result = compare_models(first, second, progress=progress)
    if as_json:
        found = {"identical": result.identical, "tensors": result.total, "differences": dict(result.differences)}
        click.echo(json.dumps(found))
    else:
        click.echo(f"{result.identical} of {result.total} tensors identical")
        for what in dict.fromkeys(result.differences.values()):
            for names in grouped(name for name, found in result.differences.items() if found == what):
                click.echo(f"  {names}: {what}")
    if result.differences:
        raise SystemExit(1)


@cli.command()
@click.argument("checkpoint", type=_EXISTING)
@click.argument("release", type=_EXISTING)
@click.option("--config", type=_EXISTING, help="Trainer YAML. Default: what the checkpoint says of itself.")
@_JSON
def verify(checkpoint: Path, release: Path, config: Path | None, as_json: bool) -> None:
    """Compare the logits of a checkpoint on the reference path with those of its release in transformers.

    Both run fixed Arabic and English prompts in float32. The release's own code is run. Exit status 0 when no logit
    differs by more than 1e-4 (absolute), 1 when one does or is not finite.
    """
    import dataclasses
    import json

    from cerebras_jais.model.config import DecoderConfig
    from checkpoint_convert.trainer_yaml import read_model_section
    from checkpoint_convert.verify import compare_logits

    model = DecoderConfig.from_section(read_model_section(config)) if config else None
    report = compare_logits(checkpoint, release, model)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(report) | {"bound": _LOGITS_TOLERANCE}))
    else:
        click.echo(
            f"largest difference {report.largest_difference:.2g} of logits up to {report.largest_logit:.3g} "
            f"(bound: {_LOGITS_TOLERANCE:g} absolute, in float32), "
            f"over {report.positions} positions of {report.prompts} prompts; "
            f"the same token first at {report.same_choice} of {report.positions}"
        )
    # Written so that a NaN fails too.
    if not report.largest_difference <= _LOGITS_TOLERANCE:
        raise SystemExit(1)


cli.add_command(completion_command("checkpoint-convert"))


def _bytes_bar(doing: str):
    return _bar(doing, "B", True)


@contextmanager
def _bar(doing: str, unit: str, scaled: bool) -> Iterator:
    """Yield a progress callback; the bar shows on a terminal only and disappears at the end."""
    from tqdm import tqdm

    with tqdm(desc=doing, unit=unit, unit_scale=scaled, unit_divisor=1000, leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        yield progress


def _tell(report) -> None:
    click.echo(
        f"{report.output}: {report.architecture}, {report.parameters:,} parameters in {', '.join(report.dtypes)}, "
        f"{report.tensors} tensors, {report.nbytes / 1e9:.3g} GB"
    )
    for note in report.notes:
        click.echo(f"note: {note}")


def main() -> None:
    """Entry point of the console command."""
    run(cli, "checkpoint-convert")


if __name__ == "__main__":
    main()
