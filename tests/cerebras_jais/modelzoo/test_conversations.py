"""The Model Zoo's trainer reads conversations as `data chat` packs them, and learns the same from them as ours.

Contract: with the real GptHDF5MapDataProcessor and trainer, the first losses of the tiny chat config on packed
conversations agree with the reference trainer's within 1e-5.
"""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cerebras_jais.cli import cli
from tests import tolerances
from tests.cerebras_jais.modelzoo.runs import prepare, reference, require_modelzoo, zoo, zoo_scalars
from tests.xquad import write_xquad_conversations, xquad_files

pytestmark = [pytest.mark.modelzoo, pytest.mark.slow]

STEPS = 5


def make_data(kind):
    """A tokenizer and packed conversations in the working directory."""
    text, conversations = [], []
    if kind == "xquad":
        text = [word for file in xquad_files() for word in ("--text", str(file))]
        write_xquad_conversations(Path("conversations.jsonl"))
        conversations = ["--text", "conversations.jsonl"]
    for words in (
        ["tokenizer", *text, "--vocab-size", "2048", "--output", "tokenizer"],
        ["chat", *conversations, "--tokenizer", "tokenizer", "--max-sequence-length", "512", "--output", "data/chat"],
    ):
        result = CliRunner().invoke(cli, ["data", *words])
        assert result.exception is None, result.exception


@pytest.mark.parametrize("kind", ["bundled", pytest.param("xquad", marks=pytest.mark.xquad)])
def test_both_trainers_have_the_same_losses_on_conversations(tmp_path, kind):
    require_modelzoo()
    with contextlib.chdir(tmp_path):
        make_data(kind)
    path = prepare(tmp_path, "chat.yaml", steps=STEPS)
    assert not list((tmp_path / "data/chat/train").glob("a.h5")), "the data is ours"
    zoo(tmp_path, "fit", path.name, "-o", "zoo")
    ((phase, result, _),) = reference(tmp_path, path, "ours")
    scalars = zoo_scalars(tmp_path / "zoo" / phase.model_dir.relative_to("ours"))
    theirs = [scalars["loss"][step] for step in range(1, STEPS + 1)]
    print(f"{kind}: largest difference {np.abs(np.subtract(theirs, result.losses)).max():.1e} of {theirs}")
    np.testing.assert_allclose(theirs, result.losses, rtol=0, atol=tolerances.MODELZOO_FIRST_LOSSES)
