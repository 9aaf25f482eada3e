"""A model of one language learns a second one, in miniature: the method of jais-adapted-*, and what else could be done.

An English model in the way of Llama-2 is the base; a Jais model of Arabic and English is the donor. The base's
vocabulary is extended by the donor's Arabic tokens, and their embeddings come from the donor by projection. In stage 1
the embeddings train alone, in stage 2 everything does, on the mix of the card. The same is done with embeddings made in
other ways, and without an extension. The table has the bits per byte of held-out text after each stage.

    python runs/adapt.py [--xquad DIR] [--arabic FILE] [--english FILE] [--seeds N] [--steps-scale X] [--output DIR]

Every command is printed as it is run. docs/adapting.md explains the method and has the table.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from demo import ROOT, command

CONTEXT, BATCH = 128, 16
LANGUAGES = ("en", "ar")
MIX = {"en": 18, "ar": 19}  # the card's tokens of jais-adapted-7b; its 2 parts of code are left out
DONOR_MIX = {"en": 2, "ar": 1}  # the card's of jais-family, without code
METHODS = {  # name: options of `vocab transfer`
    "projection": ["--norms", "base"],
    "unscaled": ["--norms", "projected"],
    "pieces": ["--method", "pieces"],
    "mean": ["--method", "mean"],
    "random": ["--method", "random"],
}
CARD = "projection"  # which of them the card describes
HELD_OUT = 8  # every 8th article, in both languages: the articles of XQuAD are translations
MOST = 4_000_000  # bytes of text to learn from, of a language
PROMPT = "كانت المدينة"


@dataclass(frozen=True)
class Sizes:
    """Entries of the tokenizers, and optimizer steps."""

    base: int
    donor: int
    added: int
    base_steps: int
    donor_steps: int
    stages: tuple[int, int]

    def scaled(self, by: float) -> "Sizes":
        base, donor, *stages = (
            max(3, round(steps * by)) for steps in (self.base_steps, self.donor_steps, *self.stages)
        )
        return Sizes(self.base, self.donor, self.added, base, donor, (stages[0], stages[1]))


# Stage 1 has as much of the steps as in the catalog's jais-adapted-7b: 3,576 of 9,298.
XQUAD = Sizes(2048, 6144, 2000, 500, 700, (100, 160))
SAMPLE = Sizes(800, 2048, 400, 150, 150, (15, 24))


# ---- text -----------------------------------------------------------------------------------------------------------


def articles_of(xquad: Path, language: str) -> list[list[str]]:
    """The articles of an XQuAD file, each a list of paragraphs with their questions."""
    tree = json.loads((xquad / f"xquad.{language}.json").read_text(encoding="utf-8"))
    return [
        ["\n".join([part["context"], *(qa["question"] for qa in part["qas"])]) for part in article["paragraphs"]]
        for article in tree["data"]
    ]


def bundled(language: str) -> list[list[str]]:
    """The documents of the bundled sample, each as an article of its own."""
    from cerebras_jais.data.documents import read_documents, sample_corpus_path

    return [[each.text] for each in read_documents(sample_corpus_path()) if each.language == language]


def more_text(language: str, files: list[Path]) -> Iterator[str]:
    """Text that is learned from and never held out: that of files; for English, Python's own documentation too."""
    from pydoc_data.topics import topics

    from cerebras_jais.data.documents import read_documents

    for file in files:
        yield from (document.text for document in read_documents(file))
    if language == "en":
        yield from topics.values()


def write_texts(options: argparse.Namespace, output: Path) -> dict[str, int]:
    """texts/LANGUAGE.jsonl to learn from, texts/held-out.jsonl to be judged on; bytes to learn from by language.

    texts/en-part.jsonl has as much English as there is Arabic: Jais's tokenizer was trained on equal parts.
    """
    (output / "texts").mkdir()
    judged, sizes = [], {}
    for language, files in zip(LANGUAGES, (options.english, options.arabic), strict=True):
        articles = articles_of(options.xquad, language) if options.xquad else bundled(language)
        judged += [(language, text) for article in articles[::HELD_OUT] for text in article]
        own = (text for number, article in enumerate(articles) if number % HELD_OUT for text in article)
        texts, size = [], 0
        for text in itertools.chain(own, more_text(language, files)):
            if size < MOST:
                texts.append((language, text))
                size += len(text.encode())
        write_lines(output / "texts" / f"{language}.jsonl", texts)
        sizes[language] = size
        if language == "en":
            english = texts
    write_lines(output / "texts" / "held-out.jsonl", judged)
    ends = itertools.accumulate(len(text.encode()) for _, text in english)
    part = [each for each, end in zip(english, ends, strict=True) if end <= sizes["ar"]]
    write_lines(output / "texts" / "en-part.jsonl", part)
    for language in LANGUAGES:
        of = [text for tag, text in judged if tag == language]
        print(f"{language}: {sizes[language]:,} bytes to learn from, {sum(len(t.encode()) for t in of):,} held out")
    return sizes


def write_lines(path: Path, texts: list[tuple[str, str]]) -> None:
    """JSON lines of texts with their language."""
    lines = (json.dumps({"text": text, "language": tag}, ensure_ascii=False) for tag, text in texts)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# ---- tokenizers and data --------------------------------------------------------------------------------------------


def write_llama_tokenizer(text: Path, entries: int, folder: Path) -> None:
    """A tokenizer in the way of Llama-2, of English text: ▁ for spaces, bytes for what it lacks, Arabic in letters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    from cerebras_jais.data.documents import read_documents

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special, byte_pieces = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[*special, *byte_pieces],
        initial_alphabet=[chr(letter) for letter in range(0x621, 0x64B) if not 0x63B <= letter <= 0x640],
        limit_alphabet=200,
        show_progress=False,
    )
    words = (word for document in read_documents(text) for word in document.text.split())
    tokenizer.train_from_iterator(words, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][: len(special)]  # byte pieces are ordinary ones in Llama-2
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    declared = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        **dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True)),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(declared), encoding="utf-8")


def count_entries_and_tokens(tokenizer: Path, text: Path) -> tuple[int, int]:
    """Entries of a tokenizer, and its tokens in a text."""
    from cerebras_jais.data.documents import read_documents
    from cerebras_jais.data.tokenizer import load_tokenizer, vocabulary_size
    from cerebras_jais.encoding import encode_texts

    loaded = load_tokenizer(tokenizer)
    texts = [document.text for document in read_documents(text)]
    return vocabulary_size(loaded), sum(map(len, encode_texts(loaded, texts)))


def pack(language: str, tokenizer: str, folder: str, output: Path) -> None:
    """Rows of all the text of a language to learn from."""
    text = ["--text", f"texts/{language}.jsonl"]
    rows = ["--max-sequence-length", str(CONTEXT), "--held-out", "0"]
    command("cerebras-jais", "data", "pack", *text, "--tokenizer", tokenizer, *rows, "--output", folder, output=output)


# ---- training -------------------------------------------------------------------------------------------------------


def trainer_of(preset: dict, model_dir: str, vocabulary: int, steps: int, seed: int, data: dict, saved: int) -> dict:
    """A phase of a tiny config with a vocabulary, steps, seed and data of its own, and a checkpoint each `saved`."""
    trainer = json.loads(json.dumps(preset))["trainer"]
    init, warmup = trainer["init"], max(1, steps // 10)
    init["model_dir"], init["seed"] = model_dir, seed
    init["model"] |= {"vocab_size": vocabulary, "max_position_embeddings": CONTEXT}
    init["loop"], init["checkpoint"] = {"max_steps": steps}, {"steps": saved}
    rise, fall = (next(iter(each.values())) for each in init["schedulers"][0]["SequentialLR"]["schedulers"])
    rise["total_iters"], fall["total_iters"] = warmup, steps - warmup
    reading = {"batch_size": BATCH, "shuffle": True, "shuffle_seed": seed, "num_workers": 0}
    trainer["fit"] = {"train_dataloader": {"data_processor": "GptHDF5MapDataProcessor", **data, **reading}}
    return {"trainer": trainer}


def preset(name: str) -> list[dict]:
    """The phases of a config in configs/tiny."""
    tree = yaml.safe_load((ROOT / "configs" / "tiny" / f"{name}.yaml").read_text(encoding="utf-8"))["trainer"]
    return tree if isinstance(tree, list) else [{"trainer": tree}]


def fit(name: str, phases: list[dict], output: Path, start: str | None = None) -> float:
    """Train the phases one after another, the first from the checkpoint `start`; the seconds that it took."""
    for before, phase in zip([None, *phases], phases, strict=False):
        if before is not None:
            init = before["trainer"]["init"]
            start = f"{init['model_dir']}/checkpoint_{init['loop']['max_steps']}.mdl"
        if start is not None:
            phase["trainer"]["fit"]["ckpt_path"] = start
            load = {"LoadCheckpointStates": {"load_checkpoint_states": "model"}}
            phase["trainer"]["init"]["callbacks"] = [load]
    tree = {"trainer": phases} if len(phases) > 1 else phases[0]
    (output / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    began = time.monotonic()
    command("cerebras-jais", "fit", f"{name}.yaml", output=output)
    return time.monotonic() - began


def mixture(tokenizer: str, weights: Mapping[str, float]) -> dict:
    """The `mixture` of English and Arabic rows."""
    parts = [{"data_dir": f"data/{tokenizer}/{tag}/train", "weight": weight} for tag, weight in weights.items()]
    return {"mixture": parts}


def score(checkpoint: str, tokenizer: str, output: Path) -> dict[str, float]:
    """Bits per byte of held-out text, by language."""
    words = ["--tokenizer", tokenizer, "--text", "texts/held-out.jsonl", "--json"]
    scores = json.loads(command("cerebras-jais", "score", checkpoint, *words, output=output))
    return {language: scores[language]["bits_per_byte"] for language in LANGUAGES}


# ---- the comparison -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        tokens: trained on, both stages together; each costs the same but for the rows of the head.
        arabic_bytes: of text among them.
        scores: bits per byte by language, after stage 1 and after stage 2, for each seed.
        seconds: of training, of one seed, the mean.
    """

    name: str
    tokens: int
    arabic_bytes: int
    scores: list[list[dict[str, float]]]
    seconds: float


def models_of(sizes: Sizes) -> list[str]:
    """The options of `vocab` verbs that name the trained base and donor."""
    base, donor = f"base/checkpoint_{sizes.base_steps}.mdl", f"donor/checkpoint_{sizes.donor_steps}.mdl"
    return ["--base", base, "--donor", donor]


def adapt(method: str, seed: int, sizes: Sizes, vocabulary: int, output: Path) -> tuple[list[dict[str, float]], float]:
    """Transfer and both stages: the scores after each, and the seconds of training."""
    name = f"{method}-{seed}"
    (output / name).mkdir(exist_ok=True)
    if not (output / name / "extended.mdl").exists():
        command(
            "cerebras-jais", "vocab", "transfer", *models_of(sizes), "--tokenizer", "extended", *METHODS[method],
            "--seed", str(seed), "--output", f"{name}/extended.mdl", output=output,
        )  # fmt: skip
    data = mixture("extended", MIX)
    folders = [f"{name}/stage-1", f"{name}/stage-2"]
    phases = [
        trainer_of(stage, folder, vocabulary, steps, seed, data, steps)
        for stage, folder, steps in zip(preset("stages"), folders, sizes.stages, strict=True)
    ]
    seconds = fit(name, phases, output, start=f"{name}/extended.mdl")
    ends = [f"{folder}/checkpoint_{steps}.mdl" for folder, steps in zip(folders, sizes.stages, strict=True)]
    return [score(end, "extended", output) for end in ends], seconds


def adapt_without(
    seed: int, steps: tuple[int, int], weights: Mapping[str, float], vocabulary: int, output: Path, start: str
):
    """The base trained on with its own vocabulary, all of it: the scores where the stages end, and the seconds."""
    name = f"none-{sum(steps)}-{seed}"
    data = mixture("base", weights)
    (_, stage) = preset("stages")
    phases = [trainer_of(stage, name, vocabulary, sum(steps), seed, data, steps[0])]
    seconds = fit(name, phases, output, start=start)
    return [score(f"{name}/checkpoint_{end}.mdl", "base/tokenizer", output) for end in (steps[0], sum(steps))], seconds


def print_table(before: dict[str, dict[str, float]], rows: list[Row]) -> None:
    """The table, in Markdown: means over the seeds, with the standard deviation where there are several."""

    def shown(values: list[float]) -> str:
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.3f}{spread}"

    print(
        "\n| new embeddings | tokens | Arabic text | Arabic, stage 1 | Arabic, stage 2 "
        "| English, stage 1 | English, stage 2 | time |"
    )
    print("| --- | ---: | ---: | --- | --- | --- | --- | ---: |")
    for name, scores in before.items():
        print(f"| {name} | | | | {scores['ar']:.3f} | | {scores['en']:.3f} | |")
    for row in rows:
        cells = [shown([seed[stage][language] for seed in row.scores]) for language in ("ar", "en") for stage in (0, 1)]
        text = f"{row.arabic_bytes / 1000:,.0f} kB"
        print(f"| {row.name} | {row.tokens:,} | {text} | {' | '.join(cells)} | {row.seconds:.0f} s |")


def write_in_arabic(release: Path) -> str:
    """What transformers' own Llama writes after PROMPT, sampled as the card does."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from cerebras_jais.catalog.chat import SAMPLING

    tokenizer = AutoTokenizer.from_pretrained(release)
    model = LlamaForCausalLM.from_pretrained(release).eval()
    torch.manual_seed(0)
    ids = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    out = model.generate(**ids, max_new_tokens=40, pad_token_id=0, **SAMPLING)
    return " ".join(tokenizer.decode(out[0], skip_special_tokens=True).split())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xquad", type=Path, help="a folder with xquad.ar.json and xquad.en.json; else the sample")
    for language in ("Arabic", "English"):
        about = f"more {language} text to learn from: .txt, .jsonl or SQuAD .json, or a folder; repeatable"
        parser.add_argument(f"--{language.lower()}", type=Path, action="append", default=[], help=about)
    parser.add_argument("--seeds", type=int, default=1, help="how often the adaptations are done (default: 1)")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="times the steps of all training, to try it out")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; it must not exist")
    options = parser.parse_args()
    if options.output.exists():
        parser.error(f"{options.output}: exists already; choose another --output")
    if options.seeds < 1 or not options.steps_scale > 0:
        parser.error("--seeds and --steps-scale must be positive")
    return options


def main() -> None:
    options, started = parse(), time.monotonic()
    from cerebras_jais.errors import UserError

    output, seeds = options.output.resolve(), range(1, options.seeds + 1)
    output.mkdir(parents=True)
    try:
        bytes_of = write_texts(options, output)
    except (UserError, OSError) as error:
        sys.exit(f"adapt: {error}")
    sizes = (XQUAD if options.xquad else SAMPLE).scaled(options.steps_scale)

    # ---- 1. A base that knows English, a donor that knows both ------------------------------------------------------

    write_llama_tokenizer(output / "texts" / "en.jsonl", sizes.base, output / "base" / "tokenizer")
    command(
        "cerebras-jais", "data", "tokenizer", "--text", "texts/ar.jsonl", "--text", "texts/en-part.jsonl",
        "--held-out", "0", "--vocab-size", str(sizes.donor), "--output", "donor/tokenizer", output=output,
    )  # fmt: skip
    pack("en", "base/tokenizer", "data/base/en", output)
    for language in LANGUAGES:
        pack(language, "donor/tokenizer", f"data/donor/{language}", output)
    arabic = output / "texts" / "ar.jsonl"
    base_entries, base_tokens = count_entries_and_tokens(output / "base" / "tokenizer", arabic)
    donor_entries, _ = count_entries_and_tokens(output / "donor" / "tokenizer", arabic)
    for name, config, entries, steps, data in (
        ("base", "adapted", base_entries, sizes.base_steps, {"data_dir": "data/base/en/train"}),
        ("donor", "jais", donor_entries, sizes.donor_steps, mixture("donor", DONOR_MIX)),
    ):
        fit(name, [trainer_of(preset(config)[0], name, entries, steps, 1, data, steps)], output)
    _, base, _, donor = models_of(sizes)
    before = {
        "base, before": score(base, "base/tokenizer", output),
        "donor": score(donor, "donor/tokenizer", output),
    }

    # ---- 2. The vocabulary and the base extended, and the text as rows of either vocabulary --------------------------

    # The first of the adaptations below starts from this; the others have the tokenizer, and a transfer of their own.
    (output / f"{CARD}-1").mkdir()
    command(
        "cerebras-jais", "vocab", "extend-and-transfer", *models_of(sizes), "--add", str(sizes.added),
        "--corpus", "texts/ar.jsonl", "--text", "texts/held-out.jsonl", "--seed", "1", *METHODS[CARD],
        "--tokenizer", "extended", "--output", f"{CARD}-1/extended.mdl", output=output,
    )  # fmt: skip
    pack("en", "extended", "data/extended/en", output)
    pack("ar", "extended", "data/extended/ar", output)
    pack("ar", "base/tokenizer", "data/base/ar", output)

    # ---- 3. Both stages for each way to make embeddings; without an extension, as many tokens and as much text -------

    entries, tokens = count_entries_and_tokens(output / "extended", arabic)
    longer = base_tokens / tokens  # Arabic takes so many times the tokens of the base
    with_all_text = {"en": MIX["en"], "ar": MIX["ar"] * longer}
    factor = sum(with_all_text.values()) / sum(MIX.values())
    more = (round(sizes.stages[0] * factor), round(sizes.stages[1] * factor))
    without = {  # name: steps, mix
        "no extension, as many tokens": (sizes.stages, MIX),
        "no extension, as much text": (more, with_all_text),
    }
    done: dict[str, list] = {name: [] for name in (*METHODS, *without)}
    for seed in seeds:
        for method in METHODS:
            done[method].append(adapt(method, seed, sizes, entries, output))
        for name, (steps, mix) in without.items():
            done[name].append(adapt_without(seed, steps, mix, base_entries, output, base))

    # ---- 4. A release, and the table --------------------------------------------------------------------------------

    final = f"{CARD}-1/stage-2/checkpoint_{sizes.stages[1]}.mdl"
    command("checkpoint-convert", "to-hf", final, "--tokenizer", "extended", "--output", "release", output=output)
    rows = []
    for name, results in done.items():
        steps, mix = without.get(name, (sizes.stages, MIX))
        trained = sum(steps) * BATCH * CONTEXT
        arabic_tokens = trained * mix["ar"] / sum(mix.values())
        seen = round(arabic_tokens * bytes_of["ar"] / (base_tokens if name in without else tokens))
        seconds = statistics.mean(taken for _, taken in results)
        rows.append(Row(name, trained, seen, [scores for scores, _ in results], seconds))
    print_table(before, rows)
    print(f"\nArabic sample ({CARD}): {write_in_arabic(output / 'release')}")
    print(
        f"Arabic takes {longer:.2f} times fewer tokens with the extension. Done in {time.monotonic() - started:.0f} s."
    )


if __name__ == "__main__":
    main()
