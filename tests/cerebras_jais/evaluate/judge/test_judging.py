"""Judgements through an endpoint: both orders, nothing asked twice, whatever the endpoint does and however it ends."""

import json
import signal
import subprocess
import sys
import time

import pytest

from cerebras_jais.endpoint.client import Endpoint, EndpointError
from cerebras_jais.errors import UserError
from cerebras_jais.evaluate.judge.asking import RECORD, estimate, judge, judge_prompts
from cerebras_jais.evaluate.judge.judgements import JUDGEMENTS, outcome_of
from cerebras_jais.evaluate.judge.report import compare, rate
from tests.cerebras_jais.evaluate.judge.judges import fair, first, judged, judging, qualities, run, write_answers
from tests.process import PATIENCE
from tests.scripted_endpoint import asked_in, completion, failure, scripted, stormy

A = [f"I know {number % 13} things." for number in range(30)]
B = [f"We are sure of {number % 5} things, and of nothing else." for number in range(30)]


@pytest.fixture
def files(tmp_path):
    return write_answers(tmp_path / "a.jsonl", "alpha", A), write_answers(tmp_path / "b.jsonl", "beta", B)


def expected(x, y):
    return [("win" if i % x > i % y else "loss" if i % x < i % y else "tie") for i in range(30)]


def test_each_pair_is_judged_in_both_orders_with_fastchats_prompt(files, tmp_path):
    with scripted(fair) as served:
        found = judged(served.url, tmp_path / "out", "pairwise", *files)
    assert [outcome_of(judgement) for judgement in found] == expected(13, 5)
    assert sorted(tuple(qualities(asked_in(body))) for body in served.bodies) == sorted(
        pair for i in range(30) for pair in ((i % 13, i % 5), (i % 5, i % 13))
    )
    body = served.bodies[0]
    system, user = body["messages"]
    assert system == {"role": "system", "content": judge_prompts()["pair-v2"]["system_prompt"]}
    assert user["role"] == "user" and user["content"].startswith("[User Question]\n")
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, 2048)


def test_exchanged_answers_give_the_mirrored_report_and_ask_nothing(files, tmp_path):
    with scripted(fair) as served:
        one = compare(judged(served.url, tmp_path / "out", "pairwise", *files))
        before = len(served.bodies)
        other = compare(judged(served.url, tmp_path / "out", "pairwise", *files[::-1]))
        assert len(served.bodies) == before == 60
    assert one.outcomes["win"] > one.outcomes["loss"] > 0 and one.outcomes["tie"] > 0
    swapped = {"win": "loss", "loss": "win"}
    assert other.outcomes == {swapped.get(name, name): count for name, count in one.outcomes.items()} | {}
    assert (other.win_rate, other.loss_rate) == (one.loss_rate, one.win_rate)
    assert other.adjusted == pytest.approx(1 - one.adjusted, abs=1e-12)
    assert other.interval == pytest.approx((1 - one.interval[1], 1 - one.interval[0]), abs=1e-9)
    assert (other.sign_test, other.first_preferred) == (one.sign_test, one.first_preferred)
    assert other.sides == one.sides[::-1]
    assert other.categories == {name: counts[::-1] for name, counts in one.categories.items()}
    assert (one.better, other.better) == (0, 1)


def test_a_judge_that_prefers_what_stands_first_gives_no_win(files, tmp_path):
    with scripted(first) as served:
        found = compare(judged(served.url, tmp_path / "out", "pairwise", *files))
    assert found.outcomes == {"win": 0, "loss": 0, "tie": 0, "inconsistent": 30, "unreadable": 0}
    assert (found.win_rate, found.loss_rate, found.adjusted, found.first_preferred) == (0, 0, 0.5, 1)
    assert found.better is None


@pytest.mark.parametrize("kind", ["pairwise", "single"])
def test_a_stormy_and_slow_endpoint_gives_the_record_of_a_calm_one(files, tmp_path, kind):
    chosen = files if kind == "pairwise" else files[:1]

    def slow_and_stormy(body, attempt):
        time.sleep(0.002 * (len(asked_in(body)) % 5))
        return stormy(body, attempt, fair)

    with scripted(fair) as served:
        judged(served.url, tmp_path / "calm", kind, *chosen)
    with scripted(slow_and_stormy) as served:
        judged(served.url, tmp_path / "storm", kind, *chosen, concurrency=7)
        assert len(served.bodies) > len(set(served.asked()))
        assert 1 < served.most <= 7
    assert (tmp_path / "storm" / JUDGEMENTS).read_bytes() == (tmp_path / "calm" / JUDGEMENTS).read_bytes()
    lines = [sorted((tmp_path / folder / RECORD).read_bytes().splitlines()) for folder in ("calm", "storm")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("ends", [(7, 40), pytest.param(tuple(range(5, 60, 12)), marks=pytest.mark.slow)])
def test_a_killed_command_goes_on_and_leaves_the_same_judgements(files, tmp_path, ends):
    with scripted(fair) as served:
        judged(served.url, tmp_path / "whole", "pairwise", *files)
    out, process, end_at = tmp_path / "out", None, 0

    def script(body, attempt):
        if len(served.bodies) >= end_at:
            process.kill()
        return fair(body)

    with scripted(script) as served:
        words = ["pairwise", *files, "--base-url", served.url, "--model", "m", "--output", out, "--concurrency", 2]
        command = [sys.executable, "-m", "cerebras_jais.cli", "judge", *map(str, words)]
        for end_at in ends:  # noqa: B007  # the script reads it
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            assert process.wait(PATIENCE) == -signal.SIGKILL
            assert not (out / JUDGEMENTS).exists()
        end_at = 10_000
        assert run("judge", *words).exit_code == 0
        assert len(served.bodies) <= 60 + 2 * len(ends)  # what was under way at a kill is asked again
        before = len(served.bodies)
        assert run("judge", *words).exit_code == 0
        assert len(served.bodies) == before
    assert (out / JUDGEMENTS).read_bytes() == (tmp_path / "whole" / JUDGEMENTS).read_bytes()
    keys = [json.loads(line)["key"] for line in (out / RECORD).read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == 60


def test_what_is_not_readable_is_counted_and_not_dropped(files, tmp_path):
    replies = {0: completion("no idea"), 1: completion("[[A]] or [[B]]"), 2: completion("[[B]] beca", "length")}
    replies[3] = failure(400, "too long")

    def script(body, attempt):
        return replies.get(qualities(asked_in(body))[0]) or fair(body)

    with scripted(script) as served:
        found = compare(judged(served.url, tmp_path / "p", "pairwise", *files))
        rated = rate(judged(served.url, tmp_path / "s", "single", files[0]))
    spoiled = [i for i in range(30) if i % 13 < 4 or i % 5 < 4]
    assert found.outcomes["unreadable"] == len(spoiled) and sum(found.outcomes.values()) == found.count == 30
    games = [n for i in range(30) for n in (i % 13, i % 5)]
    assert found.unreadable == {
        "no single verdict": games.count(0) + games.count(1),
        "cut at the most tokens": games.count(2),
        "refused by the endpoint": games.count(3),
    }
    readable = [i % 13 for i in range(30) if 3 < i % 13 <= 10]
    assert rated.mean == pytest.approx(sum(readable) / len(readable))
    missing = 30 - len(readable)  # 11 and 12 among them, which are above 10
    assert sum(rated.unreadable.values()) == missing
    assert rated.bounds == pytest.approx(((sum(readable) + missing) / 30, (sum(readable) + 10 * missing) / 30))


def test_questions_of_coding_and_mathematics_are_judged_beside_a_reference_that_is_given(tmp_path):
    texts = [f"It is {number % 10}." for number in range(80)]
    a = write_answers(tmp_path / "a.jsonl", "alpha", texts)
    reference = tmp_path / "reference.jsonl"
    entry = {"question_id": 61, "choices": [{"turns": ["int main() {}"]}]}
    reference.write_text(json.dumps(entry) + "\n", encoding="utf-8")
    with scripted(fair) as served:
        words = ("judge", "single", a, "--base-url", served.url, "--model", "m")
        done = run(*words, "--output", tmp_path / "out", "--reference", reference)
        assert "9 questions of math, reasoning, coding judged without the reference" in done.output
    shown = [
        asked_in(body) for body in served.bodies if "[The Start of Reference Answer]\nint main() {}" in asked_in(body)
    ]
    assert len(shown) == 1
    arabic = write_answers(tmp_path / "ar.jsonl", "alpha", texts, "vicuna-ar")
    assert judging("single", arabic).without_reference() == 0


def test_the_estimate_counts_what_is_left_before_anything_is_asked(files, tmp_path):
    with scripted(fair) as served:
        words = ("judge", "pairwise", *files, "--base-url", served.url, "--model", "m", "--output", tmp_path / "out")
        done = run(*words, "--dry-run", "--price-in", "10", "--price-out", "100")
        assert not served.bodies and not (tmp_path / "out").exists()
        asked = judging("pairwise", *files)
        found = estimate(asked, tmp_path / "out")
        assert (found.requests, found.left, found.answer_tokens) == (60, 60, 60 * 250)
        letters = sum(len(question.body.decode()) for row in asked.asked() for question in row)
        assert found.question_tokens == pytest.approx(letters / 4, abs=60)
        price = found.question_tokens * 10e-6 + found.answer_tokens * 100e-6
        assert f"about {found.question_tokens} tokens of questions, 15000 of judgements" in done.stderr
        assert f"at the prices given: about {price:.2f}" in done.stderr
        run(*words)
        assert estimate(asked, tmp_path / "out").left == 0


def test_fastchats_counting_stands_beside_ours(files, tmp_path):
    def script(body, attempt):
        a, _ = qualities(asked_in(body))
        return completion("Not [[A]] but [[B]]" if a == 0 else "nothing" if a == 1 else fair(body).content and "[[C]]")

    with scripted(script) as served:
        words = ("--base-url", served.url, "--model", "m", "--output", tmp_path / "out", "--fastchat", "--json")
        found = json.loads(run("judge", "pairwise", *files, *words).stdout)
    pairs = [(i % 13, i % 5) for i in range(30)]
    left_out = sum(1 in pair for pair in pairs)
    tie = sum(1 not in pair for pair in pairs)  # a 0 in either place is read as A there, and C in the other order
    assert found["fastchat"] == {"win": 0, "loss": 0, "tie": tie, "left_out": left_out}
    assert found["unreadable"] == {"no single verdict": sum(a in (0, 1) for pair in pairs for a in pair)}


def test_a_report_is_printed_again_from_its_folder_alone(files, tmp_path):
    with scripted(fair) as served:
        words = ("judge", "pairwise", *files, "--base-url", served.url, "--model", "m", "--output", tmp_path / "out")
        said = run(*words).stdout
        again = run("judge", "report", tmp_path / "out").stdout
    assert said.startswith(again) and "alpha is preferred to beta: the win rate of alpha is" in again
    assert "30 questions of vicuna-en, judged by m in both orders" in again
    line = json.loads((tmp_path / "out" / JUDGEMENTS).read_text(encoding="utf-8").splitlines()[12])
    assert (line["verdict"], line["words"], line["languages"]) == ("win", [4, 10], ["en", "en"])


def refused(*words):
    with pytest.raises(UserError) as error:
        run("judge", *words)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_endpoint_that_is_of_no_use_is_one_line(files, tmp_path, monkeypatch):
    out = ("--output", tmp_path / "out")
    monkeypatch.delenv("NO_KEY", raising=False)
    assert "cannot be reached" in refused(
        "pairwise", *files, "--base-url", "http://127.0.0.1:9/v1", "--model", "m", *out
    )
    assert "is no base URL" in refused("pairwise", *files, "--base-url", "127.0.0.1", "--model", "m", *out)
    done = run("judge", "single", files[0], "--model", "m")
    assert done.exit_code == 2 and "Missing option '--base-url'" in done.output
    with scripted(lambda *_: failure(401, "bad key")) as served:
        words = ("pairwise", *files, "--base-url", served.url, "--model", "m", *out)
        assert "refuses the key" in refused(*words)
        assert "NO_KEY is not set" in refused(*words, "--key-variable", "NO_KEY")
    assert not (tmp_path / "out" / JUDGEMENTS).exists()
    with scripted(lambda *_: failure(400, "no such option")) as served, pytest.raises(EndpointError) as error:
        judge(judging("single", files[0]), Endpoint(served.url), tmp_path / "out", 2, lambda _: None)
    assert "no such option), and every other" in str(error.value)


def test_answers_that_do_not_belong_together_are_one_line(files, tmp_path):
    other = write_answers(tmp_path / "other.jsonl", "gamma", A, "vicuna-ar")
    fewer = write_answers(tmp_path / "fewer.jsonl", "delta", A[:29])
    to = ("--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    assert "answer different questions (vicuna-en, vicuna-ar; question 1" in refused("pairwise", files[0], other, *to)
    assert "question 30 is the first that differs" in refused("pairwise", files[0], fewer, *to)
    assert "no such file" in refused("single", tmp_path / "none.jsonl", *to)
    assert "are both of 'alpha', and have one name" in refused("pairwise", files[0], files[0], *to)
    with scripted(fair) as served:
        judged(served.url, tmp_path / "out", "pairwise", *files)
        words = ("--base-url", served.url, "--model", "m", "--output", tmp_path / "out")
        assert "holds the judgements of alpha and beta on vicuna-en" in refused("single", files[0], *words)
        words = ("--base-url", served.url, "--model", "another judge", "--output", tmp_path / "out")
        assert "choose another --output" in refused("pairwise", *files, *words)
    assert "has no judgements.jsonl" in refused("report", tmp_path)
    assert "model is no option" in refused("single", files[0], *to, "--options", '{"model": "x"}')
    assert "must be a JSON object" in refused("single", files[0], *to, "--options", "[1]")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"question_id": 1, "turns": ["x"]}', "answers.jsonl:1: is no answer"),
        ('{"text": "x"}', 'answers.jsonl:1: "question_id" must be'),
        ("[]", "answers.jsonl:1: expected an object"),
        ("{", "answers.jsonl:1: not valid JSON"),
        ("", "has no answers"),
        (
            '{"question_id": 1, "turns": ["x"], "questions": "q", "model": "m", "answer": "a"}\n' * 2,
            ":2: answers question 1",
        ),
    ],
)
def test_a_file_that_holds_no_answers_is_named_with_its_line(tmp_path, content, said):
    file = tmp_path / "answers.jsonl"
    file.write_text(content, encoding="utf-8")
    assert said in refused("single", file, "--base-url", "http://127.0.0.1:9/v1", "--model", "m")


def test_damaged_judgements_are_named_with_their_line(tmp_path):
    for content in ('{"kind": "single"}', '{"said": 5}', "{", ""):
        (tmp_path / JUDGEMENTS).write_text(content, encoding="utf-8")
        assert JUDGEMENTS in refused("report", tmp_path)
