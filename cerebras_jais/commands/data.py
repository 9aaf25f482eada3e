"""`cerebras-jais data`: text to a tokenizer and to packed training data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cerebras_jais.commandline import Number
from cerebras_jais.ranges import COUNT_OR_NONE, SEED, SIZE, VOCABULARY

if TYPE_CHECKING:
    from cerebras_jais.data.documents import Document


@click.group()
def data() -> None:
    """Text to tokens: train a tokenizer, pack documents for training.

    \b
    The usual way:
      cerebras-jais data tokenizer --text my_texts/ --vocab-size 16000 --output my_tokenizer
      cerebras-jais data pack --text my_texts/ --tokenizer my_tokenizer \\
          --max-sequence-length 512 --output my_data

    Text is a folder of .txt and .jsonl files ({"text": ..., "language": "ar"} per line), one such file, or a
    question-answering file in SQuAD format (.json, contexts are taken). Several --text may be given. Without any, the
    small Arabic-English sample that comes with the package is used.
    """


_text = click.option(
    "--text",
    "texts",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Folder or file of .txt, .jsonl or SQuAD .json; - is text on standard input; repeatable. Default: the sample.",
)
_held_out = click.option(
    "--held-out",
    type=Number(COUNT_OR_NONE),
    default=10,
    show_default=True,
    metavar="EVERY",
    help="Keep every EVERY-th document of each language out of training; 0 keeps none.",
)
_length = click.option("--max-sequence-length", type=Number(SIZE), required=True, help="Tokens per row, e.g. 2048.")


@data.command()
@_text
@click.option(
    "--vocab-size", type=Number(VOCABULARY), required=True, help="Entries wanted, 257 or more; Jais has 84992."
)
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder to write.")
@click.option(
    "--model-max-length", type=Number(SIZE), default=2048, show_default=True, help="Context length to record."
)
@_held_out
@click.option("--overwrite", is_flag=True, help="Replace the tokenizer that is there.")
def tokenizer(
    texts: tuple[Path, ...], vocab_size: int, output: Path, model_max_length: int, held_out: int, overwrite: bool
) -> None:
    """Train a byte-level BPE tokenizer on text.

    It is built as the Jais tokenizer is: GPT-2's splitting pattern, no normalisation (tashkeel is kept), end of text
    as token 0. transformers.AutoTokenizer loads the folder. Documents that `data pack` will hold out (give the same
    --held-out) are not learnt from. Prints tokens per word on the held-out documents, or on all without any.
    """
    from cerebras_jais.data.documents import language_of
    from cerebras_jais.data.tokenizer import check_folder, save_tokenizer, tokens_per_word, train_tokenizer

    check_folder(output, overwrite)
    training, kept = _read(texts, held_out)
    trained = train_tokenizer(_progress(training, "learning"), vocab_size)
    save_tokenizer(trained, output, model_max_length, overwrite=overwrite)
    click.echo(f"{output}: {trained.get_vocab_size()} entries from {len(training)} documents")
    if trained.get_vocab_size() < vocab_size:
        click.echo(f"  (fewer than the requested {vocab_size}: the text has no more merges)")
    judged = kept or training
    for language in sorted({language_of(document) for document in judged}):
        fertility = tokens_per_word(trained, (d for d in judged if language_of(d) == language))
        click.echo(f"  {language}: {fertility:.2f} tokens per word{' (held out)' if kept else ''}")


@data.command()
@_text
@click.option(
    "--tokenizer",
    "tokenizer_dir",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder with tokenizer.json, such as a Hugging Face release.",
)
@_length
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="New folder to write.")
@click.option("--vsl", is_flag=True, help="Pack whole documents that attend to themselves alone (use_vsl: True).")
@_held_out
@click.option("--seed", type=Number(SEED), default=0, show_default=True, help="Order of the training documents.")
def pack(
    texts: tuple[Path, ...],
    tokenizer_dir: Path,
    max_sequence_length: int,
    output: Path,
    vsl: bool,
    held_out: int,
    seed: int,
) -> None:
    """Tokenise text and pack it into the Model Zoo's HDF5 files.

    Writes OUTPUT/train and, for each language, OUTPUT/held_out/LANGUAGE; name them as data_dir in the trainer YAML.
    OUTPUT/held_out.jsonl has the text of the documents held out, for `cerebras-jais score --data OUTPUT`.
    Without --vsl the documents are joined, each followed by the end-of-text token, and cut into rows: no position is
    wasted, but a row can begin inside a document. With --vsl each document stays whole and sees only itself.
    """
    from cerebras_jais.data.documents import not_held_out
    from cerebras_jais.data.pipeline import pack_documents

    documents, _ = _read(texts, 0)
    if texts and held_out:
        _print_note(not_held_out(documents, held_out))
    splits = pack_documents(
        documents,
        tokenizer_dir,
        max_sequence_length,
        output,
        vsl=vsl,
        held_out=held_out,
        seed=seed,
        progress=_progress,
    )
    for split in splits:
        report = split.report
        click.echo(
            f"{split.directory}: {split.documents} documents, {split.n_bytes} bytes, {report.tokens} tokens, "
            f"{report.rows} rows of {max_sequence_length} ({report.fill:.1%} full)"
        )


def _read(texts: tuple[Path, ...], held_out: int) -> tuple[list[Document], list[Document]]:
    """Return (training, held out) documents of all the paths, of the bundled sample when there are none."""
    from cerebras_jais.data.documents import passed_over, read_documents, sample_corpus_path, split_held_out

    for path in texts:
        _print_note(passed_over(path))
    documents = [document for path in texts or (sample_corpus_path(),) for document in read_documents(path)]
    return split_held_out(documents, held_out) if held_out else (documents, [])


def _print_note(note: str | None) -> None:
    if note is not None:
        click.echo(f"note: {note}", err=True)


def _progress(documents: Iterable[Document], name: str) -> Iterable[Document]:
    from tqdm import tqdm

    bar: Iterable[Document] = tqdm(documents, desc=name, unit=" documents", disable=None, leave=False)
    return bar
