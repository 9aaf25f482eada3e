"""Data runs from end to end, on the bundled sample.

Contract: the same bytes for 1, 2 and 7 workers, for Slurm and for Ray; every document read is kept or counted under a
reason; the mixture is within one document of what is asked; no text comes twice; a run that was killed, or of which a
task failed, goes on to the same bytes, with no process left meanwhile; a folder in use is refused; another phase is
packed from the same store.
"""

import json
import os
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest

from cerebras_jais.data.recipe.runner import build as build_here
from cerebras_jais.data.recipe.settings import DataRun
from cerebras_jais.data.token_store import open_store
from cerebras_jais.data.tokenizer import load_tokenizer
from cerebras_jais.errors import UserError
from tests.attacks.data_kills import killed
from tests.cerebras_jais.data.recipe.runs import (
    build,
    command,
    contents,
    environment,
    settings,
    write_corpus,
    write_lines,
    write_tokenizer,
    write_yaml,
)
from tests.process import PATIENCE


def run_here(content):
    """Carry a run out in this process; its report."""
    return build_here(DataRun.model_validate(content), lambda stage, done: None, lambda note: None)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A corpus, a tokenizer, and a whole run of one worker in `whole`."""
    folder = tmp_path_factory.mktemp("recipe")
    write_corpus(folder / "corpus", copies=3)
    write_tokenizer(folder / "tokenizer")
    report = run_here(settings(folder / "corpus", folder / "tokenizer", folder / "whole"))
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def of(work, output, **changes):
    """The settings of the same run with another output."""
    return settings(work / "corpus", work / "tokenizer", output, **changes)


@pytest.mark.parametrize("workers", [2, pytest.param(7, marks=pytest.mark.slow)])
def test_the_bytes_do_not_depend_on_the_number_of_workers(work, tmp_path, workers):
    report = run_here(of(work, tmp_path / "out", workers=workers))
    assert contents(tmp_path / "out") == contents(work / "whole")
    assert report == json.loads((work / "report.json").read_text())


def test_every_document_is_kept_or_counted(work):
    report = json.loads((work / "report.json").read_text())
    for name, found in report["sources"].items():
        lines = sum(len(file.read_text().splitlines()) for file in (work / "corpus" / name).iterdir())
        assert found["read"] == lines == found["kept"] + sum(found["dropped"].values())
        assert found["dropped"]["duplicate"] >= 1
    shown = [json.loads(line) for line in (work / "whole" / "dropped" / "duplicate.jsonl").open()]
    assert len(shown) == sum(found["dropped"]["duplicate"] for found in report["sources"].values())


def test_the_mixture_is_what_was_asked_to_one_document(work):
    report = json.loads((work / "report.json").read_text())
    weights = {"ar": 490, "en": 980, "code": 196}
    longest = max(int(open_store(work / "whole" / "store" / name).lengths.max()) for name in weights)
    for phase in report["phases"].values():
        (folder,) = phase["folders"].values()
        total = sum(part["tokens"] for part in folder["mixture"])
        for part in folder["mixture"]:
            assert abs(part["tokens"] - total * weights[part["source"]] / sum(weights.values())) <= longest


def test_packed_documents_are_those_of_the_store_each_once(work):
    tokenizer = load_tokenizer(work / "tokenizer")
    kept = set()
    for name in ("ar", "en", "code"):
        store = open_store(work / "whole" / "store" / name)
        chosen = store.slices(np.load(work / "whole" / "store" / name / "kept.npy"))
        texts = [tokenizer.decode(ids[:-1].tolist()) for ids in chosen]
        assert len(set(texts)) == len(texts)
        kept |= {ids.tobytes() for ids in chosen}
    stream = []
    for file in sorted((work / "whole" / "long").glob("*.h5")):
        with h5py.File(file) as opened:
            rows = opened["data"][:]
        for row in rows:
            stream += row[0][row[1] == 1].tolist()
        stream.append(int(rows[-1][2][rows[-1][1] == 1][-1]))
    ends = [index for index, token in enumerate(stream) if token == 0]
    documents = [stream[start + 1 : end + 1] for start, end in zip([-1, *ends], ends, strict=False)]
    found = [np.asarray(document, np.uint32).tobytes() for document in documents]
    assert set(found) <= kept
    assert len(set(found)) == len(found)


def test_another_phase_is_packed_from_the_same_store(work, tmp_path):
    run_here(of(work, tmp_path / "out"))
    store = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "store").rglob("*.tokens")}
    phases = {
        "short": {"context": 128, "packing": "vsl"},
        "folders": {"context": 64, "mixture": "folders", "tokens": 3000},
    }
    report = run_here(of(work, tmp_path / "out", phases=phases))
    assert store == {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "store").rglob("*.tokens")}
    assert sorted(report["phases"]["folders"]["folders"]) == ["folders/ar", "folders/code", "folders/en"]
    packed = report["phases"]["folders"]
    tokens = {
        part["data_dir"]: part["weight"] * packed["folders"][part["data_dir"]]["fill"] for part in packed["mixture"]
    }
    assert tokens["folders/en"] / sum(tokens.values()) == pytest.approx(980 / 1666, abs=1e-4)
    with pytest.raises(UserError, match="was packed with other settings"):
        run_here(of(work, tmp_path / "out", phases={"short": {"context": 64}}))
    with pytest.raises(UserError, match="other sources, steps or tokenizer"):
        run_here(of(work, tmp_path / "out", steps={"deduplicate": {"exact": "off"}}))


def test_a_tokenizer_that_is_not_there_is_said_before_a_folder_is_made(work, tmp_path):
    with pytest.raises(UserError, match="none: no such file"):
        run_here(settings(work / "corpus", tmp_path / "none", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_source_repeated_more_often_than_allowed_is_refused_before_packing(work, tmp_path):
    phases = {"short": {"context": 128, "tokens": 10**6}}
    with pytest.raises(UserError, match=r"would be seen .* times, more than `repeats` 1 allows"):
        run_here(of(work, tmp_path / "out", phases=phases))
    phases["short"] |= {"repeats": 100, "tokens": 100_000}
    report = run_here(of(work, tmp_path / "out", phases=phases))
    assert report["phases"]["short"]["folders"]["short"]["mixture"][0]["tokens"] > 20_000


def test_duplicates_within_sources_stay_across_them(work, tmp_path):
    text = "the same words in both sources, and enough of them to have a signature of their own"
    for name in ("a", "b"):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": text}, {"text": text}, {"text": f"{text} more"}])
    sources = {name: {"path": str(tmp_path / f"{name}.jsonl"), "language": "en"} for name in ("a", "b")}
    steps, phases = {"deduplicate": {"exact": "within"}}, {"p": {"context": 32}}
    report = run_here(of(work, tmp_path / "within", sources=sources, steps=steps, phases=phases))
    assert {name: found["kept"] for name, found in report["sources"].items()} == {"a": 2, "b": 2}
    with pytest.raises(UserError, match="source b has no document"):
        run_here(of(work, tmp_path / "across", sources=sources, phases=phases))


def test_documents_of_an_evaluation_set_are_dropped(work, tmp_path):
    line = (work / "corpus" / "en" / "0.jsonl").read_text().splitlines()[0]
    (tmp_path / "eval.jsonl").write_text(line + "\n")
    steps = {"decontaminate": {"path": str(tmp_path / "eval.jsonl"), "words": 8}}
    report = run_here(of(work, tmp_path / "out", steps=steps))
    assert report["sources"]["en"]["dropped"]["contaminated"] >= 1
    assert "contaminated" not in report["sources"]["ar"]["dropped"]
    shown = [json.loads(dropped)["text"] for dropped in (tmp_path / "out" / "dropped" / "contaminated.jsonl").open()]
    assert json.loads(line)["text"] in shown


def test_broken_lines_stop_the_run_or_are_counted(work, tmp_path):
    entries = "".join(json.dumps({"text": f"words of line {number} in order"}) + "\n" for number in range(5))
    (tmp_path / "a.jsonl").write_text(entries + "broken\n" + '{"text": ""}\n')
    sources = {"a": {"path": str(tmp_path / "a.jsonl"), "language": "en"}}
    changes = {"sources": sources, "phases": {"p": {"context": 16}}, "steps": {}}
    with pytest.raises(UserError, match=r"a\.jsonl:6: not valid JSON .*on_error: count"):
        run_here(of(work, tmp_path / "stops", **changes))
    assert contents(tmp_path / "stops") == {}
    report = run_here(of(work, tmp_path / "counts", on_error="count", **changes))
    assert report["sources"]["a"]["dropped"] == {"empty": 1, "not-json": 1}
    assert report["sources"]["a"]["kept"] == 5


def test_a_full_disk_or_a_read_only_folder_is_one_line(work, tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises((UserError, OSError), match="taken"):
        run_here(of(work, tmp_path / "taken"))
    file = write_yaml(tmp_path / "run.yaml", of(work, tmp_path / "out"))
    limited = subprocess.run(
        ["bash", "-c", "ulimit -f 8; exec \"$@\"", "sh", *command("data", "build", file)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert limited.returncode == 2, limited.stderr
    assert limited.stderr.count("\n") == 1
    assert "file too large" in limited.stderr
    assert contents(tmp_path / "out").keys().isdisjoint({"report.json", "short/data_params.json"})
    assert build(file).returncode == 0
    assert contents(tmp_path / "out") == contents(work / "whole")


def test_a_second_start_on_a_running_folder_is_refused(work, tmp_path):
    file = write_yaml(tmp_path / "run.yaml", of(work, tmp_path / "out", workers=2))
    first = subprocess.Popen(command("data", "build", file), env=environment(), stdout=subprocess.DEVNULL)
    holder = tmp_path / "out" / "run" / "holder.json"
    while not holder.exists() and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    second = build(file)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(PATIENCE) == 0
    assert second.returncode == 2
    assert f"process {first.pid} runs in it since" in second.stderr


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on_to_the_same_bytes(work, tmp_path):
    file = write_yaml(tmp_path / "run.yaml", of(work, tmp_path / "out", workers=2))
    for seconds in (0.9, 1.2, 1.5):
        assert killed(command("data", "build", file), seconds, PATIENCE) == ""
    (tmp_path / "out" / "run").mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / ".report.json.0123abcd.tmp").touch()  # as a kill leaves it
    done = build(file)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(work / "whole")


SBATCH = """\
#!/usr/bin/env python3
# In place of sbatch: runs the tasks of an array at once, one behind another; a job behind one that failed is not run.
import json, os, re, subprocess, sys
folder = os.environ["STAND_IN"]
script = sys.argv[-1]
text = open(script).read()
state = os.path.join(folder, "jobs.json")
jobs = json.load(open(state)) if os.path.exists(state) else {}
number = str(len(jobs) + 1)
wanted = [word.rpartition(":")[2] for word in sys.argv if word.startswith("--dependency=afterok")]
bad = any(not jobs[job] for job in wanted)
last = int(re.search(r"--array=0-(\\d+)", text)[1])
export = dict(pair.split("=") for word in sys.argv if word.startswith("--export=ALL,") for pair in word.split(",")[1:])
for task in range(0 if bad else last + 1):
    environment = {**os.environ, **export, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_ID": number}
    if os.path.exists(os.path.join(folder, "fail")) and "data_prepare" in text and task == 1:
        bad = True
        continue
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    open(os.path.join(folder, f"log-{number}-{task}"), "w").write(done.stdout + done.stderr)
    bad = bad or done.returncode != 0
jobs[number] = not bad
json.dump(jobs, open(state, "w"))
print("Submitted batch job", number)
"""


@pytest.mark.slow
def test_slurm_runs_the_same_tasks_and_a_failed_one_is_submitted_again(work, tmp_path, monkeypatch):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(SBATCH)
    (programs / "sbatch").chmod(0o755)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(programs))
    slurm = {"slurm": {"partition": "cpu", "srun": False, "options": {"account": "mine"}}}
    (programs / "fail").touch()
    small = {"steps": {}, "phases": {"long": {"context": 256}}}
    run_here(of(work, tmp_path / "here", **small))
    content = of(work, tmp_path / "out", executor=slurm, **small)
    assert isinstance(run_here(content), list)
    assert not (tmp_path / "out" / "report.json").exists()
    script = (tmp_path / "out" / "run" / "stages" / "prepare" / "launch_script.slurm").read_text()
    assert "#SBATCH --account=mine" in script
    (programs / "fail").unlink()
    assert len(run_here(content)) == 7
    assert json.loads((tmp_path / "out" / "run" / "stages" / "prepare" / "ranks_to_run.json").read_text()) == [1]
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
    assert run_here(content) == json.loads((tmp_path / "here" / "report.json").read_text())


@pytest.mark.ray
@pytest.mark.slow
def test_ray_leaves_the_same_bytes(work, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    content = of(work, tmp_path / "out", workers=2, executor={"ray": {"memory_gb": 0.25}})
    report = run_here(content)
    assert contents(tmp_path / "out") == contents(work / "whole")
    assert report == json.loads((work / "report.json").read_text())
