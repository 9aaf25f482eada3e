"""Wrong input ends a command with one clear line and a non-zero status, and leaves nothing half-written.

Contract: for each kind of mistake, the line names the offending file, key or number and the remedy; no traceback; the
folder holds afterwards exactly what it held before.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import cerebras_jais.cli
import checkpoint_convert.cli
from cerebras_jais.checkpoint import save_checkpoint
from cerebras_jais.data.dataset import DataParameters, write_hdf5
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from tests.cerebras_jais.model.examples import jais_section

LENGTH, VOCABULARY = 24, 97


def preset():
    """A trainer YAML of a tiny Jais model over ./data, as nested mappings."""
    return {
        "trainer": {
            "init": {
                "backend": {"backend_type": "CPU"},
                "model_dir": "model",
                "seed": 1,
                "model": jais_section(),
                "optimizer": {"AdamW": {"learning_rate": 0.001, "weight_decay": 0.1}},
                "loop": {"max_steps": 2},
                "checkpoint": {"steps": 2},
            },
            "fit": {
                "train_dataloader": {
                    "data_processor": "GptHDF5MapDataProcessor",
                    "data_dir": "data",
                    "batch_size": 2,
                }
            },
        }
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with data, a YAML and a checkpoint that fit together; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).integers(1, VOCABULARY, (6, 3, LENGTH), dtype=np.int32)
    rows[:, 1] = 1
    write_hdf5("data", iter(rows), metadata=DataParameters(vocab_size=VOCABULARY, eos_id=0, pad_id=0))
    write_recipe(preset())
    model = LanguageModel(DecoderConfig.from_section(jais_section()))
    arrays = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    save_checkpoint("m.mdl", {"model": arrays, "__metadata__": [{"version": "2.10.0", "params": preset()}]})
    return tmp_path


def write_recipe(params, name="run.yaml"):
    Path(name).write_text(yaml.safe_dump(params))


def refused(monkeypatch, capsys, program, *arguments):
    """Run a command that must fail; the one line it says."""
    before = sorted(str(p) for p in Path().rglob("*"))
    module = {"cerebras-jais": cerebras_jais.cli, "checkpoint-convert": checkpoint_convert.cli}[program]
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code not in (0, None)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "Error:", "Traceback"))]
    assert len(said) == 1
    assert said[0].lower().startswith("error:")
    assert sorted(str(p) for p in Path().rglob("*")) == before
    return said[0]


def fails_to_fit(monkeypatch, capsys, change, *arguments):
    params = preset()
    change(params["trainer"])
    write_recipe(params)
    return refused(monkeypatch, capsys, "cerebras-jais", "fit", "run.yaml", *arguments)


def test_the_folder_trains_when_nothing_is_wrong(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cerebras-jais", "fit", "run.yaml"])
    with pytest.raises(SystemExit) as ended:
        cerebras_jais.cli.main()
    assert not ended.value.code
    assert (folder / "model" / "checkpoint_2.mdl").exists()


def test_a_missing_data_directory(folder, monkeypatch, capsys):
    line = fails_to_fit(monkeypatch, capsys, lambda t: t["fit"]["train_dataloader"].update(data_dir="nowhere"))
    assert "nowhere" in line


def test_a_vocabulary_smaller_than_the_data(folder, monkeypatch, capsys):
    line = fails_to_fit(monkeypatch, capsys, lambda t: t["init"]["model"].update(vocab_size=50))
    assert "vocab_size" in line
    assert "50" in line


def test_a_sequence_length_that_is_not_the_data_s(folder, monkeypatch, capsys):
    line = fails_to_fit(monkeypatch, capsys, lambda t: t["init"]["model"].update(max_position_embeddings=16))
    assert "16" in line
    assert "24" in line


def test_an_unknown_yaml_key(folder, monkeypatch, capsys):
    line = fails_to_fit(monkeypatch, capsys, lambda t: t["init"]["loop"].update(max_stepz=3))
    assert "max_stepz" in line
    assert "max_steps" in line


def test_an_unknown_model_key(folder, monkeypatch, capsys):
    line = fails_to_fit(monkeypatch, capsys, lambda t: t["init"]["model"].update(hiden_size=3))
    assert "hiden_size" in line
    assert "hidden_size" in line


def test_a_yaml_file_that_is_not_there(folder, monkeypatch, capsys):
    assert "absent.yaml" in refused(monkeypatch, capsys, "cerebras-jais", "fit", "absent.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, 100, 5000, -100])
def test_a_truncated_checkpoint(folder, monkeypatch, capsys, kept):
    whole = Path("m.mdl").read_bytes()
    Path("m.mdl").write_bytes(whole[:kept])
    assert "m.mdl" in refused(monkeypatch, capsys, "checkpoint-convert", "to-hf", "m.mdl", "--output", "release")
    assert "m.mdl" in fails_to_fit(monkeypatch, capsys, lambda t: None, "--checkpoint", "m.mdl")


def test_a_config_that_does_not_fit_the_checkpoint(folder, monkeypatch, capsys):
    line = fails_to_fit(
        monkeypatch, capsys, lambda t: t["init"]["model"].update(filter_size=96), "--checkpoint", "m.mdl"
    )
    assert "linear_layer" in line
    line = refused(
        monkeypatch, capsys, "checkpoint-convert", "to-hf", "m.mdl", "--config", "run.yaml", "--output", "release"
    )
    assert "linear_layer" in line


def test_a_release_that_is_none(folder, monkeypatch, capsys):
    Path("empty").mkdir()
    line = refused(monkeypatch, capsys, "checkpoint-convert", "to-cerebras", "empty", "--output", "x.mdl")
    assert "config.json" in line


def test_an_output_that_exists_is_not_overwritten(folder, monkeypatch, capsys):
    Path("release").mkdir()
    Path("release/precious").write_text("kept")
    line = refused(monkeypatch, capsys, "checkpoint-convert", "to-hf", "m.mdl", "--output", "release")
    assert "release" in line
    assert Path("release/precious").read_text() == "kept"


def test_text_that_is_not_utf_8(folder, monkeypatch, capsys):
    Path("bad.txt").write_bytes(b"\xff\xfe\x00abc")
    line = refused(
        monkeypatch,
        capsys,
        *("cerebras-jais", "data", "tokenizer", "--text", "bad.txt", "--vocab-size", "300", "--output", "t"),
    )
    assert "bad.txt" in line
