"""What the tuning runs share: a release opened for training, the project's commands, and the loss by kind of example.

lora.py, sentiment.py and summaries.py each tell one story; this file keeps their plumbing out of it.
"""

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# Read by the libraries at import: everything a run needs is on the disk, and its output is worth reading.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

ROOT = Path(__file__).resolve().parent.parent
TEXTS = Path(__file__).resolve().parent / "texts"
PROGRAMS = {"cerebras-jais": "cerebras_jais.cli", "checkpoint-convert": "checkpoint_convert.cli"}


def parse(description: str | None, steps: int, **more: str) -> argparse.Namespace:
    """The options of a run: RELEASE, --output, --steps, and `more` (name -> help)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", type=Path, help="a Hugging Face release of either family: a folder")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; it must not exist")
    parser.add_argument("--steps", type=int, default=steps, help="optimizer steps (default: %(default)s)")
    for name, about in more.items():
        parser.add_argument(f"--{name}", type=Path, help=about)
    options = parser.parse_args()
    if not (options.release / "config.json").is_file():
        parser.error(f"{options.release}: is not a release, a folder with config.json and weights")
    if options.output.exists():
        parser.error(f"{options.output}: exists already; choose another --output")
    options.started = time.monotonic()
    return options


def command(*words: object, folder: Path) -> None:
    """Run one of the project's commands in a folder, showing it; ends the run where it fails."""
    shown = [str(word) for word in words]
    print(f"\n$ {shlex.join(shown)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", PROGRAMS[shown[0]], *shown[1:]], cwd=folder, env=environment)
    if done.returncode:
        sys.exit(f"{Path(sys.argv[0]).name}: the command above failed with status {done.returncode}")


def read_lines(path: Path) -> list[dict]:
    """The objects in a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def has_own_code(release: Path) -> bool:
    """Whether a release needs trust_remote_code: those of jais-family do, those of jais-adapted do not."""
    return "auto_map" in json.loads((release / "config.json").read_text(encoding="utf-8"))


def open_tokenizer(release: Path):
    """The tokenizer of a release. Padding is the end of text where it has none; a base model gets the chat template."""
    from transformers import AutoTokenizer

    from cerebras_jais.catalog.chat import chat_template

    tokenizer = AutoTokenizer.from_pretrained(release, trust_remote_code=has_own_code(release))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.chat_template = tokenizer.chat_template or chat_template()
    return tokenizer


def split(items: list, every: int) -> tuple[list, list]:
    """Items to learn from and every `every`-th held out, both in a random order that is the same in every run."""
    items = random.Random(1).sample(items, len(items))
    return [item for number, item in enumerate(items) if number % every], items[::every]


def examples_of(conversation: dict) -> Iterator[dict]:
    """An example for each response: what comes before it as `prompt`, the response as `completion`.

    The template ends only the last response of a conversation with the end of text, in the form in which the model
    generates it. An example for each response therefore teaches all of them in that form. The language of the prompt
    is the conversation's `language` ("ar" or "en") where it has one.
    """
    messages, language = conversation["messages"], conversation.get("language")
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            more = {"chat_template_kwargs": {"language": language}} if language else {}
            yield {"prompt": messages[:number], "completion": [message], **more}


def check_room(release: Path, tokenizer, positions: int, examples: list[dict]) -> None:
    """End the run if an example has more tokens than the release has positions: it would lose its response."""

    def tokens(example: dict) -> int:
        messages, more = [*example["prompt"], *example["completion"]], example.get("chat_template_kwargs", {})
        text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    lengths = [tokens(example) for example in examples]
    longer = sum(length > positions for length in lengths)
    if longer:
        sys.exit(
            f"{release}: has {positions} positions, and {longer} of {len(examples)} examples have more tokens, up to "
            f"{max(lengths)}; give a release with more positions, or shorter texts"
        )


def settings_of(options: argparse.Namespace, folder: str, **settings) -> dict:
    """Settings of transformers' and TRL's trainers for a small run, `settings` among them.

    The trainer works in a folder of the run's output, on a GPU in bfloat16 or a CPU in float32, over one cosine of the
    learning rate, with no checkpoints and no reports to services.
    """
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(options.output / folder),
        "max_steps": options.steps,
        "lr_scheduler_type": "cosine",
        "use_cpu": not gpu,
        "bf16": gpu,
        "activation_checkpointing": False,  # it saves memory, which is not short here, and costs a third of the time
        "logging_steps": 10,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 1,
        **settings,
    }


def print_table(title: str, rows: dict[str, tuple[float, float]]) -> None:
    """A line for each kind of example: its value before and after."""
    print(f"\n{title:<28}before   after")
    for name, (before, after) in rows.items():
        print(f"{name:<26}{before:8.3f}{after:8.3f}")


def finish(options: argparse.Namespace) -> None:
    """Say where the results are and how long the run took."""
    print(f"\n{options.output}: done in {time.monotonic() - options.started:.0f} s")
