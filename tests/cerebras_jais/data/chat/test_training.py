"""Contract: conversations become data that the tiny chat config trains on, by the commands that the README gives."""

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cerebras_jais.catalog.reader import read_trainer_yaml
from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.cli import cli
from cerebras_jais.data.chat.reading import read_conversations
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.model.decoder import LanguageModel
from tests.xquad import write_xquad_conversations, xquad_files

STEPS = 3


def run(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exception is None, result.exception
    return result.output


def options_of(kind):
    """Options that name the texts and the conversations, and how many of the latter there are."""
    if kind == "bundled":
        return [], [], 40
    text = [word for file in xquad_files() for word in ("--text", file)]
    count = write_xquad_conversations(Path("conversations.jsonl"))
    return text, ["--text", "conversations.jsonl"], count


def write_start(path):
    """A checkpoint of random weights in the place of what tiny/jais leaves."""
    Path(path).parent.mkdir()
    torch.manual_seed(7)
    model = LanguageModel(read_trainer_yaml("tiny/jais")[0].init.model)
    save_checkpoint(path, {"model": {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bundled", pytest.param("xquad", marks=pytest.mark.xquad)])
def test_the_tiny_chat_config_trains_on_conversations(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    text, conversations, count = options_of(kind)
    run("data", "tokenizer", *text, "--vocab-size", 2048, "--output", "tokenizer")
    said = run(
        "data",
        "chat",
        *conversations,
        "--tokenizer",
        "tokenizer",
        "--max-sequence-length",
        512,
        "--output",
        "data/chat",
    )
    print(said)
    packed = sum(int(number) for number in re.findall(r": (\d+) examples?", said))
    left_out = {what: int(number) for number, what in re.findall(r"left out: (\d+) of \d+, (.*)", said)}
    equal = left_out.get("equal to an earlier one", 0)
    assert packed + sum(left_out.values()) == count, "every one is packed or counted"
    assert packed >= 0.95 * (count - equal)
    write_start("jais/checkpoint_100.mdl")
    run("fit", "tiny/chat", "--max-steps", STEPS)
    said = run("score", f"chat/checkpoint_{STEPS}.mdl", "--tokenizer", "tokenizer", "--data", "data/chat", "--json")
    scores = json.loads(said)
    held_out = list(read_conversations(Path("data/chat/held_out.jsonl")))
    assert {language: score["documents"] for language, score in scores.items()} == Counter(
        chat.language for chat in held_out
    )
    for language, score in scores.items():
        samples = HDF5Samples(f"data/chat/held_out/{language}", 1, use_vsl=True)
        assert score["tokens"] == samples.read(np.arange(len(samples)))["attention_mask"].sum()
        assert score["loss"] < 1.1 * math.log(2048)
