"""Contract: the answers to a source's documents become a source, in its order, whatever the endpoint does and however
often the command is killed; nothing is asked without a word, and nothing twice."""

import json
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from cerebras_jais.cli import cli
from cerebras_jais.data.documents import DataError, read_documents
from cerebras_jais.data.recipe.runner import build
from cerebras_jais.data.recipe.settings import read_settings
from cerebras_jais.data.synthetic.rewrite import estimate, prompt_hash, rewrite
from cerebras_jais.data.synthetic.settings import read_rewriting
from cerebras_jais.data.tokenizer import load_tokenizer
from cerebras_jais.encoding import encode_texts
from cerebras_jais.endpoint.client import Endpoint, EndpointError
from cerebras_jais.errors import TERMINATED
from tests.cerebras_jais.data.recipe.runs import command, write_lines, write_tokenizer, write_yaml
from tests.process import PATIENCE, wait_until
from tests.scripted_endpoint import asked_in, completion, failure, mirrored, scripted, stormy

TEXTS = [f"Document {number}.\nIt has {'many ' * (number % 5)}words." for number in range(30)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "t")


@pytest.fixture
def yaml_of(tmp_path, tokenizer, monkeypatch):
    """Writes the YAML of a rewriting of two files of TEXTS, with changes; the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "english" / "a.jsonl", [{"text": text} for text in TEXTS[:20]])
    write_lines(tmp_path / "english" / "b.jsonl", [{"text": text} for text in [*TEXTS[20:], "", " \n"]])

    def written(url, concurrency=3, **changes):
        endpoint = {"url": url, "model": "m", "concurrency": concurrency}
        return write_yaml(
            tmp_path / "rewrite.yaml",
            {
                "source": {"path": "english", "language": "en"},
                "endpoint": endpoint,
                "prompt": "{text}",
                "tokenizer": str(tokenizer),
                "output": "arabic.jsonl",
                **changes,
            },
        )

    return written


def rewritten(file):
    """Carry a YAML out without waits between tries; the lines of its output."""
    run = read_rewriting(file)
    estimate(run, print)
    rewrite(run, Endpoint(run.endpoint.url, backoff=0.001), lambda _: None)
    return lines()


def lines():
    return [json.loads(line) for line in Path("arabic.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize("concurrency", [1, 2, 7])
def test_each_document_is_there_once_in_the_order_of_the_source(yaml_of, concurrency):
    with scripted(stormy) as served:
        found = rewritten(yaml_of(served.url, concurrency))
        before = len(served.bodies)
        assert rewritten(yaml_of(served.url, concurrency)) == found
        assert len(served.bodies) == before
    run = read_rewriting(Path("rewrite.yaml"))
    places = [*(f"english/a.jsonl:{line}" for line in range(1, 21)), *(f"english/b.jsonl:{n}" for n in range(1, 11))]
    assert found == [
        {
            "text": text[::-1],
            "language": "ar",
            "provenance": {"model": "m", "prompt": prompt_hash(run), "source": place},
        }
        for text, place in zip(TEXTS, places, strict=True)
    ]
    read = list(read_documents("arabic.jsonl"))
    assert [(document.text, document.language) for document in read] == [(text[::-1], "ar") for text in TEXTS]


def test_without_a_word_nothing_is_asked_or_written_and_the_estimate_counts_what_is_left(yaml_of, tokenizer):
    encoder = load_tokenizer(tokenizer)

    def tokens(texts):
        return sum(map(len, encode_texts(encoder, texts)))

    with scripted() as served:
        file = yaml_of(served.url, prompt="Say: {text}", answer_tokens=2, system="Be brief.")
        around = tokens(["Say: ", "Be brief."])
        before = sorted(Path().rglob("*"))
        result = CliRunner().invoke(cli, ["data", "rewrite", str(file)])
        assert sorted(Path().rglob("*")) == before
        assert not served.bodies
        whole = tokens(TEXTS)
        assert f"30 documents, 30 to ask: about {whole + 30 * around} tokens of questions, {2 * whole}" in result.output
        assert "nothing was asked; give --yes" in result.output
        result = CliRunner().invoke(cli, ["data", "rewrite", str(file), "--yes"])
        assert "arabic.jsonl: 30 documents\n" in result.output
        assert [message["role"] for message in served.bodies[0]["messages"]] == ["system", "user"]
        write_lines(Path("english/c.jsonl"), [{"text": "One more."}, {"text": "One more."}, {"text": TEXTS[0]}])
        found = estimate(read_rewriting(file), print)
        assert (found.documents, found.left) == (33, 1)
        assert found.question_tokens == tokens(["One more."]) + around


def test_equal_documents_are_asked_once_and_written_each_and_a_new_prompt_asks_anew(yaml_of):
    with scripted() as served:
        write_lines(Path("english/c.jsonl"), [{"text": TEXTS[3]}])
        found = rewritten(yaml_of(served.url))
        assert len(found) == 31
        assert found[30] == {**found[3], "provenance": {**found[3]["provenance"], "source": "english/c.jsonl:1"}}
        assert len(served.bodies) == 30
        rewritten(yaml_of(served.url, prompt="Other: {text}"))
        assert len(served.bodies) == 60


@pytest.mark.parametrize("ends", [(4, 17), pytest.param(tuple(range(2, 30, 3)), marks=pytest.mark.slow)])
def test_a_killed_command_goes_on_where_it_was_and_leaves_the_same_file(yaml_of, ends):
    with scripted() as served:
        expected = rewritten(yaml_of(served.url))
    for file in ("arabic.jsonl", "arabic.jsonl.asked"):
        Path(file).unlink()
    process, end_at = None, 0

    def script(body, attempt):
        if len(served.bodies) >= end_at:
            process.kill()  # does nothing to one that has ended
        return mirrored(body, attempt)

    with scripted(script) as served:
        file = yaml_of(served.url, 2)
        for end_at in ends:  # noqa: B007  # the script reads it
            process = subprocess.Popen(command("data", "rewrite", file, "--yes"), stdout=subprocess.DEVNULL)
            assert process.wait(PATIENCE) == -signal.SIGKILL
            assert not Path("arabic.jsonl").exists()
        end_at = 1000
        Path(".arabic.jsonl.0a1b2c3d.tmp").write_text("left by a kill in the midst of writing")
        recorded = {json.loads(line)["key"] for line in Path("arabic.jsonl.asked").read_bytes().split(b"\n")[:-1]}
        before = len(served.bodies)
        assert rewritten(file) == expected
        assert len(served.bodies) - before == 30 - len(recorded)
        # What was under way at a kill is the only thing asked again.
        assert len(served.bodies) <= 30 + 2 * len(ends)
        assert not list(Path().glob(".*.tmp"))


def test_a_command_that_is_told_to_end_waits_for_no_answer(yaml_of):
    asked, over = threading.Event(), threading.Event()

    def silent(body, attempt):
        asked.set()
        over.wait()
        return mirrored(body, attempt)

    with scripted(silent) as served:
        words = command("data", "rewrite", yaml_of(served.url), "--yes")
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(asked.is_set, "the first question")
        process.terminate()
        said = process.communicate(timeout=PATIENCE)[1]
        over.set()
    assert process.returncode == TERMINATED
    assert said == "terminated\n"
    assert not Path("arabic.jsonl").exists()


def test_a_refused_document_ends_the_command_with_its_place_or_is_left_out(yaml_of):
    def script(body, attempt):
        return failure(400, "too long") if asked_in(body) == TEXTS[4] else mirrored(body, attempt)

    with scripted(script) as served:
        with pytest.raises(EndpointError, match=r"english/a.jsonl:5: .*too long"):
            rewritten(yaml_of(served.url))
        assert not Path("arabic.jsonl").exists()
        assert len(rewritten(yaml_of(served.url, on_error="count"))) == 29
        result = CliRunner().invoke(cli, ["data", "rewrite", "rewrite.yaml", "--yes"])
        assert "left out: 1, refused by the endpoint" in result.output
        assert served.asked()[TEXTS[4]] == 2


def test_answers_that_are_no_documents_are_left_out_by_reason(yaml_of):
    answers = {TEXTS[0]: completion("half a", "length"), TEXTS[1]: completion(" "), TEXTS[2]: completion("x", "filter")}
    with scripted(lambda body, attempt: answers.get(asked_in(body)) or mirrored(body, attempt)) as served:
        result = CliRunner().invoke(cli, ["data", "rewrite", str(yaml_of(served.url)), "--yes"])
    assert "arabic.jsonl: 27 documents" in result.output
    for reason in ("1, cut at the most tokens of an answer", "1, empty answer", "1, ended with 'filter'"):
        assert f"left out: {reason}\n" in result.output


def test_what_cannot_be_read_stops_or_is_counted(yaml_of):
    Path("english/a.jsonl").write_text('{"text": "good"}\n{"other": 1}\n', encoding="utf-8")
    with scripted() as served:
        with pytest.raises(DataError, match=r"a.jsonl:2: .*'text' is missing.*on_error: count"):
            rewritten(yaml_of(served.url))
        assert not served.bodies
        assert len(rewritten(yaml_of(served.url, on_error="count"))) == 11


def test_a_file_that_something_else_made_is_not_replaced(yaml_of):
    Path("arabic.jsonl").write_text("mine")
    with pytest.raises(DataError, match="was not made by this"):
        rewritten(yaml_of("http://127.0.0.1:1/v1"))
    assert Path("arabic.jsonl").read_text() == "mine"


def test_an_output_within_the_source_and_a_source_without_text_are_refused(yaml_of):
    with pytest.raises(DataError, match="lies in the source"):
        rewritten(yaml_of("http://127.0.0.1:1/v1", output="english/arabic.jsonl"))
    write_lines(Path("empty.jsonl"), [{"text": " "}])
    with pytest.raises(DataError, match=r"empty.jsonl: every document of the source is empty"):
        rewritten(yaml_of("http://127.0.0.1:1/v1", source={"path": "empty.jsonl"}))


def test_an_endpoint_that_is_of_no_use_is_one_line(yaml_of, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with scripted(lambda *_: failure(401, "bad key")) as served:
        for endpoint, said in (
            ({"url": served.url, "model": "m"}, "refuses the key"),
            ({"url": served.url, "model": "m", "key_variable": "NO_KEY"}, "NO_KEY is not set"),
        ):
            result = CliRunner().invoke(cli, ["data", "rewrite", str(yaml_of("", endpoint=endpoint)), "--yes"])
            assert isinstance(result.exception, EndpointError)
            assert said in str(result.exception)
            assert not Path("arabic.jsonl").exists()


@pytest.mark.slow
def test_data_build_reads_the_answers_like_any_source(yaml_of, tokenizer):
    with scripted() as served:
        rewritten(yaml_of(served.url))
    file = write_yaml(
        Path("build.yaml"),
        {
            "sources": {"translated": {"path": "arabic.jsonl", "language_field": "language"}},
            "tokenizer": str(tokenizer),
            "phases": {"p": {"context": 64}},
            "output": "built",
            "workers": 1,
        },
    )
    report = build(read_settings(file), lambda *_: None, print)
    assert report["sources"]["translated"]["kept"] == 30
    assert Path("built/p/data_params.json").exists()
