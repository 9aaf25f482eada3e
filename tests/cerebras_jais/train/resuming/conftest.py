"""What the tests of stopped runs share: a folder with more data."""

import pytest

from tests.cerebras_jais.train.examples import write_data


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "train", samples=28)
    write_data(tmp_path / "held_out", samples=10, seed=1)
    return tmp_path
