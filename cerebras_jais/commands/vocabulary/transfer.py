"""The verb `vocab transfer`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from cerebras_jais.commandline import Number
from cerebras_jais.ranges import SEED, VOCABULARY
from checkpoint_convert.options import EXISTING, NEW, allow_pickle_option, json_option
from checkpoint_convert.printing import progress_bar

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def transfer_options(command: Decorated) -> Decorated:
    """Give a command the options of a transfer, apart from --tokenizer."""
    options = (
        click.option(
            "--base", required=True, type=EXISTING, metavar="MODEL", help="The model that grows: .mdl or release."
        ),
        click.option("--donor", required=True, type=EXISTING, metavar="MODEL", help="A model that has the new tokens."),
        click.option(
            "--output", required=True, type=NEW, help="The .mdl file to create; its .yaml is written beside it."
        ),
        click.option(
            "--base-tokenizer", type=EXISTING, metavar="DIR", help="The base's own. Default: beside the model."
        ),
        click.option(
            "--donor-tokenizer", type=EXISTING, metavar="DIR", help="The donor's own. Default: beside the model."
        ),
        click.option("--base-config", type=NEW, metavar="FILE", help="Trainer YAML of a base that does not record it."),
        click.option(
            "--donor-config", type=NEW, metavar="FILE", help="Trainer YAML of a donor that does not record it."
        ),
        click.option(
            "--config",
            type=NEW,
            metavar="FILE",
            help="Trainer YAML of the run to come, or its name, such as jais-adapted-7b/stage-1: the output has its "
            "model section. Default: the base's.",
        ),
        click.option(
            "--vocab-size",
            type=Number(VOCABULARY),
            help="Rows of the output where no --config says it. Default: those of the tokenizer.",
        ),
        click.option(
            "--method",
            type=click.Choice(["projection", "pieces", "mean", "random"]),
            default="projection",
            show_default=True,
            help="How rows of new tokens are made: the donor's rows projected, the mean of the base's tokens that "
            "spell the token, the mean of all rows, or at random.",
        ),
        click.option(
            "--norms",
            type=click.Choice(["projected", "base"]),
            default="projected",
            show_default=True,
            help="base multiplies projected rows by what gives them the mean norm of the base's rows.",
        ),
        click.option("--seed", type=Number(SEED), default=0, show_default=True, help="Seed of the tokens held out."),
        allow_pickle_option,
        click.option("--dry-run", is_flag=True, help="Learn, judge and check everything, and write nothing."),
        json_option,
    )
    return reduce(lambda made, option: option(made), reversed(options), command)


@click.command()
@transfer_options
@click.option("--tokenizer", required=True, type=EXISTING, metavar="DIR", help="Folder of the extended tokenizer.")
def transfer(**given: Any) -> None:
    """Give a model embeddings for new tokens, learned from a donor.

    \b
      cerebras-jais vocab transfer --base llama-2-7b --donor jais-30b --tokenizer extended \\
          --config jais-adapted-7b/stage-1 --output model/jais-adapted-7b/extended.mdl

    The new tokens are those of an extended tokenizer. On the tokens that both models have, a linear map from the
    donor's embedding to the base's embedding and head is learned by ridge least squares; its strength is chosen on
    tokens held out. The donor's rows of the new tokens go through the map. Everything else of the base is copied. The
    table says how near the rows of held-out tokens come to the true ones, and how near the usual methods come.
    docs/embedding-transfer.md says what the columns are.

    To resume an interrupted run, run the same command again.
    """
    start_transfer(given["config"], given["vocab_size"])
    run_transfer(**given)


def start_transfer(config: Path | None, vocab_size: int | None) -> None:
    """Refuse options that do not go together, and set the number of threads, which must precede PyTorch."""
    from cerebras_jais.train.threads import settle_threads

    if config is not None and vocab_size is not None:
        raise click.UsageError("--config has the number of rows; leave --vocab-size out")
    threads = settle_threads()
    if threads is not None:
        click.echo(threads, err=True)


def run_transfer(
    *, tokenizer: Path, method: str, norms: str, seed: int, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Transfer, and print the report; `given` is what `TransferOptions` has."""
    from cerebras_jais.vocabulary.embeddings.methods import Method
    from cerebras_jais.vocabulary.embeddings.transfer import TransferOptions
    from cerebras_jais.vocabulary.embeddings.transfer import transfer as make
    from checkpoint_convert.printing import print_report
    from checkpoint_convert.streaming.run import keep_freed_memory

    keep_freed_memory()
    with progress_bar("learning", "FLOP") as fitting, progress_bar("writing") as writing:
        done, found = make(
            TransferOptions(**given),
            tokenizer,
            method=Method(method),
            base_norms=norms == "base",
            seed=seed,
            dry_run=dry_run,
            fitting=fitting,
            writing=writing,
        )
    if as_json:
        shown = {**found, "output": str(given["output"]), "tokenizer": str(tokenizer), "dry_run": dry_run}
        click.echo(json.dumps({**shown, "notes": list(done.notes)}))
        return
    for line in _table(found):
        click.echo(line)
    print_report(done, dry_run, as_json)


def _table(found: Mapping[str, Any]) -> Iterator[str]:
    """The report of a transfer, in lines."""
    tokens, whole = found["new_tokens"], found["whole_in_donor"]
    yield (
        f"{tokens:,} new tokens: {whole:,} of the donor, {tokens - whole:,} as the mean of those that spell them; "
        f"{found['padding']:,} rows of no token"
    )
    yield (
        f"{found['shared']:,} shared tokens, {found['held_out']:,} of them held out; ridge of {found['strength']:g} "
        "times the mean diagonal"
    )
    r2 = found["r2"][f"{found['strength']:g}"]
    for norms in found["norms"]:
        yield (
            f"{norms['matrix']}: held-out R2 {r2[norms['matrix']]:.3f}; mean norm {norms['base']:.3g} in the base, "
            f"{norms['projected']:.3g} of projected rows, which are multiplied by {norms['factor']:.3g}"
        )
    yield f"{'held-out tokens':<17}{'method':<12}{'cosine':>8}{'median rank':>13}{'mean 1/rank':>13}{'norm ratio':>12}"
    for row in found["judged"]:
        yield (
            f"{row['matrix']:<17}{row['method']:<12}{row['cosine']:>8.3f}{row['median_rank']:>13,.1f}"
            f"{row['reciprocal_rank']:>13.3f}{row['norm_ratio']:>12.3f}"
        )
