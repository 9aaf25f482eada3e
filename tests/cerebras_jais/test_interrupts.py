"""Contract: a signal unwinds the work and leaves nothing of it; one that comes in a block that must not be interrupted
raises at its end; the same end said twice is one, a later signal ends the process; what is ignored stays ignored."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
BEGIN = """
import os, shutil, sys
from cerebras_jais import interrupts
from cerebras_jais.commandline import leave
from cerebras_jais.interrupts import scratch_folder, uninterrupted
def stop():
    os.kill(os.getpid(), int(sys.argv[1]))
"""
IN_A_BLOCK = """
def work():
    with scratch_folder("mine-") as folder:
        (folder / "a").touch()
        with uninterrupted():
            with uninterrupted():
                stop()
            stop()
            print("the block ends", flush=True)
        print("not reached", flush=True)
"""
WHILE_MADE = """
make = interrupts.tempfile.mkdtemp
def making(**options):
    path = make(**options)
    stop()
    return path
interrupts.tempfile.mkdtemp = making
def work():
    with scratch_folder("mine-"):
        print("not reached", flush=True)
"""
WHILE_REMOVED = """
remove = shutil.rmtree
def removing(*arguments, **options):
    stop()
    remove(*arguments, **options)
shutil.rmtree = removing
def work():
    with scratch_folder("mine-"):
        print("the block ends", flush=True)
    print("not reached", flush=True)
"""
TWICE = """
interrupts._REPEATS = float(sys.argv[2])
def work():
    try:
        stop()
    finally:
        stop()
        print("unwound", flush=True)
"""
GOES_ON = """
def work():
    stop()
    print("goes on", flush=True)
"""


def run(script, number, folder, *words, shell=""):
    """Run the work of a script, which sends itself the signal; its status and what it printed."""
    program = [sys.executable, "-c", f"{BEGIN}{script}leave('program', work)", str(int(number)), *words]
    done = subprocess.run(
        ["sh", "-c", f'{shell}exec "$@"', "sh", *program],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize(
    ("script", "said"),
    [(IN_A_BLOCK, ["the block ends"]), (WHILE_MADE, []), (WHILE_REMOVED, ["the block ends"])],
    ids=["in a block", "while a folder is made", "while it is removed"],
)
def test_no_folder_is_left_whenever_a_signal_comes(script, said, number, tmp_path):
    assert run(script, number, tmp_path) == (128 + number, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", STOPS)
def test_an_end_that_is_said_twice_is_one_and_a_later_signal_ends_the_process(number, tmp_path):
    assert run(TWICE, number, tmp_path, "1e9") == (128 + number, ["unwound"])
    assert run(TWICE, number, tmp_path, "0") == (-number, [])


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_that_is_ignored_stays_ignored(number, tmp_path):
    assert run(GOES_ON, number, tmp_path, shell=f"trap '' {number.value}; ") == (0, ["goes on"])
