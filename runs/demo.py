"""The whole line in miniature, for one model of each family, on a CPU.

Text becomes a tokenizer and packed tokens; a Model Zoo trainer YAML trains a model on them; its Cerebras checkpoint
becomes a Hugging Face release that transformers loads and generates from; the release becomes a checkpoint again, bit
for bit. At the end the Jais model is tuned on conversations, answers a question in each language, and is scored on ten
questions with options. Every command is printed as it is run, so this file is also the manual.

    python runs/demo.py [--text PATH] [--output DIR] [--max-steps N]
"""

import argparse
import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {"jais-family": "jais", "jais-adapted": "adapted"}
PROMPTS = {"Arabic": "في صباح يوم", "English": "In the morning"}
QUESTIONS = {"Arabic": "ما هي عاصمة الإمارات؟", "English": "What is the capital of the UAE?"}


def command(*words: str, output: Path, lines: str = "") -> str:
    """Run one of the project's commands in the output folder, showing it; its standard output. `lines` is its input."""
    print(f"\n$ {shlex.join(words)}", flush=True)
    module = {"cerebras-jais": "cerebras_jais.cli", "checkpoint-convert": "checkpoint_convert.cli"}[words[0]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-m", module, *words[1:]],
        cwd=output,
        env=environment,
        input=lines,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    sys.stdout.write(run.stdout)
    if run.returncode:
        sys.exit(f"{Path(sys.argv[0]).stem}: the command above failed with status {run.returncode}")
    return run.stdout


def choose_held_out(paths: list[str]) -> int:
    """Every how many documents one is held out: ten, or two where no language has ten."""
    from collections import Counter

    from cerebras_jais.data.documents import language_of, read_documents, sample_corpus_path
    from cerebras_jais.errors import UserError

    try:
        documents = [document for path in paths or [sample_corpus_path()] for document in read_documents(path)]
    except UserError as error:
        sys.exit(f"demo: {error}")
    largest = max(Counter(map(language_of, documents)).values(), default=0)
    if largest < 2:
        sys.exit("demo: --text must hold at least two documents of one language, one to learn from and one to test on")
    return 10 if largest >= 10 else 2


def make_data(text: list[str], held_out: str, output: Path) -> None:
    """A tokenizer and packed training and held-out data."""
    words = [*text, "--held-out", held_out]
    command(
        "cerebras-jais", "data", "tokenizer", *words, "--vocab-size", "2048", "--output", "tokenizer", output=output
    )
    sequences = ["--tokenizer", "tokenizer", "--max-sequence-length", "128"]
    command("cerebras-jais", "data", "pack", *words, *sequences, "--output", "data", output=output)


def write_config(folder: str, output: Path) -> str:
    """The family's YAML with the held-out data there is (one folder per language); its name."""
    found = sorted(str(path.relative_to(output)) for path in (output / "data" / "held_out").iterdir())
    preset = (ROOT / "configs" / "tiny" / f"{folder}.yaml").read_text(encoding="utf-8")
    shipped = "data_dir: [data/held_out/ar, data/held_out/en]"
    assert shipped in preset
    (output / f"{folder}.yaml").write_text(preset.replace(shipped, f"data_dir: [{', '.join(found)}]"), encoding="utf-8")
    return f"{folder}.yaml"


def run_family(name: str, output: Path, limit: list[str]) -> dict[str, str]:
    """Train, release, take back and compare one model; the rows of its table. `limit` is --max-steps N, or nothing."""
    folder = FAMILIES[name]
    command("cerebras-jais", "fit", write_config(folder, output), "--model-dir", folder, *limit, output=output)
    checkpoint = max((output / folder).glob("checkpoint_*.mdl"), key=lambda p: p.stat().st_mtime)
    mdl, release, back = str(checkpoint.relative_to(output)), f"{folder}-release", f"{folder}-back.mdl"
    command("checkpoint-convert", "to-hf", mdl, "--tokenizer", "tokenizer", "--output", release, output=output)
    command("checkpoint-convert", "to-cerebras", release, "--output", back, output=output)
    same = json.loads(command("checkpoint-convert", "verify", mdl, back, "--json", output=output))
    logits = json.loads(command("checkpoint-convert", "verify", mdl, release, "--logits", "--json", output=output))
    last = logits["logits"]["layers"][-1]
    unseen = ["--tokenizer", "tokenizer", "--data", "data", "--json"]
    scores = json.loads(command("cerebras-jais", "score", mdl, *unseen, output=output))
    with (output / folder / "losses.csv").open() as file:
        steps = list(csv.DictReader(file))
    tokens = sum(score["tokens"] for score in scores.values())
    loss = sum(score["loss"] * score["tokens"] for score in scores.values()) / tokens
    by_language = ", ".join(
        f"{lang} {s['loss']:.3f} ({s['bits_per_byte']:.2f} bits/byte)" for lang, s in scores.items()
    )
    return {
        "tokens trained on": f"{sum(int(step['tokens']) for step in steps):,}",
        "steps": str(len(steps)),
        "first and last loss": f"{float(steps[0]['loss']):.3f} to {float(steps[-1]['loss']):.3f}",
        "held-out loss": f"{loss:.3f} ({by_language})",
        "checkpoint": f"{checkpoint.stat().st_size / 1e6:.1f} MB, with optimizer state",
        "identical after the round trip": f"{same['identical']} of {same['tensors']} tensors",
        "largest logit difference": f"{last['largest_difference']:.1e} (reference path against transformers, "
        f"logits up to {last['largest_magnitude']:.1f})",
        **{
            f"{language} sample": text
            for language, text in samples(output / release, own_code=folder == "jais").items()
        },
        "loss curve": shown(output / folder / "loss_curve.png"),
        "release": shown(output / release),
    }


def chat(output: Path, limit: list[str]) -> None:
    """Tune the Jais model on the bundled conversations, and ask it a question in each language.

    It has 2 million parameters and has read a few hundred conversations: its answers show that all parts fit together.
    """
    (checkpoint,) = (output / "jais").glob("checkpoint_*.mdl")
    preset = (ROOT / "configs" / "tiny" / "chat.yaml").read_text(encoding="utf-8")
    config = output / "conversations.yaml"
    for old, new in (
        ("model_dir: chat\n", "model_dir: conversations\n"),
        ("data/chat/", "data/conversations/"),
        ("jais/checkpoint_100.mdl", f"jais/{checkpoint.name}"),
    ):
        assert old in preset
        preset = preset.replace(old, new)
    config.write_text(preset, encoding="utf-8")
    packed = ["--tokenizer", "tokenizer", "--max-sequence-length", "512", "--output", "data/conversations"]
    command("cerebras-jais", "data", "chat", *packed, output=output)
    command("cerebras-jais", "fit", config.name, *limit, output=output)
    (tuned,) = (output / "conversations").glob("checkpoint_*.mdl")
    release = ["--tokenizer", "tokenizer", "--output", "conversations-release"]
    command("checkpoint-convert", "to-hf", str(tuned.relative_to(output)), *release, output=output)
    for question in QUESTIONS.values():
        print(f"\n> {question}", end="")
        words = ["conversations-release", "--seed", "0", "--max-new-tokens", "40"]
        command("cerebras-jais", "chat", *words, output=output, lines=f"{question}\n")


def evaluate(output: Path) -> None:
    """Score the tuned model on five of the questions in each language, where lm_eval is; chance is one in four."""
    if find_spec("lm_eval") is None:
        print("\nThe ten questions are left out: the package lm_eval is not installed.")
        return
    words = ["conversations-release", "--suite", "demo", "--limit", "5", "--output", "scores"]
    command("cerebras-jais", "evaluate", *words, output=output)
    command("cerebras-jais", "report", "scores", output=output)


def shown(path: Path) -> str:
    """A path for people: relative where it lies below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def samples(release: Path, own_code: bool) -> dict[str, str]:
    """What transformers generates from the release for each prompt, sampled with the settings of the family's card."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from cerebras_jais.catalog.chat import SAMPLING

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(release, trust_remote_code=own_code)
    model = AutoModelForCausalLM.from_pretrained(release, trust_remote_code=own_code).eval()
    texts = {}
    for language, prompt in PROMPTS.items():
        ids = tokenizer(prompt, return_tensors="pt")
        torch.manual_seed(0)
        out = model.generate(**ids, max_new_tokens=40, pad_token_id=0, **SAMPLING)
        texts[language] = " ".join(tokenizer.decode(out[0], skip_special_tokens=True).split())
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", action="append", default=[], help="your own text: a folder or file of .txt or .jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="where everything goes, made anew")
    parser.add_argument("--max-steps", help="train no longer than this, to try the demo out")
    options = parser.parse_args()
    output, started = options.output.resolve(), time.monotonic()
    marker = output / ".cerebras_jais_demo"
    if output.exists() and any(output.iterdir()) and not marker.exists():
        sys.exit(f"demo: {output} is not empty and was not made by this demo; choose another --output")
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)
    marker.touch()
    text = [word for path in options.text for word in ("--text", str(Path(path).resolve()))]

    make_data(text, str(choose_held_out(options.text)), output)
    limit = ["--max-steps", options.max_steps] if options.max_steps else []
    tables = {name: run_family(name, output, limit) for name in FAMILIES}
    for name, rows in tables.items():
        print(f"\n{name} (tiny)\n{'-' * 60}")
        for what, value in rows.items():
            print(f"{what:<32}{value}")
    chat(output, limit)
    evaluate(output)
    print(f"\nDone in {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
