"""Evaluations by the tasks of lm_eval: the suites, local data sets, results, and runs that were killed.

Contract: accuracies are those that lm_eval's own backend gets; a standard task runs unchanged from a local clone, with
no network; a run killed at ten moments leaves the same results, samples and hashes as one that was not, dates and
durations apart; random models have chance on letters; what is missing or unknown is said in one line, with how to
fetch it.
"""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import lm_eval
import pytest
from click.testing import CliRunner
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from cerebras_jais.chat.engine import Engine, open_engine
from cerebras_jais.chat.forward import Forward
from cerebras_jais.cli import cli
from cerebras_jais.endpoint.record import open_record
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.harness.lm import JaisLM
from cerebras_jais.evaluate.harness.run import RECORD, TASKS, load_tasks, model_digest, run
from tests.cerebras_jais.evaluate.harness.examples import write_release
from tests.cerebras_jais.model.examples import jais_section
from tests.chat_tokenizers import TOKENIZERS, VOCABULARY
from tests.checkpoint_convert.examples import random_model
from tests.process import PATIENCE

DATES = ("date", "total_evaluation_time_seconds")
COLUMNS = ["Subject", "Level", "Country", "Question", "Context", *(f"Option {n}" for n in range(1, 6)), "Answer Key"]


def squad_file(path):
    context = "تقع مدينة أبوظبي على جزيرة في الخليج العربي، وهي عاصمة دولة الإمارات العربية المتحدة."
    asked = [("ما عاصمة الإمارات؟", "أبوظبي"), ("أين تقع أبوظبي؟", "على جزيرة")]
    qas = [
        {"id": str(n), "question": q, "answers": [{"text": a, "answer_start": context.find(a)}]}
        for n, (q, a) in enumerate(asked)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    return path


@pytest.fixture
def index(monkeypatch):
    """Only the tasks of ArabicMMLU and this project's: the index of all of them takes ten seconds."""
    folder = Path(lm_eval.tasks.__file__).parent / "arabicmmlu"
    known = TaskManager(include_path=[str(folder), str(TASKS)], include_defaults=False)
    monkeypatch.setattr("cerebras_jais.evaluate.harness.run._known", lambda reading, include_defaults: known)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_release("jais", tmp_path_factory.mktemp("run"), context=512)


def evaluated(release, output, names, **options):
    output.mkdir(exist_ok=True)
    with open_record(output / RECORD) as record:
        return run(JaisLM(open_engine(release), record, "model"), load_tasks(names, **options), output)


def contents(output):
    """The results, dates and durations apart, and the lines of each task's samples."""
    (file,) = output.glob("results/results_*.json")
    results = {key: value for key, value in json.loads(file.read_text()).items() if key not in DATES}
    return results, {
        path.name.rsplit("_", 1)[0]: path.read_text() for path in sorted(output.glob("results/samples_*.jsonl"))
    }


def test_the_command_scores_the_demo_suite_and_reading(release, tmp_path):
    words = ["evaluate", str(release), "--suite", "demo", "--reading", str(squad_file(tmp_path / "s.json"))]
    done = CliRunner().invoke(cli, [*words, "--output", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    results, samples = contents(tmp_path / "out")
    assert set(results["results"]) == {"demo_ar", "demo_en", "reading"}
    assert {name: len(lines.splitlines()) for name, lines in samples.items()} == {
        "samples_demo_ar": 24,
        "samples_demo_en": 24,
        "samples_reading": 2,
    }
    shown = {tuple(line.split()[i] for i in (0, 2)) for line in done.output.splitlines()[1:]}
    assert shown == {("demo_ar", "acc"), ("demo_en", "acc"), ("reading", "exact_match"), ("reading", "f1")}
    assert results["config"]["model_dtype"] == "float32"
    assert not list((tmp_path / "out").glob(".*"))


def test_a_digest_is_of_the_config_and_tokenizer_that_are_given_too(tmp_path):
    names = ("c.mdl", "a.yaml", "b.yaml", "one/tokenizer.json", "two/tokenizer.json", "same/tokenizer.json")
    for file in (tmp_path / name for name in names):
        file.parent.mkdir(exist_ok=True)
        file.write_text("one" if file.parent.name == "same" else f"{file.parent.name} {file.stem}")
    (tmp_path / "one" / "tokenizer.json").write_text("one")
    model, a, b, *_ = (tmp_path / name for name in names)
    given = [(None, None), (None, a), (None, b), (tmp_path / "one", a), (tmp_path / "two", a)]
    digests = [model_digest(model, tokenizer=tokenizer, config=config) for tokenizer, config in given]
    assert len(set(digests)) == len(given)
    assert model_digest(model, tokenizer=tmp_path / "same", config=a) == digests[3]  # by content, wherever it is


def test_accuracies_and_samples_are_those_of_the_hf_backend(release, tmp_path):
    from lm_eval.models.huggingface import HFLM

    ours = evaluated(release, tmp_path / "out", ["demo_ar", "demo_en"])
    _, samples = contents(tmp_path / "out")
    lm = HFLM(pretrained=str(release), trust_remote_code=True, dtype="float32", device="cpu", batch_size=8)
    theirs = evaluate(lm, load_tasks(["demo_ar", "demo_en"]).loaded)
    assert ours["results"] == theirs["results"]
    for task, wanted in theirs["samples"].items():
        found = [json.loads(line) for line in samples[f"samples_{task}"].splitlines()]
        assert [one["prompt_hash"] for one in found] == [one["prompt_hash"] for one in wanted]
        assert [one["acc"] for one in found] == [one["acc"] for one in wanted]


@pytest.mark.slow
def test_a_run_that_was_killed_ten_times_leaves_the_same_results(release, tmp_path):
    squad = squad_file(tmp_path / "s.json")
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(release), str(squad), str(tmp_path)]
    root = Path(__file__).parents[4]
    done = subprocess.run(command, cwd=root, env=None, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kills: 10" in done.stdout
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_standard_task_runs_from_a_local_clone(release, tmp_path, monkeypatch, index):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    clone = tmp_path / "data" / "MBZUAI" / "ArabicMMLU"
    clone.mkdir(parents=True)
    splits = [{"split": split, "path": "biology.csv"} for split in ("dev", "test")]
    header = {"config_name": "Biology (High School)", "data_files": splits}
    (clone / "README.md").write_text(f"---\nconfigs: {json.dumps([header])}\n---\n")
    with open(clone / "biology.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        for number in range(4):
            options = {f"Option {n}": f"خيار {n}" for n in range(1, 5)}
            named = {"Subject": "Biology", "Level": "High", "Country": "UAE", "Question": f"سؤال {number}؟"}
            rows.writerow({**named, "Context": "", **options, "Option 5": "", "Answer Key": number})
    name = "arabicmmlu_biology_high_school"
    results = evaluated(release, tmp_path / "out", [name], data_root=tmp_path / "data")
    assert results["n-samples"][name]["effective"] == 4
    assert results["results"][name]["acc,none"] in (0, 0.25, 0.5, 0.75, 1)
    header["data_files"] = splits[1:]
    (clone / "README.md").write_text(f"---\nconfigs: {json.dumps([header])}\n---\n")
    with pytest.raises(UserError, match="'dev'"):
        load_tasks([name], data_root=tmp_path / "data")


@pytest.mark.slow
def test_random_models_have_chance_on_letters_in_the_mean_of_20_seeds(tmp_path):
    section, tokenizer = jais_section(vocab_size=VOCABULARY, max_position_embeddings=512), TOKENIZERS["jais"]()
    plan, accuracies = load_tasks(["demo_ar", "demo_en"]), []
    for seed in range(20):
        engine = Engine("random", Forward(random_model(section, seed)), tokenizer, (0,))
        with open_record(tmp_path / f"{seed}.jsonl") as record:
            found = evaluate(JaisLM(engine, record, str(seed)), plan.loaded)["results"]
        accuracies += [found[task]["acc,none"] for task in ("demo_ar", "demo_en")]
        for task in plan.loaded["tasks"].values():
            task._instances = None
    assert sum(accuracies) / len(accuracies) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("language", ["ar", "en"])
def test_the_questions_have_four_options_and_answers_spread_evenly(language):
    lines = (TASKS / f"demo_{language}.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in lines]
    assert len({question["question"] for question in questions}) == len(questions) == 24
    assert all(len(set(question["choices"])) == 4 for question in questions)
    assert Counter(question["answer"] for question in questions) == {0: 6, 1: 6, 2: 6, 3: 6}


def test_chat_prompts_keep_the_space_before_an_option(tmp_path):
    release = write_release("jais", tmp_path, chat=True, context=1024)
    with open_record(tmp_path / "record.jsonl") as record:
        lm = JaisLM(open_engine(release), record, "model", chat=True)
        results = run(lm, load_tasks(["demo_ar"]), tmp_path, limit=2)
    assert results["chat_template_sha"]
    (sample, _) = contents(tmp_path)[1]["samples_demo_ar"].splitlines()
    asked = json.loads(sample)["arguments"]["gen_args_0"]
    assert asked["arg_0"].endswith("### Response :")
    assert len(lm.record) == 8
    plain = lm._encode_pair(asked["arg_0"], " أ")
    assert lm._key("score", (*plain[0], *plain[1]), len(plain[1])) in keys(tmp_path / "record.jsonl")


def keys(file):
    return {json.loads(line)["key"] for line in file.read_text().splitlines()}


@pytest.mark.parametrize("task", ["madinahqa", "arabicmmlu_biology_high_school"])
def test_a_missing_data_set_is_said_with_the_command_that_fetches_it(tmp_path, task, index):
    with pytest.raises(UserError, match=r"hf download --repo-type dataset MBZUAI/\w+ --local-dir DIR/MBZUAI/\w+"):
        load_tasks([task], data_root=tmp_path)


def test_what_cannot_be_evaluated_is_refused_in_one_line(release, tmp_path):
    def refused(*words):
        with pytest.raises(UserError) as error:
            CliRunner().invoke(
                cli, ["evaluate", str(release), *words, "--output", str(tmp_path / "o")], catch_exceptions=False
            )
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "nothing to evaluate on" in refused()
    assert "is no folder" in refused("--suite", "demo", "--data-root", str(tmp_path / "none"))
    assert "base model" in refused("--suite", "demo", "--chat-template")
    assert "no file" in refused("--tasks", "reading")
    assert "give cpu" in refused("--suite", "demo", "--device", "nothing")
    assert "give cpu" in refused("--suite", "demo", "--device", "meta")
    (tmp_path / "bad.json").write_text("{}")
    assert "SQuAD" in refused("--reading", str(tmp_path / "bad.json"))
    assert not (tmp_path / "o").exists()


def test_an_unknown_task_is_refused(index):
    with pytest.raises(UserError, match="task 'nothing' is not known"):
        load_tasks(["nothing"])
