"""The files that a benchmark makes are the ones whose conversion or transfer it claims to measure."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import cerebras_jais.cli
from cerebras_jais.model.config import DecoderConfig
from cerebras_jais.model.decoder import LanguageModel
from checkpoint_convert.cli import cli
from checkpoint_convert.load import load_release
from tests import tolerances
from tests.cerebras_jais.model.examples import jais_section
from tests.marks import needs_fsdp

ROOT = Path(__file__).parents[1]


def load(name, monkeypatch):
    """The module of a benchmark."""
    monkeypatch.syspath_prepend(ROOT)
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", ROOT / f"benchmarks/{name}.py")
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, benchmark)
    spec.loader.exec_module(benchmark)
    return benchmark


def test_a_checkpoint_of_the_conversion_benchmark_converts_and_verifies(tmp_path, monkeypatch):
    benchmark = load("conversion", monkeypatch)
    section, *rest = benchmark.PUBLISHED["jais-family-590m"]
    small = {"hidden_size": 64, "num_heads": 4, "num_hidden_layers": 2, "filter_size": 96, "vocab_size": 128}
    monkeypatch.setitem(benchmark.PUBLISHED, "small", ({**section, **small}, *rest))
    benchmark.write_checkpoint(tmp_path / "a.mdl", "small", zeros=False)
    for words in (["to-hf", tmp_path / "a.mdl", "--output", tmp_path / "release"], ["verify", tmp_path / "release"]):
        done = CliRunner().invoke(cli, list(map(str, words)))
        assert done.exit_code == 0, done.output


def test_a_token_reads_as_many_numbers_as_the_generation_benchmark_counts(tmp_path, monkeypatch):
    benchmark = load("generation", monkeypatch)
    for name, tied in (("tied", True), ("untied", False)):
        changes = {"hidden_size": 48, "vocab_size": 3000, "share_embedding_weights": tied}
        monkeypatch.setitem(benchmark.MODELS, name, ("tiny/jais.yaml", changes))
        model = load_release(benchmark.write_release(name, tmp_path / name))
        numbers = sum(parameter.numel() for parameter in model.parameters())
        assert benchmark.numbers_read(model.config) == numbers - (0 if tied else 48 * 3000)
        assert set(benchmark.measure_ours(tmp_path / name / name, "float32", 3, 1)) == {
            "one",
            "memory",
            "batch",
            "prefill",
        }


def test_the_models_of_the_transfer_benchmark_share_the_tokens_that_it_claims(tmp_path, monkeypatch):
    words = load("transfer", monkeypatch).write_models(tmp_path, shared=200, new=50, widths=(112, 128), own=20)
    done = CliRunner().invoke(cerebras_jais.cli.cli, ["vocab", "transfer", *words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["shared"], found["new_tokens"], found["whole_in_donor"]) == (200, 50, 50)
    cosines = {row["method"]: row["cosine"] for row in found["judged"]}
    assert cosines["projection"] > max(cosines["pieces"], cosines["mean"], cosines["random"])


def test_the_gpu_benchmark_measures_every_row_at_toy_size(monkeypatch, capsys):
    load("gpu", monkeypatch).main(["--device", "cpu", "--models", "jais-family-590m"])
    printed = capsys.readouterr().out
    assert "left out" not in printed
    for length, rows in ((64, 4), (128, 2), (256, 1)):
        for kind in ("plain, forward", "plain, step", "packed, forward", "packed, step"):
            assert f"jais-family-590m, {rows} x {length}, {kind}" in printed
    errors = [line.split() for line in printed.splitlines() if line.startswith(("  float32", "  bfloat16"))]
    assert len(errors) == 8
    for name, *_, out, q, k, v in errors:
        bound = tolerances.SAME_IN_FLOAT32 if name.startswith("float32") else tolerances.SAME_IN_BFLOAT16
        assert max(map(float, (out, q, k, v))) <= bound


def test_the_gpu_benchmark_says_what_its_budget_leaves_out(monkeypatch, capsys):
    load("gpu", monkeypatch).main(["--device", "cpu", "--budget", "0"])
    printed = capsys.readouterr().out
    assert printed.count("left out") == 4 + 24


def test_work_counts_the_products_of_a_model_and_the_visible_pairs(monkeypatch):
    work = load("training_work", monkeypatch)
    config = DecoderConfig.from_section(jais_section(hidden_size=48, filter_size=128, vocab_size=97))
    weights = sum(p.numel() for p in LanguageModel(config).parameters() if p.dim() == 2 and p.shape[-1] > 1)
    whole, packed = work.plain_rows(2, 100), work.packed_rows(2, 100, (30, 50))
    assert packed.documents == (30, 50, 20)
    for rows, pairs in ((whole, 100**2 / 2), (packed, (30**2 + 50**2 + 20**2) / 2)):
        scores_and_values = 2 * 2 * 48 * pairs * config.num_hidden_layers * 2
        assert work.flops_of_forward(config, rows) == 2 * weights * 200 + scores_and_values
    batch = work.token_batch(packed, 97)
    assert batch["attention_span"][1].tolist() == [*range(29, -1, -1), *range(49, -1, -1), *range(19, -1, -1)]


@pytest.mark.slow
def test_the_evaluation_benchmark_compares_the_same_scores(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", minversion="0.4.13")
    benchmark = load("evaluation", monkeypatch)
    section, *rest = benchmark.PUBLISHED["jais-family-590m"]
    small = {"hidden_size": 64, "num_heads": 4, "num_hidden_layers": 2, "filter_size": 96, "vocab_size": 700}
    monkeypatch.setitem(benchmark.PUBLISHED, "small", ({**section, **small}, *rest))
    release = benchmark.write_release(tmp_path, "small")
    theirs, ours = (benchmark.measured(name, release, 3) for name in ("hf", "ours"))
    assert ours["scores"] == pytest.approx(theirs["scores"], abs=benchmark.SCORE, rel=benchmark.SCORE_RELATIVE)
    assert ours["tokens"] < theirs["tokens"] / 3
    assert ours["rows"] < theirs["rows"] / 10


@pytest.mark.slow
@needs_fsdp
def test_no_process_of_a_divided_model_holds_the_whole_of_it(tmp_path):
    """The layers are small beside the model; with all of its weights and moments a process would be above the bound."""
    words = ["--model", "25m", "--length", "64", "--activations", "110e6", "--alone", "--continued-by", "2"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/processes.py"), *words, "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
