"""Every YAML of this project names data folders that a command makes, and a message about a missing one names it.

Contract: the YAML that `to-cerebras` writes trains on what one `data pack` leaves; each part of a full-size config is
one `data pack` of that part; where instruction data is missing, the message names `data chat`.
"""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cerebras_jais.catalog.yaml_files import preset_yaml, presets
from cerebras_jais.cli import cli
from cerebras_jais.data.dataset import HDF5Samples
from cerebras_jais.errors import UserError
from checkpoint_convert.configs.trainer_yaml import trainer_params, yaml_text
from tests.cerebras_jais.model.examples import jais_section

PACK = ["--max-sequence-length", "24", "--held-out", "10", "--output", "data"]


def folders(trainer):
    for name in ("train_dataloader", "val_dataloader"):
        loader = trainer["fit"][name]
        named = [part["data_dir"] for part in loader["mixture"]] if "mixture" in loader else [loader["data_dir"]]
        yield name, [folder for each in named for folder in ([each] if isinstance(each, str) else each)]


def trainers(text):
    found = yaml.safe_load(text)["trainer"]
    return [entry["trainer"] for entry in found] if isinstance(found, list) else [found]


def run(*words):
    result = CliRunner().invoke(cli, list(words))
    assert result.exception is None, result.exception


@pytest.mark.slow
def test_a_yaml_of_a_release_trains_on_what_data_pack_leaves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = jais_section(vocab_size=512)
    params = trainer_params(section, "start.mdl")
    params["trainer"]["fit"].pop("ckpt_path")  # from random weights: the data is what matters here
    Path("start.yaml").write_text(yaml.safe_dump(params))
    text = yaml_text(trainer_params(section, "start.mdl"), [])
    assert "data pack --output data" in text
    assert "--max-sequence-length 24 --held-out N" in " ".join(text.replace("#", "").split())
    run("data", "tokenizer", "--vocab-size", "512", "--held-out", "10", "--output", "tokenizer")
    run("data", "pack", "--tokenizer", "tokenizer", *PACK)
    named = {folder for _, folders_of in folders(params["trainer"]) for folder in folders_of}
    assert named == {str(path.parent) for path in Path().rglob("*.h5")}
    run("fit", "start.yaml", "--max-steps", "2")


@pytest.mark.parametrize("preset", [r for r in presets() if not r.is_miniature], ids=lambda preset: preset.name)
def test_each_part_of_a_config_is_one_data_pack(preset):
    for trainer in trainers(preset_yaml(preset)):
        (_, train), (_, held_out) = folders(trainer)
        packed = {folder.removesuffix("/train") for folder in train}
        assert len(packed) == len(train)
        assert all(folder.endswith("/train") for folder in train)
        assert {Path(folder).name for folder in held_out} == {"ar", "en"}
        assert {str(Path(folder).parent.parent) for folder in held_out} <= packed
        assert all(Path(folder).parent.name == "held_out" for folder in held_out)


@pytest.mark.parametrize("exists", [False, True])
def test_where_instruction_data_is_missing_the_command_that_makes_it_is_named(tmp_path, exists):
    folder = tmp_path / "chat"
    if exists:
        folder.mkdir()
    with pytest.raises(UserError) as refused:
        HDF5Samples(folder, batch_size=1, use_vsl=True)
    line = str(refused.value)
    assert "\n" not in line
    assert "`cerebras-jais data chat` makes it of conversations" in line
    assert line.endswith("`cerebras-jais data pack --vsl` of text")
    with pytest.raises(UserError, match=r"`cerebras-jais data pack` makes one of text$"):
        HDF5Samples(folder, batch_size=1)
