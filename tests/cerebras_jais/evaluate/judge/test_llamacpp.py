"""A real server, llama.cpp's, answers questions and judges the answers, end to end.

The model is a tiny one of ours with random weights as GGUF, so that its verdicts mean nothing and its text is none that
a verdict is read from: what is claimed is that every request is answered, recorded and counted.
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
OPTIONS = json.dumps({"temperature": 0, "max_tokens": 8})


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
    judged = ("--options", OPTIONS, "--concurrency", 2)
    assert run("judge", "pairwise", "a-q.jsonl", "b-q.jsonl", *endpoint, *judged).exit_code == 0
    assert run("judge", "single", "a-q.jsonl", *endpoint, *judged).exit_code == 0
    found, rated = read_judgements(tmp_path / "a-q-against-b-q"), read_judgements(tmp_path / "a-q-rated")
    assert all(said.text and said.refused is None for judgement in (*found, *rated) for said in judgement.said)
    assert compare(found).count == rate(rated).count == 2
    assert sum(compare(found).unreadable.values()) <= 4
    lines = [json.loads(line) for line in (tmp_path / "a-q-against-b-q" / RECORD).read_text().splitlines()]
    assert len(lines) == 4 and all(line["input_tokens"] > 100 and 0 < line["output_tokens"] <= 8 for line in lines)
