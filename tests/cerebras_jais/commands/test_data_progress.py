"""Contract: the bar of `data` is drawn on a terminal also while a tokenizer encodes, which silences standard error."""

import os
import subprocess
import sys
import termios

import pytest

from cerebras_jais.commands.data import _progress
from tests.process import PATIENCE

DRAWN = """
import time
from cerebras_jais.commands.data import _progress
from cerebras_jais.encoding import _silenced

items = iter(_progress(range(5), "reading"))
assert next(items) == 0
with _silenced():
    for _ in items:
        time.sleep(0.15)  # the bar is drawn ten times a second at most
"""


@pytest.mark.slow
def test_the_bar_is_drawn_while_standard_error_is_silenced():
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", DRAWN], stderr=theirs, check=True, timeout=PATIENCE)
    said = os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    assert said.count(b"\rreading:") > 1, "the first time is before the silence"


def test_without_a_terminal_or_standard_error_there_are_the_items_alone(monkeypatch, capsys):
    assert [*_progress([1, 2], "reading")] == [1, 2]
    monkeypatch.setattr(sys, "stderr", None)
    assert [*_progress([1, 2], "reading")] == [1, 2]
    assert capsys.readouterr().err == ""
