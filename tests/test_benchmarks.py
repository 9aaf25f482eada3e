"""The files that a benchmark makes are the ones whose conversion it claims to measure."""

import importlib.util
import sys
from pathlib import Path

from click.testing import CliRunner

from checkpoint_convert.cli import cli

ROOT = Path(__file__).parents[1]


def test_a_checkpoint_of_the_conversion_benchmark_converts_and_verifies(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    spec = importlib.util.spec_from_file_location("conversion_benchmark", ROOT / "benchmarks/conversion.py")
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)
    spec.loader.exec_module(benchmark)
    section, *rest = benchmark.PUBLISHED["jais-family-590m"]
    small = {"hidden_size": 64, "num_heads": 4, "num_hidden_layers": 2, "filter_size": 96, "vocab_size": 128}
    monkeypatch.setitem(benchmark.PUBLISHED, "small", ({**section, **small}, *rest))
    benchmark.write_checkpoint(tmp_path / "a.mdl", "small", zeros=False)
    for words in (["to-hf", tmp_path / "a.mdl", "--output", tmp_path / "release"], ["verify", tmp_path / "release"]):
        done = CliRunner().invoke(cli, list(map(str, words)))
        assert done.exit_code == 0, done.output
