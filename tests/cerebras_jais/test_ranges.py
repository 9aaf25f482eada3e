"""A number is refused where it is read, by its range in words: in a YAML, on a command line, in a checkpoint.

Contract: a range holds its bounds and nothing beyond them, no text, no truth value, no NaN; every option that takes a
number refuses what lies outside, in one line that names the option, with status 2 and before anything is read.
"""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cerebras_jais.cli
from cerebras_jais import ranges
from cerebras_jais.ranges import Range, shown, subset_bounds

ALL = {name: value for name, value in vars(ranges).items() if isinstance(value, Range)}


@pytest.mark.parametrize("name", ALL)
def test_a_range_holds_its_bounds_and_nothing_beyond(name):
    bounds = ALL[name]
    step = 1 if bounds.whole else abs(bounds.high) * 1e-12
    assert bounds.holds(bounds.low)
    assert bounds.holds(bounds.high) != bounds.below
    assert not bounds.holds(bounds.high + step)
    assert not bounds.holds(bounds.low - step)
    assert not bounds.holds(10**400)
    for value in (True, False, None, "1", [1], math.nan, math.inf, -math.inf):
        assert not bounds.holds(value)
        assert bounds.problem(value).startswith("must be a")


@given(st.integers() | st.floats())
def test_a_whole_range_holds_whole_numbers_alone(value):
    inside = math.isfinite(value) and value == math.floor(value) and 1 <= value <= 2**20
    assert ranges.SIZE.holds(value) == inside


def test_long_values_are_cut_in_messages():
    assert len(shown("x" * 10_000)) < 100
    assert shown(10**5000) == "a number of thousands of digits"
    assert shown("مرحبا") == "'مرحبا'"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda bounds: len(bounds) % 2 == 0))
def test_rising_ranges_are_read_as_they_are_written(bounds):
    bounds = sorted(f"{bound:.6f}" for bound in bounds)
    pairs = list(zip(bounds[::2], bounds[1::2], strict=True))
    text = ",".join(f"{start}-{end}" for start, end in pairs)
    assert subset_bounds(text) == [(float(start), float(end)) for start, end in pairs]


@pytest.mark.parametrize(
    "text", ["", "0.5", "0_1-1", "0.5-0.1", "0-2", "-1-1", "nan-1", "a-b", "0-0.5-1", "0.5-0.6,0.1-0.2", None]
)
def test_ranges_that_do_not_rise_within_0_to_1_are_refused(text):
    with pytest.raises(ValueError, match="must be rising ranges"):
        subset_bounds(text)


GENERATE = ("generate", "absent.mdl", "--tokenizer", "absent", "--prompt", "a")
TOKENIZER = ("data", "tokenizer", "--output", "made", "--vocab-size", "300")
PACK = ("data", "pack", "--tokenizer", "absent", "--output", "made", "--max-sequence-length", "32")
FIT = ("fit", "absent.yaml")


@pytest.mark.parametrize(
    ("command", "option", "values"),
    [
        (GENERATE, "--top-p", ("5", "-0.1", "nan", "text", "")),
        (GENERATE, "--temperature", ("-1", "nan", "inf", "1e9")),
        (GENERATE, "--max-new-tokens", ("-3", "0", "1e3", "100000000", "9" * 5000)),
        (GENERATE, "--seed", ("-1", "1" + "0" * 30)),
        (TOKENIZER, "--vocab-size", ("-1", "0", "1000000000")),
        (TOKENIZER, "--model-max-length", ("0", "100000000")),
        (TOKENIZER, "--held-out", ("-1",)),
        (PACK, "--max-sequence-length", ("0", "-5", "100000000")),
        (PACK, "--seed", ("-1", "1" + "0" * 30)),
        (FIT, "--max-steps", ("0", "-1", "1" + "0" * 30)),
        (FIT, "--num-csx", ("0", "x")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_out_of_its_range_is_refused_by_name(tmp_path, monkeypatch, capsys, command, option, values):
    monkeypatch.chdir(tmp_path)
    for value in values:
        monkeypatch.setattr(sys, "argv", ["cerebras-jais", *command, f"{option}={value}"])
        with pytest.raises(SystemExit) as ended:
            cerebras_jais.cli.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2
        (line,) = [line for line in said.splitlines() if line.startswith("Error")]
        assert option in line
        assert "must be a" in line
        assert "Traceback" not in said
    assert not list(tmp_path.iterdir())
