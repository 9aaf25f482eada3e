"""The examples of configs/data, from text to a trained model by commands.

Contract: one command makes a mixed set without duplicates, every source within one document or 0.1% of what the card's
ratio asks; the rows hold text of each source; the tiny jais config trains on it.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.catalog.yaml_files import open_config
from cerebras_jais.cli import cli
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.data.token_store import open_store
from cerebras_jais.data.tokenizer import load_tokenizer
from tests.xquad import xquad_files

ROOT = Path(__file__).parents[4]
STEPS = 5


def run(*words):
    """What a command prints."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exception is None, result.exception
    return result.output


def prepare(kind):
    """Train the tokenizer that an example asks for, in the working directory; the example."""
    text = [word for file in xquad_files() for word in ("--text", file)] if kind == "xquad" else []
    run("data", "tokenizer", *text, "--vocab-size", 2048, "--output", "tokenizer")
    for name in ("cerebras_jais", "checkpoint_convert"):
        Path(name).symlink_to(ROOT / name)
    return ROOT / "configs" / "data" / f"{kind}.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sample", pytest.param("xquad", marks=pytest.mark.xquad)])
def test_an_example_becomes_data_that_the_tiny_jais_config_trains_on(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    example = prepare(kind)
    said = run("data", "build", example, "--output", "made", "--workers", 1)
    print(said)
    report = json.loads(Path("made/report.json").read_text())
    ((phase, packed),) = [*next(iter(report["phases"].values()))["folders"].items()]
    longest = max(int(open_store(f"made/store/{name}").lengths.max()) for name in report["sources"])
    total = sum(part["tokens"] for part in packed["mixture"])
    for part in packed["mixture"]:
        assert abs(part["tokens"] - part["asked"] * total) <= max(longest, 0.001 * total)
        assert f"{part['source']}: " in said

    samples, tokenizer = HDF5Samples(f"made/{phase}", 8), load_tokenizer("tokenizer")
    text = "".join(tokenizer.decode(ids.tolist()) for ids in samples.read(np.arange(len(samples)))["input_ids"])
    assert all(word in text for word in ("الذي", " the ", "def "))

    trainer = yaml.safe_load(open_config("tiny/jais").text)
    init, fit = trainer["trainer"]["init"], trainer["trainer"]["fit"]
    init["loop"], init["checkpoint"] = {"max_steps": STEPS}, {"steps": STEPS}
    fit["train_dataloader"]["data_dir"], fit["val_dataloader"] = f"made/{phase}", None
    Path("trainer.yaml").write_text(yaml.safe_dump(trainer))
    run("fit", "trainer.yaml", "--model-dir", "model")
    losses = [float(line.split(",")[1]) for line in Path("model/losses.csv").read_text().splitlines()[1:]]
    assert losses[0] == pytest.approx(math.log(2048), rel=0.1)
