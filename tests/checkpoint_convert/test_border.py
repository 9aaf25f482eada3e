"""What is not of the formats: file systems without locks, outputs that can be none, JSON beyond the standard.

Contract: without locks a conversion is made, and goes on after it was stopped, with a note; an output without a name is
refused in one line; a config.json with half a character in it, or that is a pipe, is refused by its name.
"""

import errno
import fcntl
import json
import os

import pytest

from cerebras_jais.errors import REFUSED, UserError
from checkpoint_convert.convert import convert_to_cerebras, convert_to_hf
from tests.checkpoint_convert.examples import jais_checkpoint, listing
from tests.checkpoint_convert.streaming.test_interruption import StoppedError, checkpoint_in, stopping_at


@pytest.fixture
def no_locks(monkeypatch):
    def refused(*args):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)


def test_a_conversion_goes_on_where_the_file_system_has_no_locks(tmp_path, no_locks, capsys):
    source = checkpoint_in(tmp_path)
    with pytest.raises(StoppedError):
        convert_to_hf(source, tmp_path / "release", progress=stopping_at(0.5))
    report = convert_to_hf(source, tmp_path / "release")
    assert report.continued and (tmp_path / "release" / "config.json").exists()
    assert capsys.readouterr().err.count("this file system locks no folders") == 2
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]


@pytest.fixture
def release(tmp_path):
    convert_to_hf(jais_checkpoint(tmp_path), tmp_path / "release")
    return tmp_path / "release"


@pytest.mark.parametrize("output", [".", "/", ""])
def test_an_output_without_a_name_is_refused(release, output):
    before = listing(release.parent)
    with pytest.raises(UserError, match=r"give the name of the \.mdl file"):
        convert_to_cerebras(release, output)
    assert listing(release.parent) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_with_half_a_character_is_refused_by_its_file(release, name, tmp_path):
    content = json.loads((release / name).read_text(encoding="utf-8"))
    (release / name).write_text(json.dumps({**content, "note": "\ud800"}), encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}: its JSON cannot be read"):
        convert_to_cerebras(release, tmp_path / "back.mdl")
    assert not (tmp_path / "back.mdl").exists()


def test_a_config_that_is_a_pipe_is_refused(release, tmp_path):
    (release / "config.json").unlink()
    os.mkfifo(release / "config.json")
    with pytest.raises(UserError, match=r"config\.json: is not a regular file") as caught:
        convert_to_cerebras(release, tmp_path / "back.mdl")
    assert caught.value.status == REFUSED
