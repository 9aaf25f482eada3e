"""runs/condor_galaxy.sh needs nothing of its surroundings but what docs/launching.md installs.

Contract: with no variable of the environment set, USER included, it launches what it says, in order, from a volume of
the user's name; the volume, the folder of the run and the config can be given.
"""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "runs" / "condor_galaxy.sh"


def volume(folder):
    """A volume with an environment whose cerebras-jais writes down how it is called."""
    programs = folder / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "cerebras-jais").write_text(f'#!/bin/bash\necho "$@" >> "{folder}/calls"\n')
    (programs / "cerebras-jais").chmod(0o755)
    return folder


def run(**environment):
    return subprocess.run(
        ["bash", str(SCRIPT), "4"], env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True
    )


def test_a_volume_that_is_given_is_launched_from(tmp_path):
    done = run(VOLUME=str(volume(tmp_path / "cb")), CONFIG="run.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    check, *launches = (tmp_path / "cb" / "calls").read_text().splitlines()
    assert check == "config check run.yaml"
    assert [line.rpartition(" ")[2] for line in launches] == ["--dry-run", "--compile-only", "p2"]
    for line in launches:
        assert line.startswith(
            f"fit run.yaml --backend csx --model-dir {tmp_path}/cb/runs/jais-family-30b --num-csx 4 "
        )


@pytest.mark.parametrize("user", [{}, {"USER": "someone"}])
def test_the_volume_is_named_after_the_user_whatever_USER_says(user):
    name = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    done = run(**user)
    assert f"/cb/{name}/venv/bin/activate" in done.stderr
    assert "unbound variable" not in done.stderr
