"""A real server, llama.cpp's, answers questions and judges the answers, end to end.

The model is a tiny one of ours with random weights as GGUF. A grammar, an option of the server, has it write a verdict
and nothing else; without it no verdict is readable, and each is counted.
"""

import json
import os

import pytest

from cerebras_jais.evaluate.judge.asking import RECORD
from cerebras_jais.evaluate.judge.judgements import read_judgements
from cerebras_jais.evaluate.judge.report import compare, rate
from checkpoint_convert.convert import convert_to_hf
from checkpoint_convert.llamacpp.convert import convert_to_gguf
from tests.cerebras_jais.evaluate.judge.judges import run
from tests.cerebras_jais.model.examples import jais_section
from tests.chat_tokenizers import VOCABULARY, write_tokenizer
from tests.checkpoint_convert.examples import random_model, state_of, write_checkpoint

try:
    import xllamacpp
except ImportError as error:
    MISSING = str(error)
else:
    MISSING = ""
pytestmark = [pytest.mark.llamacpp, pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
QUESTIONS = [
    {"question_id": n, "category": "generic", "turns": [text]} for n, text in enumerate(("ما هو البحر؟", "Why?"))
]
GRAMMARS = {"pairwise": 'root ::= "[[" [ABC] "]]"', "single": 'root ::= "Rating: [[" [1-9] "]]"'}


def options(kind=None):
    return json.dumps(
        {"temperature": 0, "max_tokens": 40 if kind else 4} | ({"grammar": GRAMMARS[kind]} if kind else {})
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    section = jais_section(vocab_size=VOCABULARY, max_position_embeddings=4096)
    checkpoint = write_checkpoint(folder / "c.mdl", section, state_of(random_model(section)))
    tokenizer = write_tokenizer("jais", folder / "tokenizer")
    convert_to_hf(checkpoint, folder / "release", tokenizer=tokenizer, chat=True)
    convert_to_gguf(folder / "release", folder / "m.gguf", type_="f32")
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "m.gguf")
    params.n_ctx, params.n_parallel, params.warmup, params.port = 8192, 2, False, 0
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1"
    del server


def test_a_real_server_is_asked_and_judged_by_end_to_end(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "no_proxy", "127.0.0.1")
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS), encoding="utf-8")
    endpoint = ("--base-url", url, "--model", "m")
    for seed, name in enumerate(("a", "b")):
        words = ("--questions", "q.jsonl", "--name", name, "--max-new-tokens", 5 + seed, "--temperature", 0)
        assert f"{name}-q.jsonl: 2 answers" in run("answers", *endpoint, *words).output
    for kind, files in (("pairwise", ("a-q.jsonl", "b-q.jsonl")), ("single", ("a-q.jsonl",))):
        words = ("judge", kind, *files, *endpoint, "--concurrency", 2)
        assert run(*words, "--options", options(kind), "--output", f"{kind}-in-grammar").exit_code == 0
        assert run(*words, "--options", options(), "--output", f"{kind}-freely").exit_code == 0
    compared, rated = read_judgements(tmp_path / "pairwise-in-grammar"), read_judgements(tmp_path / "single-in-grammar")
    assert compare(compared).count == rate(rated).count == 2
    assert not compare(compared).unreadable and not rate(rated).unreadable
    assert 1 <= rate(rated).mean <= 9
    assert compare(read_judgements(tmp_path / "pairwise-freely")).outcomes["unreadable"] == 2
    assert rate(read_judgements(tmp_path / "single-freely")).mean is None
    lines = [json.loads(line) for line in (tmp_path / "pairwise-in-grammar" / RECORD).read_text().splitlines()]
    assert 2 <= len(lines) <= 4  # equal answers are asked about once
    assert all(line["input_tokens"] > 100 and 0 < line["output_tokens"] <= 40 for line in lines)
