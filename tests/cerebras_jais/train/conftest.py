"""What tests of runs share: a folder with data, and no picture of the losses."""

import pytest

from tests.cerebras_jais.train.examples import write_data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "train")
    write_data(tmp_path / "held_out", samples=10, seed=1)
    return tmp_path


@pytest.fixture(autouse=True)
def no_curve(request, monkeypatch):
    """Drawing takes longer than these runs do; tests that look at the picture say "curve", and draw it."""
    if "curve" not in request.node.name:
        monkeypatch.setattr("cerebras_jais.train.progress.draw_curve", lambda rows, path: None)
        monkeypatch.setattr("cerebras_jais.train.setup.draw_curve", lambda rows, path: None)
